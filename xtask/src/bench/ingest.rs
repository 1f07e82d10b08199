//! How many events a second userspace takes from a stored capture: decode, symbolize, account, report.
//!
//! The capture is a real recording of a program that makes and drops blocks of many sizes at many stacks. The time
//! is the CPU time of the reporting process, so threads are no way to look faster.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{
    running::cpu_seconds_of_children,
    target::{describe_machine, pyrobe, python, scratch, spread},
};
use crate::process;

const ROUNDS: usize = 5;
const GOAL_PER_SECOND: f64 = 2e6;

/// About four million events at a few hundred stacks.
const PROGRAM: &str = "
def leaf(size):
    return 'x' * size

def descend(depth, size):
    return descend(depth - 1, size) if depth else leaf(size)

kept = [None] * 1000
for i in range(2000000):
    kept[i % 1000] = descend(i % 20, i % 900)
";

pub(super) fn run() -> Result<()> {
    let (pyrobe, python) = (pyrobe()?, python()?);
    let capture = scratch("ingest")?.join("ingest.pyrobe");
    describe_machine(&pyrobe, &python)?;
    process::output(
        Command::new(&pyrobe)
            .args([
                "record",
                "--mode",
                "allocs",
                "--ring-bytes",
                "268435456",
                "-f",
                "-o",
            ])
            .arg(&capture)
            .arg("--")
            .arg(&python)
            .args(["-S", "-c", PROGRAM]),
    )?;
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        rates.push(round(&pyrobe, &capture)?);
    }
    let of = spread(rates).context("no round was made")?;
    println!(
        "events a second from a stored capture, {ROUNDS} rounds: median {:.2} million ({:.2} to {:.2}), goal {:.0} million: {:.2} of it",
        of.median / 1e6,
        of.least / 1e6,
        of.most / 1e6,
        GOAL_PER_SECOND / 1e6,
        of.median / GOAL_PER_SECOND
    );
    Ok(())
}

/// Events a second of CPU time in one report.
fn round(pyrobe: &Path, capture: &Path) -> Result<f64> {
    let before = cpu_seconds_of_children()?;
    let report = process::output(
        Command::new(pyrobe)
            .args(["report", "stats", "--json"])
            .arg(capture),
    )?;
    let seconds = cpu_seconds_of_children()? - before;
    let stats: serde_json::Value = serde_json::from_str(&report).context("the report is no JSON")?;
    let processes = stats["processes"]
        .as_array()
        .context("the report names no processes")?;
    let events: u64 = processes
        .iter()
        .flat_map(|process| {
            ["allocs", "frees", "reallocs"].map(|kind| process["delivered"][kind].as_u64().unwrap_or(0))
        })
        .sum();
    Ok(events as f64 / seconds)
}
