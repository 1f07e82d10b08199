//! What pyrobe itself takes while it records a whole host: processor time and resident memory, with 50 Python processes
//! that do what workers of services do.

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
use crate::workspace;

const PROCESSES: usize = 50;
/// Seconds beyond the measurement after which the recorder ends by itself.
const SPARE: u64 = 300;
const GOAL_CORES: f64 = 0.01;
const GOAL_MEGABYTES: f64 = 64.0;

/// What can be asked for.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long it is measured
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// pyrobe's mode
    #[arg(long, default_value = "heap")]
    mode: String,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let (pyrobe, python) = (pyrobe()?, debian_python());
    let capture = scratch("footprint")?.join("footprint.pyrobe");
    let program = workspace::root().join("xtask/src/bench/footprint.py");
    describe_machine(&pyrobe, &python)?;
    let mut targets: Vec<Target> = (0..PROCESSES)
        .map(|_| Target::start(&python, &program, &[]))
        .collect::<Result<_>>()?;
    let before_attached = Instant::now();
    let recording = Recording::start(
        Command::new(&pyrobe)
            .args(["record", "--mode", &args.mode, "-f", "-o"])
            .arg(&capture)
            // A recorder of the whole host may not stay behind a bench that was killed.
            .arg(format!("--duration={}", args.seconds + SPARE)),
    )?;
    let attached = before_attached.elapsed();
    for target in &mut targets {
        target.tell()?;
    }
    let first = cpu_seconds(recording.pid())?;
    let start = Instant::now();
    let mut resident = Vec::new();
    for _ in 0..args.seconds {
        std::thread::sleep(Duration::from_secs(1));
        resident.push(memory(recording.pid(), "VmRSS")?);
    }
    let elapsed = start.elapsed().as_secs_f64();
    let cores = (cpu_seconds(recording.pid())? - first) / elapsed;
    let high_water_mark = memory(recording.pid(), "VmHWM")?;
    let last = resident.last().copied().unwrap_or_default();
    let mut theirs = 0.0;
    for target in &mut targets {
        target.tell()?;
        theirs += target
            .line()?
            .parse::<f64>()
            .context("a target printed no figure")?;
    }
    recording.stop()?;
    println!(
        "{} Python processes that take {:.2} of a core together, whole host, mode {}, {elapsed:.0} s, attached in {:.1} s",
        targets.len(),
        theirs / elapsed,
        args.mode,
        attached.as_secs_f64()
    );
    println!(
        "pyrobe's processor time: {:.2}% of a core, goal {:.0}%: {:.2} of it (its start and end are left out)",
        cores * 100.0,
        GOAL_CORES * 100.0,
        cores / GOAL_CORES
    );
    println!(
        "pyrobe's resident memory: {last:.1} MB at the end, {high_water_mark:.1} MB at most, goal {GOAL_MEGABYTES:.0} MB: {:.2} of it",
        high_water_mark / GOAL_MEGABYTES
    );
    println!("capture: {:.1} MB", fs::metadata(&capture)?.len() as f64 / 1e6);
    Ok(())
}

/// A line of `/proc/PID/status` that tells of memory, megabytes.
fn memory(pid: u32, key: &str) -> Result<f64> {
    let file = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let kibibytes: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .and_then(|value| value.split_whitespace().next())
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("{file} has no {key}"))?;
    Ok(kibibytes * 1024.0 / 1e6)
}
