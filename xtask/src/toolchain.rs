//! The compiler for the eBPF target: Debian's packages where they are installed, a rustup nightly elsewhere.
//!
//! Apart from `ebpf`, because `setup` asks the same question: is a toolchain there, and which versions make
//! the object's bytes?

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace};

/// Debian's compiler (package `rustc-web`) with the library source in its own sysroot (`rust-web-src`).
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Where Debian's `llvm-22-dev` is; `bpf-linker` links against it.
pub(crate) const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";

/// A compiler, the standard library's source and a linker that together make eBPF objects.
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) rustc: PathBuf,
    /// Its sysroot.
    pub(crate) sysroot: PathBuf,
    /// `bpf-linker`.
    pub(crate) linker: PathBuf,
    /// `llvm-objcopy`, or Rust's copy of it.
    pub(crate) objcopy: PathBuf,
    /// What decides the object's bytes.
    pub(crate) versions: Versions,
}

/// The versions that decide the object's bytes; its text is kept beside the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Versions(String);

impl Versions {
    /// As read back from the file beside the object.
    pub(crate) fn from_text(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Finds a complete toolchain, or says what is missing and how to get it.
pub(crate) fn find() -> Result<Toolchain> {
    let Some((rustc, sysroot)) = find_compiler()? else {
        bail!(
            "no Rust compiler with the library source for an eBPF target\n\
             hint: on Debian run `cargo xtask setup`; elsewhere \
             `rustup toolchain install nightly --component rust-src`"
        );
    };
    let Some(linker) = workspace::find_program("bpf-linker") else {
        bail!("no bpf-linker\nhint: on Debian run `cargo xtask setup`; elsewhere `cargo install bpf-linker`");
    };
    let Some(objcopy) = find_objcopy() else {
        bail!("no llvm-objcopy\nhint: on Debian run `cargo xtask setup`; elsewhere install LLVM's tools");
    };
    let versions = versions(&rustc, &linker)?;
    Ok(Toolchain {
        rustc,
        sysroot,
        linker,
        objcopy,
        versions,
    })
}

/// Debian's compiler if its library source is there, or else a nightly that has its own.
fn find_compiler() -> Result<Option<(PathBuf, PathBuf)>> {
    let debian = Path::new(DEBIAN_RUSTC);
    if debian.is_file() {
        let sysroot = sysroot(debian)?;
        if has_library_source(&sysroot) {
            return Ok(Some((debian.to_path_buf(), sysroot)));
        }
    }
    let nightly = Command::new("rustup")
        .args(["which", "--toolchain", "nightly", "rustc"])
        .output();
    match nightly {
        Ok(found) if found.status.success() => {
            let rustc = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
            let sysroot = sysroot(&rustc)?;
            Ok(has_library_source(&sysroot).then_some((rustc, sysroot)))
        }
        _ => Ok(None),
    }
}

fn find_objcopy() -> Option<PathBuf> {
    let debian = Path::new(DEBIAN_LLVM).join("bin/llvm-objcopy");
    if debian.is_file() {
        return Some(debian);
    }
    ["llvm-objcopy", "rust-objcopy"]
        .into_iter()
        .find_map(workspace::find_program)
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    process::output(Command::new(rustc).args(["--print", "sysroot"])).map(PathBuf::from)
}

fn has_library_source(sysroot: &Path) -> bool {
    library_source(sysroot).join("Cargo.lock").is_file()
}

/// Where `-Zbuild-std` looks for the source of the standard library.
pub(crate) fn library_source(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

fn versions(rustc: &Path, linker: &Path) -> Result<Versions> {
    let verbose = process::output(Command::new(rustc).arg("-vV"))?;
    let field = |name: &str| -> Result<&str> {
        verbose
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("`{} -vV` does not say its {name:?}", rustc.display()))
    };
    let linker_version = process::output(Command::new(linker).arg("--version"))?;
    Ok(Versions(format!(
        "rustc {} {}\nrustc's LLVM {}\n{linker_version}\nbpf-linker's LLVM {}\n",
        field("release: ")?,
        field("commit-hash: ")?,
        field("LLVM version: ")?,
        linker_llvm(linker)
    )))
}

/// The LLVM that `bpf-linker` runs: the shared one it was linked with, unless it brought its own.
fn linker_llvm(linker: &Path) -> String {
    let libraries = Command::new("ldd").arg(linker).output();
    let shared = libraries.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("libLLVM"));
    if !shared {
        return "its own".to_owned();
    }
    let config = Path::new(DEBIAN_LLVM).join("bin/llvm-config");
    process::output(Command::new(config).arg("--version")).unwrap_or_else(|_| "unknown".to_owned())
}
