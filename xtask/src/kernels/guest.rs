//! The root file system of the guests: a directory as cpio, unpacked into memory by the kernel itself.
//!
//! No drivers are needed, and any kernel can have it. Programs and scripts have the same paths as here, so that the
//! test programs, which were built with paths in them, find what they look for.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{process, setup, workspace};

/// The tests that the guests run: each kind of record and both ways of attaching, on two kinds of builds; of heap mode page faults,
/// and a group of sites that is taken off and put back. None in which readings of a heap have to come in time.
pub(super) const TESTS: &[&str] = &[
    "stacks::plain_calls::pyenv_313",
    "stacks::plain_calls::debian_311",
    "stacks::threads::pyenv_313",
    "stacks::recursion::pyenv_313",
    "stacks::exec_reuse::pyenv_313",
    "stacks::fork::pyenv_313",
    "truth::live_at_exit::pyenv_313",
    "attach::running_process::pyenv_313",
    "heap::memory_of_extensions::debian_311",
    "resident::given_back_and_moved::debian_311",
    "heap::the_governor_bounds_the_cost_and_says_so",
];

/// Programs of this machine that the guest's script and the tests use.
const PROGRAMS: &[&str] = &["/bin/sh", "/bin/mount", "/bin/sleep", "/bin/true"];

/// Parts of an interpreter's library that nothing here imports.
const LEFT_OUT: &[&str] = &[
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "pydoc_data",
];

/// Makes it anew; returns the file.
pub(super) fn build(directory: &Path) -> Result<PathBuf> {
    let (tests, pyrobe) = programs()?;
    let root = directory.join("root");
    setup::remove(&root)?;
    for place in ["proc", "sys", "dev", "tmp", "run", "root"] {
        make(&root.join(place))?;
    }
    for program in [tests.as_path(), pyrobe.as_path()] {
        add_program(&root, program)?;
        let copy = inside(&root, program);
        process::run(Command::new("strip").arg("--strip-unneeded").arg(copy))?;
    }
    for program in PROGRAMS {
        add_program(&root, Path::new(program))?;
    }
    let workspace = workspace::root();
    make(&inside(&root, &workspace.join("tracer")))?;
    add_tree(&root, &workspace.join("tests/workloads"))?;
    add_program(&root, Path::new("/usr/bin/python3.11"))?;
    add_tree(&root, Path::new("/usr/lib/python3.11"))?;
    let pyenv = pyenv()?;
    let python = pyenv.join("bin/python3");
    add_program(&root, &python)?;
    add_tree(&root, &pyenv.join("lib/python3.13"))?;
    let init = root.join("init");
    fs::write(&init, script(&tests, &pyrobe, &python)).context("cannot write the guest's script")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("cannot make it executable")?;
    let file = directory.join("root.cpio");
    process::run(
        Command::new("sh")
            .current_dir(&root)
            .arg("-c")
            .arg("find . | cpio --quiet --create --format=newc > \"$0\"")
            .arg(&file),
    )?;
    setup::remove(&root)?;
    Ok(file)
}

/// What the guest does. Lines that start with `@@ ` are for `verdict`.
fn script(tests: &Path, pyrobe: &Path, python: &Path) -> String {
    let (tests, pyrobe) = (tests.display(), pyrobe.display());
    let python = python.display();
    let pyenv = workspace::pyenv_root();
    let pyenv = pyenv.display();
    let names = TESTS.join(" ");
    format!(
        "#!/bin/sh
export PATH=/bin:/usr/bin HOME=/root TMPDIR=/tmp PYENV_ROOT={pyenv} PYROBE_ALLOW_MISSING=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo '@@ doctor'
{pyrobe} doctor --json
code=$?
echo \"@@ doctor ended with $code\"
{pyrobe} record -o /tmp/smoke.pyrobe -- /bin/true
echo \"@@ record ended with $?\"
if [ $code = 0 ]; then
    echo '@@ tests'
    {tests} --exact --test-threads=1 {names}
    echo \"@@ tests ended with $?\"
fi
echo '@@ end'
# What has not left the serial port by then is lost.
{python} -c 'import termios; termios.tcdrain(1)'
echo b > /proc/sysrq-trigger
"
    )
}

/// The test program and pyrobe, built.
fn programs() -> Result<(PathBuf, PathBuf)> {
    let messages = process::output(
        Command::new(workspace::cargo())
            .current_dir(workspace::root())
            .args(["test", "--package", "pyrobe", "--test", "e2e", "--no-run"])
            .arg("--message-format=json-render-diagnostics"),
    )?;
    let find = |kind: &str, name: &str| {
        messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| {
                message
                    .pointer("/target/kind/0")
                    .is_some_and(|found| found == kind)
                    && message.pointer("/target/name").is_some_and(|found| found == name)
            })
            .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
            .with_context(|| format!("cargo has not built {name}"))
    };
    Ok((find("test", "e2e")?, find("bin", "pyrobe")?))
}

/// The newest build of 3.13 that pyenv has.
fn pyenv() -> Result<PathBuf> {
    let versions = workspace::pyenv_root().join("versions");
    let mut found: Vec<PathBuf> = fs::read_dir(&versions)
        .with_context(|| format!("cannot read {}", versions.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("3.13."))
        })
        .collect();
    found.sort();
    match found.pop() {
        Some(path) => Ok(path),
        None => bail!("no Python 3.13 in {}", versions.display()),
    }
}

/// Copies a program and the libraries that the loader gives it.
fn add_program(root: &Path, program: &Path) -> Result<()> {
    add_file(root, program)?;
    let libraries = process::output(Command::new("ldd").arg(program)).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        add_file(root, Path::new(library))?;
    }
    Ok(())
}

/// Copies a file; a link becomes what it leads to.
fn add_file(root: &Path, file: &Path) -> Result<()> {
    let to = inside(root, file);
    make(to.parent().context("a file is in a directory")?)?;
    fs::copy(file, &to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", file.display(), to.display()))
}

/// Copies a directory with what it holds, but for [`LEFT_OUT`]; of modules in C, those that load what is not there are
/// not missed by anybody.
fn add_tree(root: &Path, tree: &Path) -> Result<()> {
    let entries = fs::read_dir(tree).with_context(|| format!("cannot read {}", tree.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot read {}", tree.display()))?
            .path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if LEFT_OUT.contains(&&*name) || name.starts_with("config-") {
            continue;
        }
        if path.is_dir() {
            add_tree(root, &path)?;
        } else if path.extension().is_some_and(|extension| extension == "so") {
            add_program(root, &path)?;
        } else if path.is_file() {
            add_file(root, &path)?;
        }
    }
    Ok(())
}

/// Where a path of this machine is in the guest's root.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}
