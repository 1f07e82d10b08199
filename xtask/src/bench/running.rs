//! What runs while a bench measures: Python programs, a recording of them, and what CPU time they take.
//!
//! Apart from `target`, which is about what is measured on. Whatever is started here ends with the bench, also when it fails.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// What `record` says first of its line once it is attached.
const READY: &str = "recording";

/// A Python program that says `ready` and then reads its input; killed when this is dropped.
pub(super) struct Target {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Target {
    /// Starts it and waits until it is ready.
    pub(super) fn start(python: &Path, program: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(python)
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a target")?;
        let output = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let mut target = Self { child, output };
        let said = target.line()?;
        if said != "ready" {
            bail!("a target did not start: {said:?}");
        }
        Ok(target)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes an empty line to its input.
    pub(super) fn tell(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input is a pipe")?;
        input.write_all(b"\n").context("a target has ended")
    }

    /// Its next line, trimmed.
    pub(super) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A running `pyrobe record`; killed when this is dropped. What it says is shown if it fails.
pub(super) struct Recording {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Recording {
    /// Starts it and waits until it is attached.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start pyrobe")?;
        let stderr = BufReader::new(child.stderr.take().context("its standard error is a pipe")?);
        let mut recording = Self {
            child,
            stderr,
            said: String::new(),
        };
        loop {
            let before = recording.said.len();
            recording
                .stderr
                .read_line(&mut recording.said)
                .context("cannot read what pyrobe says")?;
            let line = recording.said.get(before..).unwrap_or_default();
            if line.is_empty() {
                let status = recording.child.wait()?;
                bail!("{}pyrobe ended before it was attached: {status}", recording.said);
            }
            if line.starts_with(READY) {
                return Ok(recording);
            }
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as Ctrl-C does and waits until it is gone. All that it said on standard error.
    pub(super) fn stop(mut self) -> Result<String> {
        process::output(Command::new("kill").args(["-INT", &self.pid().to_string()]))?;
        std::io::Read::read_to_string(&mut self.stderr, &mut self.said)
            .context("cannot read what pyrobe says")?;
        let status = self.child.wait().context("cannot wait for pyrobe")?;
        if !status.success() {
            bail!("{}pyrobe failed: {status}", self.said);
        }
        Ok(std::mem::take(&mut self.said))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Kills a child that may be gone already, and waits until it is.
pub(super) fn end(child: &mut Child) {
    // There is nothing left to do for what is gone.
    let _ = child.kill();
    let _ = child.wait();
}

/// User and system time of a running process, seconds.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    cpu_seconds_at(&format!("/proc/{pid}/stat"), 14)
}

/// User and system time of all our children that were waited for, seconds.
pub(super) fn cpu_seconds_of_children() -> Result<f64> {
    cpu_seconds_at("/proc/self/stat", 16)
}

/// The sum of a field, counted from 1, and the next one, both in clock ticks: `proc_pid_stat(5)`.
fn cpu_seconds_at(file: &str, field: usize) -> Result<f64> {
    let stat = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    // The second field, a name in parentheses, can hold spaces and parentheses: the third comes after the last one.
    let (_, from_third) = stat.rsplit_once(") ").context("no stat of a process")?;
    let ticks: f64 = from_third
        .split(' ')
        .skip(field - 3)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum();
    let per_second: f64 = process::output(Command::new("getconf").arg("CLK_TCK"))?
        .parse()
        .context("getconf names no number")?;
    Ok(ticks / per_second)
}
