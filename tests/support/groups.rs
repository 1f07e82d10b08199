//! Control groups for tests: made below the v2 hierarchy, removed when they are dropped.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::skip;

/// A control group of this test.
pub(crate) struct Group {
    directory: PathBuf,
    /// Path from the hierarchy's root.
    pub(crate) path: String,
}

impl Group {
    /// A group of that name at the hierarchy's root; nothing where none can be made.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts can be listed");
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let directory = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(directory))
        });
        let Some(directory) = mount.map(|mount| mount.join(name)) else {
            skip::not_applicable("no control group hierarchy of version 2 here");
            return None;
        };
        if let Err(error) = fs::create_dir(&directory) {
            skip::not_applicable(&format!("no control group can be made here: {error}"));
            return None;
        }
        Some(Self {
            directory,
            path: format!("/{name}"),
        })
    }

    /// A group below this one.
    pub(crate) fn below(&self, name: &str) -> Self {
        let directory = self.directory.join(name);
        fs::create_dir(&directory).expect("a group can be made in one that was made");
        Self {
            directory,
            path: format!("{}/{name}", self.path),
        }
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command line that runs another one in this group, from its first instruction.
    pub(crate) fn run(&self, line: Vec<OsString>) -> Vec<OsString> {
        let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        let mut all: Vec<OsString> = ["sh", "-c", script].map(Into::into).to_vec();
        all.push(self.directory.clone().into());
        all.extend(line);
        all
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What is in use stays; the test has its verdict.
        let _ = fs::remove_dir(&self.directory);
    }
}
