//! What a hit costs: our programs with a ten-frame stack against empty programs on the same instructions.
//!
//! The same Python program runs bare, with empty programs and recorded, in turn; what either adds to a block is
//! the cost. An allocation is two hits (call and return), a free is one.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::target::{describe_machine, pyrobe, python, scratch, spread};
use crate::{process, workspace};

const ROUNDS: usize = 11;
const GOAL: f64 = 2.0;

/// Nanoseconds a block.
#[derive(Clone, Copy)]
struct Cost {
    alloc: f64,
    free: f64,
}

pub(super) fn run() -> Result<()> {
    let (pyrobe, python) = (pyrobe()?, python()?);
    let capture = scratch("hit")?.join("hit.pyrobe");
    let program = workspace::root().join("xtask/src/bench/hit.py");
    describe_machine(&pyrobe, &python)?;
    let record = |options: &[&str]| {
        let mut command = Command::new(&pyrobe);
        command
            .args(["record", "-f", "-o"])
            .arg(&capture)
            .args(options)
            .arg("--")
            .arg(&python)
            .arg(&program);
        command
    };
    let (mut empty, mut full) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let bare = measure(Command::new(&python).arg(&program), &python)?;
        empty.push(measure(&mut record(&["--empty"]), &pyrobe)?.minus(bare));
        full.push(measure(&mut record(&[]), &pyrobe)?.minus(bare));
    }
    println!("cost of a block, {ROUNDS} rounds, medians in ns (least to most)");
    for (name, of) in [
        ("allocation", (|cost| cost.alloc) as fn(&Cost) -> f64),
        ("free", |cost| cost.free),
    ] {
        let empty = spread(empty.iter().map(of).collect()).context("no round was made")?;
        let full = spread(full.iter().map(of).collect()).context("no round was made")?;
        println!(
            "{name}: empty programs {:.0} ({:.0} to {:.0}), recorded with 10 frames {:.0} ({:.0} to {:.0}): \
             ratio {:.2}, goal at most {GOAL:.0}",
            empty.median,
            empty.least,
            empty.most,
            full.median,
            full.least,
            full.most,
            full.median / empty.median
        );
    }
    Ok(())
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
