//! What an allocation and a free cost: our programs with a ten-frame stack, against empty programs on the same
//! instructions and against a stock one-line probe.
//!
//! The same Python program runs bare, with empty programs, recorded and under the stock probe, in turn; what each
//! adds to a block is the cost.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{
    running::end,
    target::{debian_python, describe_machine, pyrobe, python, scratch, spread},
};
use crate::{process, setup, workspace};

/// Debian's packages, and what each is for.
const PACKAGES: &[(&str, &str)] = &[("bpftrace", "the stock probe to compare with")];

const ROUNDS: usize = 11;
const GOAL_ALLOC: f64 = 2.0;
const GOAL_FREE: f64 = 1.3;
/// Nanoseconds for each frame beyond ten, and the frames of the stack that shows it.
const GOAL_FRAME: f64 = 40.0;
const DEEP: u32 = 30;
/// A stock probe's cost over ours.
const GOAL_STOCK: f64 = 12.0;

/// Nanoseconds a block.
#[derive(Clone, Copy)]
struct Cost {
    alloc: f64,
    free: f64,
}

pub(super) fn run() -> Result<()> {
    setup::install(PACKAGES)?;
    let pyrobe = pyrobe()?;
    let plain = python()?;
    // The stock probe sees every allocation only where there is one copy of the function.
    let library = library_of(&plain)?;
    interpreter(&pyrobe, &plain, Some(&library))?;
    interpreter(&pyrobe, &debian_python(), None)
}

/// Measures and prints the figures of one interpreter; `library`: where its allocator is, if the stock probe is to be
/// compared with.
fn interpreter(pyrobe: &Path, python: &Path, library: Option<&Path>) -> Result<()> {
    let capture = scratch("hit")?.join("hit.pyrobe");
    let program = workspace::root().join("xtask/src/bench/hit.py");
    describe_machine(pyrobe, python)?;
    let record = |options: &[&str]| {
        let mut command = Command::new(pyrobe);
        command
            .args(["record", "--mode", "allocs", "-f", "-o"])
            .arg(&capture)
            .args(options)
            .arg("--")
            .arg(python)
            .arg(&program);
        command
    };
    let (mut empty, mut full, mut frame, mut stock) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let bare = measure(Command::new(python).arg(&program), python)?;
        empty.push(measure(&mut record(&["--empty"]), pyrobe)?.minus(bare));
        let recorded = measure(&mut record(&[]), pyrobe)?.minus(bare);
        full.push(recorded);
        let deep = measure(record(&[]).arg(DEEP.to_string()), pyrobe)?.minus(bare);
        frame.push((deep.alloc - recorded.alloc) / f64::from(DEEP - 10));
        if let Some(library) = library {
            let _probe = Stock::start(library)?;
            stock.push(
                measure(Command::new(python).arg(&program), python)?
                    .minus(bare)
                    .alloc,
            );
        }
    }
    println!(
        "cost of a block in {}, {ROUNDS} rounds, medians in ns (least to most)",
        python.display()
    );
    for (name, of, goal) in [
        ("allocation", (|cost| cost.alloc) as fn(&Cost) -> f64, GOAL_ALLOC),
        ("free", |cost| cost.free, GOAL_FREE),
    ] {
        let empty = spread(empty.iter().map(of).collect()).context("no round was made")?;
        let full = spread(full.iter().map(of).collect()).context("no round was made")?;
        println!(
            "{name}: empty programs {empty}, recorded with 10 frames {full}: ratio {:.2}, goal at most {goal:.1}",
            full.median / empty.median
        );
    }
    if let Some(frame) = spread(frame) {
        println!("allocation: each further frame, up to {DEEP}, {frame}, goal at most {GOAL_FRAME:.0}");
    }
    if let Some(stock) = spread(stock) {
        let full = spread(full.iter().map(|cost| cost.alloc).collect()).context("no round was made")?;
        println!(
            "allocation: stock one-line probe on PyObject_Malloc {stock}: {:.1} times ours, goal at least {GOAL_STOCK:.0}",
            stock.median / full.median
        );
    }
    Ok(())
}

/// The shared library that an interpreter's code is in.
fn library_of(python: &Path) -> Result<PathBuf> {
    let maps = process::output(Command::new(python).args([
        "-c",
        "print(next(line.split()[-1] for line in open('/proc/self/maps') if 'libpython' in line))",
    ]))?;
    Ok(PathBuf::from(maps))
}

/// What one writes today: `bpftrace` with a count of the calls. Killed when this is dropped: a SIGINT is lost on
/// Debian bookworm's unless it comes while it waits for events.
struct Stock(Child);

impl Stock {
    fn start(library: &Path) -> Result<Self> {
        let script = format!(
            "BEGIN {{ printf(\"attached\\n\"); }} uprobe:{}:PyObject_Malloc {{ @calls = count(); }}",
            library.display()
        );
        let mut child = Command::new("bpftrace")
            .args(["-B", "line", "-e", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start bpftrace")?;
        let mut said = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let mut line = String::new();
        while line.trim() != "attached" {
            line.clear();
            if said.read_line(&mut line)? == 0 {
                bail!("bpftrace ended before it was attached: {}", child.wait()?);
            }
        }
        // The probes are attached before BEGIN runs; what it counts is not read.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(Self(child))
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

impl Cost {
    fn minus(self, bare: Self) -> Self {
        Self {
            alloc: self.alloc - bare.alloc,
            free: self.free - bare.free,
        }
    }
}

fn measure(command: &mut Command, program: &Path) -> Result<Cost> {
    let said = process::output(command)?;
    let mut numbers = said.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(alloc)), Some(Ok(free))) => Ok(Cost { alloc, free }),
        _ => anyhow::bail!("{} printed no figures: {said:?}", program.display()),
    }
}
