//! Renders a Snapshot: stats, table, flame graph, collapsed stacks. Never sees an event.
