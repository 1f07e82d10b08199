//! `cargo xtask test [--tier fast|e2e|slow|all]`: the tests, with a count of what was skipped.
//!
//! `fast` needs no rights and no interpreters; `e2e` traces real interpreters, as root; `slow` does so with those that
//! `cargo xtask pythons` builds, one at a time. Tests beside which nothing is to run come after the others, unless arguments are given:
//! then all that these choose run together.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// In the names of tests beside which nothing is to run.
const ALONE: &str = "::alone::";

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
    let test = |targets: &[&str], arguments: &[&str]| {
        let mut command = Command::new(workspace::cargo());
        command
            .current_dir(workspace::root())
            .args(["test", "--workspace", "--no-fail-fast"])
            .env("PYROBE_SKIP_LOG", &log)
            .args(targets)
            .arg("--")
            .args(arguments)
            .args(&args.arguments);
        process::run(&mut command)
    };
    let targets: &[&str] = match args.tier {
        Tier::Fast => &["--lib", "--bins"],
        Tier::E2e => &["--test", "cli", "--test", "e2e"],
        Tier::Slow => &["--test", "e2e"],
        Tier::All => &[],
    };
    let result = match args.tier {
        Tier::Slow => test(targets, &["--ignored", "--test-threads", "1"]),
        // Who asks for one test gets that.
        Tier::E2e | Tier::All if args.arguments.is_empty() => {
            let others = test(targets, &["--skip", ALONE]);
            others.and(test(&["--test", "e2e"], &["--test-threads", "1", ALONE]))
        }
        _ => test(targets, &[]),
    };
    let skipped = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    for line in skipped.lines() {
        println!("skipped: {line}");
    }
    println!("tests skipped: {}", skipped.lines().count());
    result
}
