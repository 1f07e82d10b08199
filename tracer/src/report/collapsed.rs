//! `export collapsed`: one line a stack, as flame graph tools read it.
//!
//! `command (pid);function (file:line);... VALUE`, root first, sorted. Invariants: a name never holds what
//! separates names or lines; the sum of the values is the sum of the view; no line has the value 0.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::format;
use crate::profile::{Metric, ProcessSummary, Snapshot, View};

/// What is exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollapsedOptions {
    /// Which blocks.
    pub view: View,
    /// Bytes or blocks.
    pub metric: Metric,
}

/// Writes the lines.
pub fn write(snapshot: &Snapshot, options: CollapsedOptions, out: &mut dyn Write) -> io::Result<()> {
    for (stack, value) in stacks(snapshot, options, format::process) {
        writeln!(out, "{stack} {value}")?;
    }
    Ok(())
}

/// The stacks with their values; `root` names the processes.
pub(super) fn stacks(
    snapshot: &Snapshot,
    options: CollapsedOptions,
    root: impl Fn(&ProcessSummary) -> String,
) -> BTreeMap<String, u64> {
    let labels: Vec<String> = snapshot
        .frames
        .ids()
        .map(|frame| one_name(&format::frame(snapshot, frame)))
        .collect();
    // Two stacks can read the same (after an exec, say): then they are one line.
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for process in &snapshot.processes {
        let name = one_name(&root(process));
        for (stack, tally) in &process.stacks {
            let value = tally.value(options.view, options.metric);
            if value == 0 {
                continue;
            }
            let mut line = name.clone();
            for frame in snapshot.stacks.root_first(*stack) {
                line.push(';');
                line.push_str(labels.get(frame.index()).map_or("", |label| label));
            }
            let sum = lines.entry(line).or_default();
            *sum = sum.saturating_add(value);
        }
    }
    lines
}

/// Names are escaped already; what is left is what means something in this format.
fn one_name(name: &str) -> String {
    name.replace(';', ":").replace(['\n', '\r'], " ")
}
