//! Where the interpreters are that this module's tests run, if they are installed.
//!
//! Tests skip what is missing and say so; the end-to-end tests are those that fail without an interpreter.

#![expect(
    clippy::unwrap_used,
    reason = "a test says why it skips, and fails by panicking"
)]

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::units::Pid;

/// Copies a program, by another process: were the copy open for writing in this one, a child that another test
/// starts could hold it open, and to run it would fail with `ETXTBSY`.
pub(super) fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

/// A process of `cat`, past its exec; it ends when this is dropped.
pub(super) struct Cat(Child);

impl Cat {
    /// Starts it and waits for its answer: a child that was only just started may have no memory yet.
    pub(super) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self(child)
    }

    pub(super) fn pid(&self) -> Pid {
        Pid(self.0.id())
    }
}

impl Drop for Cat {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// The root of a version manager that has built shared Pythons, as `pyenv` does.
pub(super) fn pyenv_root() -> Option<PathBuf> {
    let root = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".pyenv")))?;
    present(root.join("versions")).map(|_| root)
}

/// Directory of one of its versions.
pub(super) fn pyenv_version(version: &str) -> Option<PathBuf> {
    present(pyenv_root()?.join("versions").join(version))
}

/// A distribution's static Python.
pub(super) fn static_python() -> Option<PathBuf> {
    present("/usr/bin/python3.11".into())
}

/// A Python below another root, and that root; none without the right to go there.
pub(super) fn python_below_another_root() -> Option<(PathBuf, PathBuf)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can change the root");
        return None;
    }
    let root = present("/var/cache/pyrobe/sid".into())?;
    let names = ["3.13", "3.14", "3.15"].map(|version| root.join(format!("usr/bin/python{version}")));
    Some((names.into_iter().find(|path| path.exists())?, root))
}

fn present(path: PathBuf) -> Option<PathBuf> {
    let exists = path.exists();
    if !exists {
        eprintln!("skipped: there is no {}", path.display());
    }
    exists.then_some(path)
}
