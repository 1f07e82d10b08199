//! A host under load: four processes that make and drop blocks for half a minute.
//!
//! A block is two events. What counts is that none is lost with the default buffers, and what userspace takes of
//! a core meanwhile.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    running::{Recording, Target, cpu_seconds},
    target::{debian_python, describe_machine, pyrobe, scratch},
};
use crate::{process, workspace};

const PROCESSES: u32 = 4;
const SECONDS: u64 = 30;
const GOAL_EVENTS_PER_SECOND: f64 = 1e6;
const GOAL_CORES: f64 = 1.0;

pub(super) fn run() -> Result<()> {
    let (pyrobe, python) = (pyrobe()?, debian_python());
    let capture = scratch("load")?.join("load.pyrobe");
    let program = workspace::root().join("xtask/src/bench/load.py");
    describe_machine(&pyrobe, &python)?;
    // As fast as they can.
    let mut targets: Vec<Target> = (0..PROCESSES)
        .map(|_| Target::start(&python, &program, &["0"]))
        .collect::<Result<_>>()?;
    let recording = Recording::start(
        Command::new(&pyrobe)
            .args(["record", "--mode", "allocs", "-f", "-o"])
            .arg(&capture)
            .args(targets.iter().map(|target| format!("--pid={}", target.pid()))),
    )?;
    let before = cpu_seconds(recording.pid())?;
    let start = Instant::now();
    for target in &mut targets {
        target.tell()?;
    }
    std::thread::sleep(Duration::from_secs(SECONDS));
    let cores = (cpu_seconds(recording.pid())? - before) / start.elapsed().as_secs_f64();
    let mut blocks = 0.0;
    for target in &mut targets {
        target.tell()?;
        blocks += target
            .line()?
            .parse::<f64>()
            .context("a target printed no figure")?;
    }
    recording.stop()?;
    let stats = process::output(
        Command::new(&pyrobe)
            .args(["report", "stats", "--json"])
            .arg(&capture),
    )?;
    let stats: serde_json::Value = serde_json::from_str(&stats).context("the report is no JSON")?;
    let processes = stats["processes"]
        .as_array()
        .context("the report names no processes")?;
    let sum = |what: &str| -> u64 {
        let of = |process: &serde_json::Value| -> u64 {
            let kinds = ["allocs", "frees", "reallocs"];
            kinds
                .map(|kind| process[what][kind].as_u64().unwrap_or(0))
                .iter()
                .sum()
        };
        processes.iter().map(of).sum()
    };
    let (produced, delivered) = (sum("produced"), sum("delivered"));
    println!(
        "{PROCESSES} processes for {SECONDS} s: {:.2} million blocks a second made, {:.2} million events a second \
         recorded (goal {:.0} million), {} lost (goal 0), userspace {cores:.2} of a core (goal {GOAL_CORES:.0})",
        blocks / 1e6,
        delivered as f64 / SECONDS as f64 / 1e6,
        GOAL_EVENTS_PER_SECOND / 1e6,
        produced.saturating_sub(delivered),
    );
    println!("capture: {} MiB", fs::metadata(&capture)?.len() >> 20);
    Ok(())
}
