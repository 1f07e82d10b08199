//! `cargo xtask tidy`: the rules of the source that no compiler knows.
//!
//! Each rule is a pure function of a file's path and text, so that it is tested on made-up files.

mod code;
mod rules;

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{process, workspace};
use rules::{Finding, Level};

/// Checks every file that is, or would be, in the repository.
pub(crate) fn run() -> Result<()> {
    let machine = rules::Machine::here(&workspace::root(), &workspace::home());
    let mut failures = 0_usize;
    let files = files()?;
    for file in &files {
        // What is no text has no lines to check.
        let Ok(text) = fs::read_to_string(workspace::root().join(file)) else {
            continue;
        };
        for finding in rules::check(&file.to_string_lossy(), &text, &machine) {
            println!("{}", show(&file.to_string_lossy(), &finding));
            failures += usize::from(finding.level == Level::Failure);
        }
    }
    if failures > 0 {
        bail!("{failures} places break the rules");
    }
    println!("tidy: {} files", files.len());
    Ok(())
}

fn show(file: &str, finding: &Finding) -> String {
    let level = match finding.level {
        Level::Warning => "warning",
        Level::Failure => "error",
    };
    format!("{file}:{}: {level}: {}", finding.line, finding.text)
}

/// Tracked files and new ones that are not ignored.
fn files() -> Result<Vec<PathBuf>> {
    let list = process::output(Command::new("git").current_dir(workspace::root()).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let files = list
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from);
    // A file that was removed but not yet committed is still listed.
    Ok(files
        .filter(|file| workspace::root().join(file).is_file())
        .collect())
}
