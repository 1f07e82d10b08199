//! How long it takes from the start of `pyrobe record` until every probe is in place, and from Ctrl-C to its end.
//!
//! With 20 Python processes running, of one image, for each kind of link. Attached is what pyrobe says on standard
//! error, so the start of its process is part of the time; the end is that of its process, with everything detached and
//! the capture written.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use super::target::{Spread, describe_machine, pyrobe, python, scratch, spread};
use crate::{process, workspace};

const PROCESSES: usize = 20;
const ROUNDS: usize = 11;
const GOAL_MS: f64 = 300.0;
/// Per-point links are slow to take down one by one.
const GOAL_DETACH_MS: f64 = 1000.0;
const KINDS: [&str; 3] = ["session", "multi", "per-point"];
/// What `record` says first of its line once it is attached.
const READY: &str = "recording";

pub(super) fn run() -> Result<()> {
    let (pyrobe, python) = (pyrobe()?, python()?);
    let capture = scratch("attach")?.join("attach.pyrobe");
    let mut targets = Vec::new();
    for _ in 0..PROCESSES {
        targets.push(Target::start(&python)?);
    }
    describe_machine(&pyrobe, &python)?;
    println!(
        "{PROCESSES} processes, {ROUNDS} rounds, milliseconds: median (least to most), part of the goal"
    );
    println!("links      start to attached                 Ctrl-C to end");
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
            "{kind:<10} {}   {}",
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
    let mut child = Command::new(pyrobe)
        .args(["record", "--mode", "allocs", "--links", kind, "-f", "-o"])
        .arg(capture)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start pyrobe")?;
    let mut said = BufReader::new(child.stderr.take().context("its standard error is a pipe")?);
    let mut line = String::new();
    while !line.starts_with(READY) {
        line.clear();
        if said
            .read_line(&mut line)
            .context("cannot read what pyrobe says")?
            == 0
        {
            bail!("pyrobe ended before it was attached: {}", child.wait()?);
        }
    }
    let attached = start.elapsed();
    let stopped = Instant::now();
    process::run_quietly(Command::new("kill").args(["-INT", &child.id().to_string()]))?;
    // What it says while it stops has to go somewhere.
    std::io::copy(&mut said, &mut std::io::sink()).context("cannot read what pyrobe says")?;
    child.wait().context("cannot wait for pyrobe")?;
    let ended = stopped.elapsed();
    Ok((attached.as_secs_f64() * 1e3, ended.as_secs_f64() * 1e3))
}

/// A Python process that does nothing, killed when this is dropped.
struct Target(Child);

impl Target {
    fn start(python: &Path) -> Result<Self> {
        let mut child = Command::new(python)
            .arg(workspace::root().join("tests/workloads/plain_target.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a target")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output is a pipe")?).read_line(&mut line)?;
        let target = Self(child);
        if line.trim() != "ready" {
            bail!("a target did not start: {line:?}");
        }
        Ok(target)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
