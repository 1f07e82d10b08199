//! Python images that are likely to be run soon, so that their probes stand before the first process of them.
//!
//! A wrong guess costs one idle attach, a missing one the first milliseconds of the first process. Looked at:
//! the Pythons on PATH, version managers' trees beside their shims, and where distributions put them.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{
    command::read_start,
    identity::ImageKey,
    library::{Search, libpython_of},
};

/// Most images given; a host has a handful.
const MAX_IMAGES: usize = 128;
/// Most entries looked at in one directory.
const MAX_ENTRIES: usize = 20_000;
/// Directories of programs beside those on PATH.
const PROGRAMS: [&str; 2] = ["/usr/bin", "/usr/local/bin"];
/// Directories of libraries beside the linker's own.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/local/lib",
];

/// Files that hold a Python runtime by all appearances, each once, links resolved; those on `path` (the value
/// of `PATH`) first. Whether they do is for their examination to say.
pub fn well_known_images(path: Option<&OsStr>, search: &Search) -> Vec<PathBuf> {
    let mut found = Found::default();
    let on_path: Vec<PathBuf> = path
        .map(|path| std::env::split_paths(path).collect())
        .unwrap_or_default();
    for dir in on_path.iter().cloned().chain(PROGRAMS.map(PathBuf::from)) {
        found.programs_in(&dir, search);
    }
    for dir in search.last.iter().cloned().chain(LIBRARIES.map(PathBuf::from)) {
        found.libraries_in(&dir);
    }
    found.images
}

#[derive(Default)]
struct Found {
    images: Vec<PathBuf>,
    files: HashSet<ImageKey>,
    dirs: HashSet<PathBuf>,
}

impl Found {
    fn programs_in(&mut self, dir: &Path, search: &Search) {
        if !self.is_new_dir(dir) {
            return;
        }
        let mut has_shims = false;
        for path in entries(dir, is_python) {
            if !path.is_file() {
                continue;
            }
            if !read_start(&path).is_ok_and(|start| start.starts_with(b"\x7fELF")) {
                has_shims = true;
                continue;
            }
            // The runtime is in the one or in the other.
            match libpython_of(&path, search) {
                Ok(Some(library)) => self.add(&library),
                Ok(None) => self.add(&path),
                Err(_) => {}
            }
        }
        if has_shims && let Some(parent) = dir.parent() {
            self.versions_in(&parent.join("versions"), search);
        }
    }

    /// `versions/*/bin/python*` and `versions/*/lib/libpython3*`.
    fn versions_in(&mut self, dir: &Path, search: &Search) {
        for version in entries(dir, |_| true) {
            self.programs_in(&version.join("bin"), search);
            self.libraries_in(&version.join("lib"));
        }
    }

    fn libraries_in(&mut self, dir: &Path) {
        // Twice in the same one costs a little and adds nothing.
        for path in entries(dir, is_libpython) {
            if read_start(&path).is_ok_and(|start| start.starts_with(b"\x7fELF")) {
                self.add(&path);
            }
        }
    }

    fn is_new_dir(&mut self, dir: &Path) -> bool {
        dir.is_absolute()
            && self
                .dirs
                .insert(fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned()))
    }

    fn add(&mut self, path: &Path) {
        let Ok(path) = fs::canonicalize(path) else { return };
        let Ok(key) = File::open(&path).and_then(ImageKey::of) else {
            return;
        };
        if self.images.len() < MAX_IMAGES && self.files.insert(key) {
            self.images.push(path);
        }
    }
}

/// Paths in `dir` whose names are wanted, sorted.
fn entries(dir: &Path, wanted: impl Fn(&[u8]) -> bool) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .take(MAX_ENTRIES)
        .filter_map(|entry| {
            let entry = entry.ok()?;
            wanted(entry.file_name().as_bytes()).then(|| entry.path())
        })
        .collect();
    paths.sort();
    paths
}

/// `python`, `python3`, `python3.13`, `python3.13t`, `python3.13td`.
fn is_python(name: &[u8]) -> bool {
    let Some(version) = name.strip_prefix(b"python") else {
        return false;
    };
    let version = version.strip_suffix(b"d").unwrap_or(version);
    let version = version.strip_suffix(b"t").unwrap_or(version);
    match version {
        b"" => true,
        [b'3', rest @ ..] => rest.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.'),
        _ => false,
    }
}

/// `libpython3.13.so.1.0`, `libpython3.13t.so`; not the stub `libpython3.so`, which only leads to the other.
fn is_libpython(name: &[u8]) -> bool {
    let Some(version) = name.strip_prefix(b"libpython3.") else {
        return false;
    };
    version.first().is_some_and(u8::is_ascii_digit) && version.windows(3).any(|part| part == b".so")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::test_support::{pyenv_root, static_python};

    #[test]
    fn names_of_interpreters_and_libraries() {
        for name in [
            "python",
            "python3",
            "python3.9",
            "python3.13t",
            "python3.13d",
            "python3.14td",
        ] {
            assert!(is_python(name.as_bytes()), "{name}");
        }
        for name in [
            "python2.7",
            "python3-config",
            "python3.11-config",
            "pythonw",
            "ipython",
        ] {
            assert!(!is_python(name.as_bytes()), "{name}");
        }
        for name in ["libpython3.9.so", "libpython3.13t.so.1.0", "libpython3.11d.so.1"] {
            assert!(is_libpython(name.as_bytes()), "{name}");
        }
        for name in [
            "libpython3.so",
            "libpython3.11.a",
            "libpython2.7.so.1.0",
            "libpython3.x.so",
        ] {
            assert!(!is_libpython(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn the_interpreters_of_a_version_manager_are_found_beside_its_shims() {
        let Some(root) = pyenv_root() else { return };
        let images = well_known_images(Some(root.join("shims").as_os_str()), &Search::default());
        for version in [
            "3.9.18/lib/libpython3.9.so.1.0",
            "3.13.0/lib/libpython3.13.so.1.0",
        ] {
            let path = root.join("versions").join(version);
            assert!(images.contains(&path), "{} in {images:?}", path.display());
        }
        let mut unique = images.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), images.len());
    }

    #[test]
    fn a_static_interpreter_is_its_own_image() {
        let Some(python) = static_python() else { return };
        let images = well_known_images(None, &Search::host(None));
        assert!(images.contains(&python), "{images:?}");
    }
}
