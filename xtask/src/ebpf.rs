//! `cargo xtask ebpf [--check]`: builds the eBPF object from source.
//!
//! The object is committed, so that a plain `cargo build` needs a stable compiler only. The build is the
//! same in every directory: no path of the machine reaches the object. `--check` rebuilds and compares.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process,
    toolchain::{self, Toolchain, Versions},
    workspace,
};

/// eBPF has one target per byte order; x86-64 is little endian.
const TARGET: &str = "bpfel-unknown-none";
/// The profile of the workspace manifest that is made for the object.
const PROFILE: &str = "ebpf";
const PACKAGE: &str = "tracer-ebpf";
const BINARY: &str = "pyrobe-ebpf";
/// CPU whose kernel structures and registers the programs read.
const ARCHITECTURE: &str = "x86_64";
/// Instruction set version: 32-bit jumps and atomics with a result; kernels from 5.12 on have it, and 5.15
/// is the lowest that pyrobe runs on.
const BPF_CPU: &str = "v3";
/// What separates the flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rebuild and compare with the committed object; change nothing
    #[arg(long)]
    check: bool,
}

/// Builds the object and installs it, or compares it with the one that is committed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let toolchain = toolchain::find()?;
    let built = build(&toolchain)?;
    let built = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    if args.check {
        check(&built, &toolchain.versions)
    } else {
        install(&built, &toolchain.versions)
    }
}

/// The committed object.
pub(crate) fn object() -> PathBuf {
    object_dir().join(format!("pyrobe-{ARCHITECTURE}.o"))
}

fn object_dir() -> PathBuf {
    workspace::root().join("tracer-ebpf/object")
}

/// The versions that made the committed object.
fn versions_file() -> PathBuf {
    object_dir().join("TOOLCHAIN")
}

fn install(built: &[u8], versions: &Versions) -> Result<()> {
    fs::create_dir_all(object_dir()).with_context(|| format!("cannot make {}", object_dir().display()))?;
    for (file, content) in [
        (object(), built),
        (versions_file(), versions.to_string().as_bytes()),
    ] {
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("{}: {} bytes", object().display(), built.len());
    Ok(())
}

fn check(built: &[u8], versions: &Versions) -> Result<()> {
    let read = |file: PathBuf| {
        fs::read(&file).with_context(|| format!("cannot read {}: run `cargo xtask ebpf`", file.display()))
    };
    let committed = read(object())?;
    let recorded = Versions::from_text(&String::from_utf8_lossy(&read(versions_file())?));
    if committed == built {
        println!(
            "the committed object is what the source gives ({} bytes)",
            built.len()
        );
        return Ok(());
    }
    if recorded == *versions {
        bail!(
            "the committed object ({} bytes) is not what the source gives ({} bytes) with the same toolchain\n\
             hint: run `cargo xtask ebpf` and commit tracer-ebpf/object",
            committed.len(),
            built.len()
        );
    }
    bail!(
        "the committed object was made by another toolchain, so the bytes cannot be compared\n\
         it was made by:\n{recorded}here is:\n{versions}\
         hint: run `cargo xtask ebpf`, then `cargo xtask test`: another toolchain must give an object that loads \
         and passes the tests"
    );
}

/// Builds the object; returns where it is.
fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    let target_dir = workspace::target_dir().join("ebpf");
    let mut command = Command::new(workspace::cargo());
    command
        .current_dir(workspace::root())
        .args(["build", "--locked", "--profile", PROFILE, "--package", PACKAGE])
        .args([
            "--bin",
            BINARY,
            "--target",
            TARGET,
            "-Zbuild-std=core",
            "--target-dir",
        ])
        .arg(&target_dir)
        .env("RUSTC", &toolchain.rustc)
        // Debian has no nightly; this lets its compiler take the unstable options that the target needs.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(toolchain)?)
        // What a user set for the host's builds would change the bytes.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_INCREMENTAL")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    process::run(&mut command)?;
    let linked = target_dir.join(TARGET).join(PROFILE).join(BINARY);
    let object = linked.with_extension("o");
    // BTF has what the verifier shows; DWARF would be nine tenths of the object.
    process::run(
        Command::new(&toolchain.objcopy)
            .arg("--strip-debug")
            .args([&linked, &object]),
    )?;
    Ok(object)
}

fn rust_flags(toolchain: &Toolchain) -> Result<OsString> {
    let mut flags = OsString::from(format!("--cfg=bpf_target_arch=\"{ARCHITECTURE}\""));
    // The debug information becomes BTF: function names and lines in the verifier's messages.
    for flag in [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Ctarget-cpu={BPF_CPU}"),
    ] {
        flags.push(SEPARATOR);
        flags.push(flag);
    }
    for (from, to) in remapped_paths(toolchain)? {
        flags.push(SEPARATOR);
        flags.push("--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    Ok(flags)
}

/// Directories whose names must not reach the object, and what stands for them.
fn remapped_paths(toolchain: &Toolchain) -> Result<Vec<(PathBuf, &'static str)>> {
    let library = toolchain::library_source(&toolchain.sysroot);
    let mut paths = vec![
        (workspace::root(), "pyrobe"),
        // The compiler names the library by where it really is if that is a link (Debian).
        (canonical(&library)?, "library"),
        (library, "library"),
    ];
    let sources = workspace::cargo_home().join("registry/src");
    for registry in fs::read_dir(&sources).with_context(|| format!("cannot list {}", sources.display()))? {
        let registry = registry.with_context(|| format!("cannot list {}", sources.display()))?;
        paths.push((registry.path(), "registry"));
    }
    Ok(paths)
}

fn canonical(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).with_context(|| format!("cannot resolve {}", path.display()))
}
