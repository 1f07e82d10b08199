//! What the benches share: a release build of pyrobe, an interpreter, numbers over rounds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// Builds pyrobe as users run it; returns the program.
pub(super) fn pyrobe() -> Result<PathBuf> {
    process::run(
        Command::new(workspace::cargo())
            .current_dir(workspace::root())
            .args(["build", "--release", "--locked", "--package", "pyrobe"]),
    )?;
    Ok(workspace::target_dir().join("release/pyrobe"))
}

/// A pyenv-style Python 3.12, whose allocator functions have one copy each.
pub(super) fn python() -> Result<PathBuf> {
    let versions = workspace::pyenv_root().join("versions");
    fs::read_dir(&versions)
        .with_context(|| format!("cannot list {}", versions.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("3.12."))
        })
        .map(|path| path.join("bin/python3"))
        .with_context(|| format!("no Python 3.12 in {}", versions.display()))
}

/// Debian's Python 3.11: optimised, with copies of the allocator inlined at hundreds of places.
pub(super) fn debian_python() -> PathBuf {
    PathBuf::from("/usr/bin/python3.11")
}

/// A directory for a bench's files, empty.
pub(super) fn scratch(name: &str) -> Result<PathBuf> {
    let directory = workspace::target_dir().join("bench").join(name);
    if directory.is_dir() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot empty {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// Prints what the figures were measured on.
pub(super) fn describe_machine(pyrobe: &Path, python: &Path) -> Result<()> {
    let kernel = process::output(Command::new("uname").arg("-r"))?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let version = process::output(Command::new(python).arg("--version"))?;
    let ours = process::output(Command::new(pyrobe).arg("--version"))?;
    println!("{ours}, {version}, Linux {kernel}, {cores} cores");
    Ok(())
}

/// The middle value, the smallest and the largest.
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} ({:.0} to {:.0})", self.median, self.least, self.most)
    }
}

/// Sorts values into a spread; nothing of no values.
pub(super) fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    Some(Spread {
        median: *values.get(values.len() / 2)?,
        least: *values.first()?,
        most: *values.last()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_middle_and_ends() {
        assert!(spread(Vec::new()).is_none());
        let of = spread(vec![3.0, 1.0, 2.0]).map(|spread| (spread.median, spread.least, spread.most));
        assert_eq!(of, Some((2.0, 1.0, 3.0)));
    }
}
