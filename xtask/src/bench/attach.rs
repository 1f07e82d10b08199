//! How long it takes from the start of `pyrobe record` until every probe is in place, and from Ctrl-C to its end.
//!
//! With 20 Python processes running, of one image, for each kind of link. Attached is what pyrobe says on standard
//! error, so the start of its process is part of the time; the end is that of its process, with everything detached and
//! the capture written.

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result};

use super::{
    running::{Recording, Target},
    target::{Spread, describe_machine, pyrobe, python, scratch, spread},
};
use crate::workspace;

const PROCESSES: usize = 20;
const GOAL_MS: f64 = 300.0;
const GOAL_DETACH_MS: f64 = 1000.0;
/// Kinds of links.
const KINDS: [&str; 3] = ["session", "multi", "per-point"];
const ROUNDS: usize = 11;

pub(super) fn run() -> Result<()> {
    let (pyrobe, python) = (pyrobe()?, python()?);
    let capture = scratch("attach")?.join("attach.pyrobe");
    let program = workspace::root().join("tests/workloads/plain_target.py");
    let targets: Vec<Target> = (0..PROCESSES)
        .map(|_| Target::start(&python, &program, &[]))
        .collect::<Result<_>>()?;
    describe_machine(&pyrobe, &python)?;
    println!(
        "{} processes, milliseconds: median (least to most), part of the goal",
        targets.len()
    );
    println!("links      rounds   start to attached                 Ctrl-C to end");
    for kind in KINDS {
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (start, end) = round(&pyrobe, &capture, kind)?;
            starts.push(start);
            ends.push(end);
        }
        let starts = spread(starts).context("no round was made")?;
        let ends = spread(ends).context("no round was made")?;
        println!(
            "{kind:<10} {ROUNDS:>6}   {}   {}",
            shown(&starts, GOAL_MS),
            shown(&ends, GOAL_DETACH_MS)
        );
    }
    Ok(())
}

fn shown(of: &Spread, goal: f64) -> String {
    let range = format!("({:.0} to {:.0})", of.least, of.most);
    format!("{:>6.0} {range:<16} {:.2}", of.median, of.median / goal)
}

/// Milliseconds of one start and of one end.
fn round(pyrobe: &Path, capture: &Path, kind: &str) -> Result<(f64, f64)> {
    let start = Instant::now();
    let recording = Recording::start(
        Command::new(pyrobe)
            .args(["record", "--mode", "allocs", "--links", kind, "-f", "-o"])
            .arg(capture),
    )?;
    let attached = start.elapsed();
    let stopped = Instant::now();
    recording.stop()?;
    let ended = stopped.elapsed();
    Ok((attached.as_secs_f64() * 1e3, ended.as_secs_f64() * 1e3))
}
