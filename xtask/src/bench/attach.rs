//! How long it takes from the start of `pyrobe record` until every probe is in place.
//!
//! With 20 Python processes running, of one image. The end is what pyrobe says on standard error once it is
//! attached, so the start of its process is part of the time.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use super::target::{describe_machine, pyrobe, python, scratch, spread};
use crate::{process, workspace};

const PROCESSES: usize = 20;
const ROUNDS: usize = 11;
const GOAL_MS: f64 = 300.0;
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
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(round(&pyrobe, &capture)?);
    }
    let of = spread(times).context("no round was made")?;
    println!(
        "start to attached, {PROCESSES} processes, {ROUNDS} rounds: median {:.0} ms ({:.0} to {:.0}), goal {GOAL_MS:.0} ms: {:.2} of it",
        of.median,
        of.least,
        of.most,
        of.median / GOAL_MS
    );
    Ok(())
}

/// Milliseconds of one start; the recording is stopped again.
fn round(pyrobe: &Path, capture: &Path) -> Result<f64> {
    let start = Instant::now();
    let mut child = Command::new(pyrobe)
        .args(["record", "--mode", "allocs", "-f", "-o"])
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
    let time = start.elapsed();
    process::run_quietly(Command::new("kill").args(["-INT", &child.id().to_string()]))?;
    // What it says while it stops has to go somewhere.
    std::io::copy(&mut said, &mut std::io::sink()).context("cannot read what pyrobe says")?;
    child.wait().context("cannot wait for pyrobe")?;
    Ok(time.as_secs_f64() * 1e3)
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
