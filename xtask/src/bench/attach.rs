//! How long it takes from the start of `pyrobe record` until every probe is in place, and from Ctrl-C to its end.
//!
//! With 20 Python processes running, of one image, for each kind of link. Attached is what pyrobe says on standard
//! error, so the start of its process is part of the time; the end is that of its process, with everything detached and
//! the capture written. And how long the probes of the largest image alone take to be set and to be taken off, with a
//! process of it running: that is what pyrobe itself says at `-v`, as nothing else of a recording is part of it.

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};

use super::{
    running::{Recording, Target},
    target::{Spread, describe_machine, pyrobe, python, scratch, spread},
};
use crate::workspace;

const PROCESSES: usize = 20;
const GOAL_MS: f64 = 300.0;
const GOAL_DETACH_MS: f64 = 1000.0;
/// Attach plus detach of the largest image.
const GOAL_LARGEST_MS: f64 = 200.0;
/// Kinds of links.
const KINDS: [&str; 3] = ["session", "multi", "per-point"];
const ROUNDS: usize = 11;
/// In sid's root file system: of all interpreters that `setup` installs, the one with the most sites.
const LARGEST: &str = "/usr/bin/python3.13";
/// Says that it is ready and waits for the end of its input.
const WAITING: &str = "import sys; print('ready', flush=True); sys.stdin.read()";

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
    drop(targets);
    largest(&pyrobe, &capture)
}

/// The probes of the largest image.
fn largest(pyrobe: &Path, capture: &Path) -> Result<()> {
    let root = workspace::sid_root();
    if !root.join(LARGEST.trim_start_matches('/')).is_file() {
        bail!("no {LARGEST} in {}: run `cargo xtask setup`", root.display());
    }
    let target = Target::start(Path::new("chroot"), &root, &[LARGEST, "-c", WAITING])?;
    println!(
        "{LARGEST} of sid, one process, milliseconds: median (least to most); of both: part of the goal"
    );
    println!("links      rounds   attach             detach             both");
    for kind in KINDS {
        let (mut attach, mut detach, mut both) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let said = Recording::start(
                Command::new(pyrobe)
                    .args(["record", "-v", "--mode", "allocs", "--links", kind, "-f"])
                    .args(["--pid", &target.pid().to_string(), "-o"])
                    .arg(capture),
            )?
            .stop()?;
            let (attached, detached) = (told(&said, PLACED)?, told(&said, REMOVED)?);
            attach.push(attached);
            detach.push(detached);
            both.push(attached + detached);
        }
        let of = |times| spread(times).context("no round was made");
        let (attach, detach, both) = (of(attach)?, of(detach)?, of(both)?);
        let (attach, detach) = (attach.to_string(), detach.to_string());
        println!(
            "{kind:<10} {ROUNDS:>6}   {attach:<18} {detach:<18} {}",
            shown(&both, GOAL_LARGEST_MS)
        );
    }
    Ok(())
}

/// What pyrobe says at `-v` before a time.
const PLACED: &str = "probes in place in ";
const REMOVED: &str = "probes removed in ";

/// The one time that was told behind `words`, milliseconds.
fn told(said: &str, words: &str) -> Result<f64> {
    let mut times = said.lines().filter_map(|line| line.split_once(words));
    let (Some((_, time)), None) = (times.next(), times.next()) else {
        bail!("pyrobe does not say once \"{words}\":\n{said}");
    };
    milliseconds(time.trim()).with_context(|| format!("{time:?} is no time"))
}

/// A duration as Rust shows it.
fn milliseconds(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit);
    let scale = match unit {
        "ns" => 1e-6,
        "µs" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * scale)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations_are_read_as_they_are_shown() {
        for (nanos, expected) in [
            (12, 0.000_012),
            (3_500, 0.0035),
            (4_200_000, 4.2),
            (2_000_000_000, 2000.0),
        ] {
            let shown = format!("{:?}", Duration::from_nanos(nanos));
            let read = milliseconds(&shown).unwrap_or_default();
            assert!((read - expected).abs() < 1e-9, "{shown}");
        }
        assert_eq!(milliseconds("3 ms"), None);
        assert_eq!(milliseconds("3"), None);
    }

    #[test]
    fn a_time_has_to_be_told_once() {
        let said = "DEBUG /a: probes in place in 2.5ms\nrecording\n";
        assert_eq!(told(said, PLACED).ok(), Some(2.5));
        assert!(told(said, REMOVED).is_err());
        assert!(told(&said.repeat(2), PLACED).is_err());
    }
}
