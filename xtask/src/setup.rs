//! `cargo xtask setup`: installs on Debian what CI and the end-to-end tests need.
//!
//! Idempotent, and quiet when all is there. It takes what it installs from where the machine takes its
//! packages: the mirror is read from apt's sources, no address is written here.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{apt_sources, process, toolchain, workspace};

/// Debian packages, and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("rustc-web", "compiler of the eBPF object"),
    ("rust-web-src", "library source of the eBPF object"),
    ("llvm-22-dev", "bpf-linker"),
    ("libpolly-22-dev", "bpf-linker"),
    ("zlib1g-dev", "bpf-linker"),
    ("libzstd-dev", "bpf-linker"),
    ("libxml2-dev", "bpf-linker"),
    ("gcc", "programs of the tests, layouts"),
    ("libc6-dev", "programs of the tests, layouts"),
    ("python3.11", "an interpreter of the tests"),
    ("python3.11-dev", "headers for layouts"),
    ("debootstrap", "more interpreters"),
    ("util-linux", "setpriv and unshare in the tests"),
];

/// `bpf-linker` and its version; another one may give other bytes.
const BPF_LINKER: &str = "bpf-linker@0.13.0";

/// Packages of the root file system with newer interpreters: theirs, and the headers for `layouts`.
const SID_PACKAGES: &str = "python3.13,python3.14,python3.15,libpython3.14-dev,libpython3.15-dev";

/// Minor versions for which a pyenv-style build has to be there.
const PYENV_MINORS: std::ops::RangeInclusive<u32> = 9..=13;

/// Installs what is missing.
pub(crate) fn run() -> Result<()> {
    install(PACKAGES)?;
    install_linker()?;
    make_sid_root()?;
    check_pyenv()
}

/// Installs those packages that are missing; says what each is for.
pub(crate) fn install(packages: &[(&str, &str)]) -> Result<()> {
    let installed = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status} ${Package}\\n"])
        .output()
        .context("no dpkg-query: this command is for Debian\nhint: CONTRIBUTING.md lists what it installs")?;
    let installed: BTreeSet<String> = String::from_utf8_lossy(&installed.stdout)
        .lines()
        .filter_map(|line| line.strip_prefix("installed ").map(str::to_owned))
        .collect();
    let missing: Vec<&(&str, &str)> = packages
        .iter()
        .filter(|(package, _)| !installed.contains(*package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (package, purpose) in &missing {
        println!("missing: {package} ({purpose})");
    }
    process::run(apt_get().arg("update"))?;
    process::run(
        apt_get()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(missing.iter().map(|(package, _)| package)),
    )
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn install_linker() -> Result<()> {
    if workspace::find_program("bpf-linker").is_some() {
        return Ok(());
    }
    process::run(
        Command::new(workspace::cargo())
            .args(["install", "--locked", BPF_LINKER, "--no-default-features"])
            .args(["--features", "llvm-22"])
            .env("LLVM_PREFIX", toolchain::DEBIAN_LLVM)
            // An installed program belongs to no workspace's target directory.
            .env_remove("CARGO_TARGET_DIR"),
    )
}

/// Makes the root file system anew if it is not the one that this source asks for.
fn make_sid_root() -> Result<()> {
    let root = workspace::sid_root();
    let stamp = root.join("etc/pyrobe-packages");
    if fs::read_to_string(&stamp).is_ok_and(|packages| packages == SID_PACKAGES) {
        return Ok(());
    }
    let parent = root.parent().context("the cache is a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let new = parent.join("sid.new");
    remove(&new)?;
    println!("making {} (one or two minutes)", root.display());
    let mirror = apt_sources::debian_mirror()?;
    process::run_quietly(
        Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={SID_PACKAGES}"), "sid"])
            .arg(&new)
            .arg(mirror),
    )?;
    // Packages that were unpacked are not needed again.
    remove(&new.join("var/cache/apt/archives"))?;
    fs::write(new.join("etc/pyrobe-packages"), SID_PACKAGES)
        .with_context(|| format!("cannot write {}", stamp.display()))?;
    remove(&root)?;
    fs::rename(&new, &root).with_context(|| format!("cannot rename {}", new.display()))
}

/// Removes a directory that may not be there.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The pyenv-style builds are the machine's: they take longer to build than all tests take to run.
fn check_pyenv() -> Result<()> {
    let versions = workspace::pyenv_root().join("versions");
    let there: Vec<PathBuf> = fs::read_dir(&versions)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    let missing: Vec<String> = PYENV_MINORS
        .map(|minor| format!("3.{minor}"))
        .filter(|version| {
            let prefix = format!("{version}.");
            !there.iter().any(|path| {
                let name = path
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default();
                name.starts_with(&prefix) && path.join("bin/python3").is_file()
            })
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "no pyenv-style build of Python {} in {}",
        missing.join(", "),
        versions.display()
    );
    if std::env::var_os("PYROBE_ALLOW_MISSING").is_some() {
        println!("{message}: what needs them will be skipped");
        return Ok(());
    }
    bail!(
        "{message}\nhint: `PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install VERSION`, or set \
         PYROBE_ALLOW_MISSING=1 to skip what needs them"
    );
}
