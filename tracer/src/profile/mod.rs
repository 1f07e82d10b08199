//! Stacks, live set and tallies, from events to a Snapshot. Pure: does no IO.
