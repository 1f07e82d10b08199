//! `cargo xtask test [--tier fast|e2e|slow|all]`: the tests, with a count of what was skipped.
//!
//! `fast` needs no rights and no interpreters; `e2e` traces real interpreters, as root; `slow` does so with those that
//! `cargo xtask pythons` builds.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// Which tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tier {
    /// Unit tests
    Fast,
    /// Black-box tests on real interpreters (as root)
    E2e,
    /// Black-box tests on the interpreters that `cargo xtask pythons` builds (as root)
    Slow,
    /// Everything but the slow tier
    All,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which tests to run
    #[arg(long, value_enum, default_value_t = Tier::All)]
    tier: Tier,
    /// For the test programs: a part of a test's name, `--nocapture`, ...
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs the tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    let log = workspace::target_dir().join("skipped-tests.txt");
    fs::create_dir_all(workspace::target_dir()).context("cannot make the target directory")?;
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(workspace::cargo());
    command
        .current_dir(workspace::root())
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("PYROBE_SKIP_LOG", &log);
    match args.tier {
        Tier::Fast => command.args(["--lib", "--bins"]),
        Tier::E2e => command.args(["--test", "cli", "--test", "e2e"]),
        Tier::Slow => command.args(["--test", "e2e"]),
        Tier::All => &mut command,
    };
    command.arg("--");
    if args.tier == Tier::Slow {
        command.arg("--ignored");
    }
    command.args(&args.arguments);
    let result = process::run(&mut command);
    let skipped = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    for line in skipped.lines() {
        println!("skipped: {line}");
    }
    println!("tests skipped: {}", skipped.lines().count());
    result
}
