//! What a profile makes of made-up events: the live set, identity of processes and stacks, losses, properties.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

mod audits;
mod gaps;
mod identity;
mod live_set;
mod properties;

use super::{
    ProcessSummary, Snapshot, Tally, View,
    testing::{Story, counters},
};
use crate::report::format;

/// Every stack of a process as text, root first, with its tally.
fn by_stack(snapshot: &Snapshot, process: &ProcessSummary) -> Vec<(String, Tally)> {
    let text = |stack| {
        let frames = snapshot.stacks.root_first(stack);
        frames
            .into_iter()
            .map(|frame| format::frame(snapshot, frame))
            .collect::<Vec<_>>()
            .join(";")
    };
    process
        .stacks
        .iter()
        .map(|(stack, tally)| (text(*stack), *tally))
        .collect()
}

/// The only process of a story.
#[track_caller]
fn only(snapshot: &Snapshot) -> &ProcessSummary {
    assert_eq!(snapshot.processes.len(), 1);
    &snapshot.processes[0]
}
