//! Where things are in the checkout and on the machine.
//!
//! Everything is derived from the place of this package, so that the commands work from any directory.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Root of the checkout.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Where cargo puts what it builds (the product, not the eBPF object).
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cargo that runs this command.
pub(crate) fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Cargo's home: registry and installed programs.
pub(crate) fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}

/// The user's home directory.
pub(crate) fn home() -> PathBuf {
    env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from)
}

/// The first file of that name in `PATH`, or among the programs that cargo installed.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([cargo_home().join("bin")])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Where pyenv keeps its interpreters.
pub(crate) fn pyenv_root() -> PathBuf {
    env::var_os("PYENV_ROOT").map_or_else(|| home().join(".pyenv"), PathBuf::from)
}

/// What is made once per machine: interpreters, kernels.
pub(crate) fn cache() -> PathBuf {
    env::var_os("PYROBE_CACHE").map_or_else(|| PathBuf::from("/var/cache/pyrobe"), PathBuf::from)
}

/// The root file system with Debian sid's interpreters, which `setup` makes and the tests use.
pub(crate) fn sid_root() -> PathBuf {
    cache().join("sid")
}
