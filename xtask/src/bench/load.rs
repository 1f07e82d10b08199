//! A host under load: four processes that make and drop blocks for half a minute.
//!
//! A block is two events. What counts is that none is lost with the default buffers, and what userspace takes of
//! a core meanwhile.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::target::{debian_python, describe_machine, pyrobe, scratch};
use crate::{process, workspace};

const PROCESSES: u32 = 4;
const SECONDS: u64 = 30;
const GOAL_EVENTS_PER_SECOND: f64 = 1e6;
const GOAL_CORES: f64 = 1.0;

pub(super) fn run() -> Result<()> {
    let (pyrobe, python) = (pyrobe()?, debian_python());
    let capture = scratch("load")?.join("load.pyrobe");
    describe_machine(&pyrobe, &python)?;
    let mut targets = Vec::new();
    for _ in 0..PROCESSES {
        targets.push(Target::start(&python)?);
    }
    let mut recording = Command::new(&pyrobe)
        .args(["record", "--mode", "allocs", "-f", "-o"])
        .arg(&capture)
        .args(
            targets
                .iter()
                .map(|target| format!("--pid={}", target.child.id())),
        )
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start pyrobe")?;
    let mut said = BufReader::new(recording.stderr.take().context("its standard error is a pipe")?);
    let mut line = String::new();
    while !line.starts_with("recording") {
        line.clear();
        if said.read_line(&mut line)? == 0 {
            bail!("pyrobe ended before it was attached: {}", recording.wait()?);
        }
    }
    let before = cpu_seconds(recording.id())?;
    let start = Instant::now();
    for target in &mut targets {
        target.tell()?;
    }
    std::thread::sleep(Duration::from_secs(SECONDS));
    let cores = (cpu_seconds(recording.id())? - before) / start.elapsed().as_secs_f64();
    let mut blocks = 0.0;
    for target in &mut targets {
        target.tell()?;
        let mut line = String::new();
        target.output.read_line(&mut line)?;
        blocks += line.trim().parse::<f64>().context("a target printed no figure")?;
    }
    process::run_quietly(Command::new("kill").args(["-INT", &recording.id().to_string()]))?;
    std::io::copy(&mut said, &mut std::io::sink())?;
    recording.wait()?;
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

/// A process that makes blocks once it is told to, until it is told again; killed when this is dropped.
struct Target {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Target {
    fn start(python: &Path) -> Result<Self> {
        let mut child = Command::new(python)
            .arg(workspace::root().join("xtask/src/bench/load.py"))
            .arg("0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a target")?;
        let output = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let mut target = Self { child, output };
        let mut line = String::new();
        target.output.read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("a target did not start: {line:?}");
        }
        Ok(target)
    }

    fn tell(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input is a pipe")?;
        input.write_all(b"\n").context("a target has ended")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of a process, seconds: fields 14 and 15 of `/proc/PID/stat`.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let ticks: f64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    let per_second: f64 = process::output(Command::new("getconf").arg("CLK_TCK"))?
        .parse()
        .context("getconf names no number")?;
    Ok(ticks / per_second)
}
