//! `cargo xtask ci`: everything that must hold before the tests: form, lints, rules of the source, built files.
//!
//! All checks run even if one fails, so that one run of CI shows all that is to be mended.

use std::{process::Command, time::Instant};

use anyhow::{Result, bail};

use crate::{process, workspace};

/// The checks, as cargo's arguments.
const CHECKS: &[&[&str]] = &[
    &["fmt", "--all", "--check"],
    &[
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ],
    &["xtask", "tidy"],
    &["xtask", "layouts", "--check"],
    &["xtask", "ebpf", "--check"],
];

/// Runs the checks.
pub(crate) fn run() -> Result<()> {
    let mut failed = Vec::new();
    for check in CHECKS {
        let start = Instant::now();
        let result = process::run(
            Command::new(workspace::cargo())
                .current_dir(workspace::root())
                .args(*check),
        );
        println!("({} s)", start.elapsed().as_secs());
        if let Err(error) = result {
            println!("{error:#}");
            failed.push(check.join(" "));
        }
    }
    if !failed.is_empty() {
        bail!("failed: cargo {}", failed.join(", cargo "));
    }
    Ok(())
}
