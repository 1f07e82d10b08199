//! Packages and sources of another Debian release than this machine's, without touching the machine's apt.
//!
//! Each release gets lists and sources of its own below the cache; the mirror is the machine's own and
//! signatures are checked as always. Nothing is installed from here, only downloaded.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{apt_sources, process, workspace};

/// Debian's keys, where the package `debian-archive-keyring` of every Debian has them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One release of Debian's main archive.
pub(crate) struct Archive {
    directory: PathBuf,
}

impl Archive {
    /// Reads the lists of `suite` anew.
    pub(crate) fn open(suite: &str) -> Result<Self> {
        let directory = workspace::cache().join("apt").join(suite);
        for part in ["lists/partial", "archives/partial"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let mirror = apt_sources::debian_mirror()?;
        let sources = ["deb", "deb-src"]
            .map(|kind| format!("{kind} [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .concat();
        let file = directory.join("sources.list");
        fs::write(&file, sources).with_context(|| format!("cannot write {}", file.display()))?;
        let archive = Self { directory };
        process::run(&mut archive.apt("apt-get", &["-qq", "update"]))?;
        Ok(archive)
    }

    /// Downloads a source package into `directory`; returns its description (`.dsc`).
    pub(crate) fn source(&self, package: &str, directory: &Path) -> Result<PathBuf> {
        process::run(
            self.apt("apt-get", &["-qq", "source", "--download-only", package])
                .current_dir(directory),
        )?;
        the_file(directory, "dsc")
    }

    /// Downloads a binary package into `directory`; returns the `.deb`.
    pub(crate) fn package(&self, package: &str, directory: &Path) -> Result<PathBuf> {
        process::run(
            self.apt("apt-get", &["-qq", "download", package])
                .current_dir(directory),
        )?;
        the_file(directory, "deb")
    }

    /// What `apt-cache ARGUMENTS` says about this release.
    pub(crate) fn query(&self, arguments: &[&str]) -> Result<String> {
        process::output(&mut self.apt("apt-cache", arguments))
    }

    fn apt(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, value: &OsStr| {
            let mut text = std::ffi::OsString::from(name);
            text.push("=");
            text.push(value);
            text
        };
        let place = |name: &str, below: &str| option(name, self.directory.join(below).as_os_str());
        for setting in [
            place("Dir::Etc::sourcelist", "sources.list"),
            place("Dir::State::lists", "lists"),
            place("Dir::Cache::archives", "archives"),
            option("Dir::Etc::sourceparts", OsStr::new("-")),
            option("Dir::Cache::pkgcache", OsStr::new("")),
            option("Dir::Cache::srcpkgcache", OsStr::new("")),
            // The sandbox user cannot write where we want the files.
            option("APT::Sandbox::User", OsStr::new("root")),
        ] {
            command.arg("-o").arg(setting);
        }
        command.args(arguments);
        command
    }
}

/// The only file with that extension.
fn the_file(directory: &Path, extension: &str) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("no .{extension} in {}", directory.display()))
}
