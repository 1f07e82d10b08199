//! The peers and numpy, in a virtual environment of Debian's Python in the cache, made once.
//!
//! A peer that cannot be installed is left out, and the table says why.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::super::target::debian_python;
use crate::{process, setup, workspace};

/// Debian's packages, and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("python3.11", "the interpreter of the programs"),
    ("python3.11-venv", "an environment for the peers"),
];

/// What is installed by `pip`, and the module that shows whether it is there.
const MODULES: [(&str, &str); 4] = [
    ("numpy", "numpy"),
    ("memray", "memray"),
    ("scalene", "scalene"),
    ("filprofiler", "filprofiler"),
];

/// Installs what is missing; returns the environment's interpreter.
pub(super) fn make() -> Result<PathBuf> {
    setup::install(PACKAGES)?;
    let root = workspace::cache().join("peers");
    let python = root.join("bin/python");
    if !python.is_file() {
        process::run(Command::new(debian_python()).args(["-m", "venv"]).arg(&root))?;
    }
    for (package, module) in MODULES {
        let found =
            format!("import importlib.util; raise SystemExit(not importlib.util.find_spec('{module}'))");
        if process::output(Command::new(&python).args(["-c", &found])).is_ok() {
            continue;
        }
        let installed = process::run(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .arg(package),
        );
        if let Err(error) = installed {
            println!("{package} cannot be installed: {error}");
        }
    }
    Ok(python)
}

/// Two copies of its executable in the same environment: files of their own, so that probes in one are not in the other.
pub(super) fn copies(python: &Path) -> Result<[PathBuf; 2]> {
    let copies = ["python-a", "python-b"].map(|name| python.with_file_name(name));
    for copy in &copies {
        fs::copy(python, copy).with_context(|| format!("cannot write {}", copy.display()))?;
    }
    Ok(copies)
}

/// The versions of all of them, for the head of the table.
pub(super) fn versions(python: &Path) -> Result<String> {
    let names = MODULES.map(|(package, _)| format!("'{package}'")).join(", ");
    let script = format!(
        "import importlib.metadata as m\nfor name in ({names}):\n try: print(name, m.version(name))\n except m.PackageNotFoundError: print(name, 'missing')"
    );
    Ok(process::output(Command::new(python).args(["-c", &script]))?.replace('\n', ", "))
}
