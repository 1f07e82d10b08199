//! The interpreters that the tests run on: where they are, how they were built, how a script gets to them.
//!
//! pyenv-style builds have one copy of each allocator function; the distributions' builds (PGO + LTO) have inlined
//! copies at hundreds of places. Exact figures are asked of all.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::skip;

/// An interpreter of the test matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    /// `~/.pyenv/versions/3.MINOR.*`: a shared library with symbols.
    Pyenv(u8),
    /// Debian's `/usr/bin/python3.11`: static, PGO + LTO, stripped.
    Debian311,
    /// Debian sid's `python3.MINOR` in a root file system of its own: static, PGO + LTO, stripped.
    Sid(u8),
    /// One of those that `cargo xtask pythons` builds, for the slow tier.
    Built(Built),
}

/// How an interpreter of the slow tier was built, all of them 3.13.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Built {
    /// By clang, static, PGO + LTO, stripped.
    Clang,
    /// By gcc, a shared library, PGO + LTO, stripped.
    Shared,
    /// By gcc, static, without the GIL, stripped.
    FreeThreaded,
}

impl Built {
    /// Its directory and the name of its program.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Clang => ("clang", "python3.13"),
            Self::Shared => ("shared", "python3.13"),
            Self::FreeThreaded => ("free-threaded", "python3.13t"),
        }
    }
}

/// An interpreter that is there.
#[derive(Clone, Debug)]
pub(crate) struct Interpreter {
    pub(crate) id: Id,
    /// Root file system that it sees.
    pub(crate) root: PathBuf,
    /// Its path in that root.
    pub(crate) program: PathBuf,
}

/// A script where an interpreter can read it; a copy goes when this is dropped.
pub(crate) struct Script {
    /// Path as the interpreter sees it.
    pub(crate) path: PathBuf,
    _copies: Option<TempDir>,
}

impl Script {
    /// A file that the interpreter can read where it is.
    pub(crate) fn in_place(path: PathBuf) -> Self {
        Self { path, _copies: None }
    }
}

impl Id {
    /// The allocator that it uses if nothing else is asked for.
    pub(crate) fn allocator(self) -> &'static str {
        match self {
            Self::Built(Built::FreeThreaded) => "mimalloc",
            _ => "pymalloc",
        }
    }

    /// The second number of its version.
    pub(crate) fn minor(self) -> u8 {
        match self {
            Self::Pyenv(minor) | Self::Sid(minor) => minor,
            Self::Debian311 => 11,
            Self::Built(_) => 13,
        }
    }
}

/// The interpreter, or a note that it is missing (a failure unless that is allowed).
#[track_caller]
pub(crate) fn find(id: Id) -> Option<Interpreter> {
    if !skip::have_root() {
        return None;
    }
    let found = match id {
        Id::Pyenv(minor) => pyenv(minor).map(|program| (PathBuf::from("/"), program)),
        Id::Debian311 => Some((PathBuf::from("/"), PathBuf::from("/usr/bin/python3.11"))),
        Id::Sid(minor) => Some((
            cache().join("sid"),
            PathBuf::from(format!("/usr/bin/python3.{minor}")),
        )),
        Id::Built(built) => {
            let (name, program) = built.names();
            let directory = cache().join("pythons").join(name);
            Some((PathBuf::from("/"), directory.join("bin").join(program)))
        }
    };
    let found = found
        .map(|(root, program)| Interpreter { id, root, program })
        .filter(|found| found.host_path().is_file());
    if found.is_none() {
        match id {
            Id::Built(_) => skip::missing_from(&format!("the interpreter {id:?}"), "cargo xtask pythons"),
            _ => skip::missing(&format!("the interpreter {id:?}")),
        }
    }
    found
}

/// `$PYENV_ROOT/versions/3.MINOR.*/bin/python3`, the newest.
fn pyenv(minor: u8) -> Option<PathBuf> {
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv")))?;
    let prefix = format!("3.{minor}.");
    let patch = |version: &Path| -> Option<u32> {
        version.file_name()?.to_str()?.strip_prefix(&prefix)?.parse().ok()
    };
    fs::read_dir(root.join("versions"))
        .ok()?
        .filter_map(|version| Some(version.ok()?.path()))
        .filter(|version| patch(version).is_some())
        .max_by_key(|version| patch(version))
        .map(|version| version.join("bin/python3"))
}

/// Where `cargo xtask setup` and `cargo xtask pythons` put what they make.
fn cache() -> PathBuf {
    env::var_os("PYROBE_CACHE").map_or_else(|| PathBuf::from("/var/cache/pyrobe"), PathBuf::from)
}

/// The directory of workloads.
pub(crate) fn workloads() -> PathBuf {
    let workloads = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/workloads");
    workloads
        .canonicalize()
        .expect("the workloads are in the checkout")
}

impl Interpreter {
    /// Its path for a process in the test's own root.
    pub(crate) fn host_path(&self) -> PathBuf {
        self.root
            .join(self.program.strip_prefix("/").unwrap_or(&self.program))
    }

    /// The command line that starts it, from the test's own root.
    pub(crate) fn command_line(&self) -> Vec<OsString> {
        if self.root == Path::new("/") {
            return vec![self.program.clone().into()];
        }
        vec![
            "chroot".into(),
            self.root.clone().into(),
            self.program.clone().into(),
        ]
    }

    /// A command that starts it with nothing set by the user's environment.
    pub(crate) fn command(&self) -> Command {
        let line = self.command_line();
        let mut command = Command::new(line.first().expect("a command line names a program"));
        command.args(line.iter().skip(1));
        set_environment(&mut command);
        command
    }

    /// Puts a workload where the interpreter can read it.
    pub(crate) fn script(&self, name: &str) -> Script {
        let workloads = workloads();
        if self.root == Path::new("/") {
            return Script::in_place(workloads.join(name));
        }
        let copies = tempfile::Builder::new()
            .prefix("pyrobe-test-")
            .tempdir_in(self.root.join("tmp"))
            .expect("a directory can be made in the interpreter's root");
        for file in [name, "_expected.py", "_held.py"] {
            fs::copy(workloads.join(file), copies.path().join(file)).expect("a workload can be copied");
        }
        let inside = copies
            .path()
            .strip_prefix(&self.root)
            .expect("the copies are in that root");
        Script {
            path: Path::new("/").join(inside).join(name),
            _copies: Some(copies),
        }
    }
}

/// The same hashes in every run, no cached bytecode, nothing of the user's.
pub(crate) fn set_environment(command: &mut Command) {
    command
        .env("PYTHONHASHSEED", "0")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONNOUSERSITE", "1")
        .env_remove("PYTHONMALLOC")
        .env_remove("PYTHONPATH")
        .env_remove("PYTHONHOME");
}
