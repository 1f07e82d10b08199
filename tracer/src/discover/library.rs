//! The libpython that a dynamically linked program will load, found as the dynamic linker will.
//!
//! Only what is needed to attach before a process starts: a wrong guess costs an attach that is never hit, so
//! `ld.so.cache`, hardware capabilities and preloading are left out. Rules: ld.so(8). The ELF file is hostile:
//! all reads are bounded, and nothing is loaded or run.

use std::{
    collections::{HashSet, VecDeque},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use object::{
    Endianness,
    elf::{DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_STRTAB, FileHeader64, PT_LOAD},
    read::{
        ReadCache, ReadRef,
        elf::{Dyn, FileHeader, ProgramHeader},
    },
};

use super::process::read_bounded;

/// Most libraries looked at for one program.
const MAX_LIBRARIES: usize = 128;
/// Most directories from the linker's configuration.
const MAX_DIRECTORIES: usize = 256;
/// Deepest nesting of configuration files.
const MAX_INCLUDES: u32 = 4;

/// Directories of the dynamic linker that do not depend on the program.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// `LD_LIBRARY_PATH`, searched before a program's own run path.
    pub first: Vec<PathBuf>,
    /// The linker's configuration and defaults, searched last.
    pub last: Vec<PathBuf>,
}

impl Search {
    /// As on this host, with this `LD_LIBRARY_PATH`.
    pub fn host(library_path: Option<&OsStr>) -> Self {
        let first = library_path
            .map(|path| split(path.as_bytes(), b":;").collect())
            .unwrap_or_default();
        let mut last = Vec::new();
        configured(Path::new("/etc/ld.so.conf"), MAX_INCLUDES, &mut last);
        for default in ["/lib64", "/usr/lib64", "/lib", "/usr/lib"] {
            last.push(default.into());
        }
        Self { first, last }
    }
}

/// The libpython that the program or library at `path` will load, directly or through another library; `None`
/// if there is none. An error if it cannot be read or is no 64-bit ELF file.
pub fn libpython_of(path: &Path, search: &Search) -> io::Result<Option<PathBuf>> {
    let mut queue = VecDeque::from([path.to_owned()]);
    let mut seen = HashSet::new();
    let mut is_first = true;
    while let Some(file) = queue.pop_front() {
        let links = match links(&file) {
            Ok(links) => links,
            Err(error) if is_first => return Err(error),
            Err(_) => continue,
        };
        is_first = false;
        for needed in &links.needed {
            if seen.len() >= MAX_LIBRARIES || !seen.insert(needed.clone()) {
                continue;
            }
            let Some(found) = find(needed, &file, &links, search) else {
                continue;
            };
            if needed.as_bytes().starts_with(b"libpython") {
                return Ok(Some(found));
            }
            queue.push_back(found);
        }
    }
    Ok(None)
}

/// What a file wants to be linked with.
#[derive(Debug, Default, PartialEq, Eq)]
struct Links {
    needed: Vec<OsString>,
    /// `DT_RPATH`, searched first of all, and not at all if there is a run path.
    rpath: Option<OsString>,
    runpath: Option<OsString>,
}

fn find(needed: &OsStr, from: &Path, links: &Links, search: &Search) -> Option<PathBuf> {
    if needed.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(needed)).filter(|path| path.is_file());
    }
    let own = |path: Option<&OsString>| -> Vec<PathBuf> {
        path.map(|path| {
            split(path.as_bytes(), b":")
                .map(|dir| expand(&dir, from))
                .collect()
        })
        .unwrap_or_default()
    };
    let before = match links.runpath {
        Some(_) => Vec::new(),
        None => own(links.rpath.as_ref()),
    };
    let after = own(links.runpath.as_ref());
    before
        .iter()
        .chain(&search.first)
        .chain(&after)
        .chain(&search.last)
        .map(|dir| dir.join(needed))
        .find(|path| path.is_file())
}

/// Puts the directory of `from`, links resolved, in the place of `$ORIGIN`. The other variables, `$LIB` and
/// `$PLATFORM`, are not used for Python.
fn expand(dir: &Path, from: &Path) -> PathBuf {
    let bytes = dir.as_os_str().as_bytes();
    let rest = [b"$ORIGIN".as_slice(), b"${ORIGIN}"]
        .iter()
        .find_map(|variable| bytes.strip_prefix(*variable));
    match rest {
        Some(rest) => {
            let from = fs::canonicalize(from).unwrap_or_else(|_| from.to_owned());
            let mut expanded = from.parent().unwrap_or(Path::new("/")).as_os_str().to_owned();
            expanded.push(OsStr::from_bytes(rest));
            expanded.into()
        }
        None => dir.to_owned(),
    }
}

/// Parts of a list of directories; an empty part is the working directory.
fn split<'a>(list: &'a [u8], separators: &'a [u8]) -> impl Iterator<Item = PathBuf> + 'a {
    list.split(|byte| separators.contains(byte)).map(|part| {
        if part.is_empty() {
            ".".into()
        } else {
            PathBuf::from(OsStr::from_bytes(part))
        }
    })
}

/// Directories of `ld.so.conf` and what it includes. Patterns are the one kind in use: `DIR/*.conf`.
fn configured(file: &Path, depth: u32, into: &mut Vec<PathBuf>) {
    let text = read_bounded(file, 64 << 10).unwrap_or_default();
    for line in String::from_utf8_lossy(&text).lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(pattern) = line.strip_prefix("include") {
            if depth > 0 {
                for file in included(&file.with_file_name(pattern.trim())) {
                    configured(&file, depth - 1, into);
                }
            }
        } else if line.starts_with('/') && into.len() < MAX_DIRECTORIES {
            into.push(line.into());
        }
    }
}

fn included(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap_or_default().as_bytes();
    let Some(suffix) = name.strip_prefix(b"*") else {
        return vec![pattern.to_owned()];
    };
    let dir = pattern.parent().unwrap_or(Path::new("/"));
    let mut files: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.as_os_str().as_bytes().ends_with(suffix))
        .collect();
    files.sort();
    files
}

fn links(path: &Path) -> io::Result<Links> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let cache = ReadCache::new(file);
    parse_links(&cache).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn parse_links<'a>(data: impl ReadRef<'a>) -> object::Result<Links> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, data)?;
    let mut links = Links::default();
    let Some(entries) = segments
        .iter()
        .find_map(|segment| segment.dynamic(endian, data).transpose())
        .transpose()?
    else {
        return Ok(links);
    };
    // The string table's place is given as an address; the file offset follows from the segment it is in.
    let entries = || entries.iter().take_while(|entry| entry.d_tag(endian) != DT_NULL);
    let strings = entries()
        .find(|entry| entry.d_tag(endian) == DT_STRTAB)
        .and_then(|entry| {
            let address = entry.d_val(endian);
            segments.iter().find_map(|segment| {
                let into = address.checked_sub(segment.p_vaddr(endian))?;
                let is_inside = segment.p_type(endian) == PT_LOAD && into < segment.p_filesz(endian);
                is_inside.then(|| segment.p_offset(endian).checked_add(into))?
            })
        });
    let string = |offset: u64| -> Option<OsString> {
        let start = strings?.checked_add(offset)?;
        let bytes = data.read_bytes_at_until(start..data.len().ok()?, 0).ok()?;
        Some(OsString::from_vec(bytes.to_vec()))
    };
    for entry in entries().take(10_000) {
        let value = entry.d_val(endian);
        match entry.d_tag(endian) {
            DT_NEEDED if links.needed.len() < MAX_LIBRARIES => links.needed.extend(string(value)),
            DT_RPATH => links.rpath = string(value),
            DT_RUNPATH => links.runpath = string(value),
            _ => {}
        }
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;
    use crate::discover::test_support::pyenv_version;

    #[test]
    fn a_shared_build_names_its_library_by_its_run_path() {
        for (version, short) in [("3.9.18", "3.9"), ("3.12.1", "3.12"), ("3.13.0", "3.13")] {
            let Some(root) = pyenv_version(version) else {
                continue;
            };
            let program = root.join(format!("bin/python{short}"));
            let library = root.join(format!("lib/libpython{short}.so.1.0"));
            assert_eq!(libpython_of(&program, &Search::default()).unwrap(), Some(library));
        }
    }

    #[test]
    fn a_program_without_python_and_a_file_that_is_no_program() {
        let search = Search::host(None);
        assert_eq!(libpython_of(Path::new("/bin/cat"), &search).unwrap(), None);
        assert!(libpython_of(Path::new("/etc/passwd"), &search).is_err());
        assert!(libpython_of(Path::new("/nowhere"), &search).is_err());
        assert!(libpython_of(Path::new("/dev/null"), &search).is_err());
    }

    #[test]
    fn directories_are_searched_in_the_order_of_the_linker() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("libpython3.99.so"), name).unwrap();
            path
        };
        let (rpath, first, runpath, last) = (place("rpath"), place("first"), place("runpath"), place("last"));
        let from = dir.path().join("bin");
        let search = Search {
            first: vec![first.clone()],
            last: vec![last.clone()],
        };
        let check = |links: &Links, expected: &Path| {
            let found = find(OsStr::new("libpython3.99.so"), &from, links, &search).unwrap();
            assert_eq!(fs::canonicalize(found).unwrap().parent().unwrap(), expected);
        };
        let mut links = Links {
            rpath: Some("$ORIGIN/rpath".into()),
            ..Links::default()
        };
        check(&links, &rpath);
        links.runpath = Some("/nowhere:${ORIGIN}/runpath".into());
        check(&links, &first);
        fs::remove_dir_all(&first).unwrap();
        check(&links, &runpath);
        fs::remove_dir_all(&runpath).unwrap();
        check(&links, &last);
    }

    #[test]
    fn the_configuration_is_read_with_what_it_includes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let main = dir.path().join("main.conf");
        fs::write(&main, "/one # here\ninclude d/*.conf\nrelative\n").unwrap();
        fs::write(dir.path().join("d/b.conf"), "/three\ninclude ../main.conf\n").unwrap();
        fs::write(dir.path().join("d/a.conf"), "/two\n").unwrap();
        fs::write(dir.path().join("d/c.off"), "/never\n").unwrap();
        let mut found = Vec::new();
        configured(&main, 1, &mut found);
        assert_eq!(found, ["/one", "/two", "/three"].map(PathBuf::from));
        // It includes itself: bounded.
        configured(&main, MAX_INCLUDES, &mut found);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damaged_programs_never_panic(changes in prop::collection::vec((0usize..8192, any::<u8>()), 1..40), cut in 0usize..60_000) {
            let mut bytes = fs::read("/bin/cat").unwrap();
            for (at, value) in changes {
                *bytes.get_mut(at).unwrap() = value;
            }
            let _ = parse_links(bytes.as_slice());
            bytes.truncate(cut);
            let _ = parse_links(bytes.as_slice());
        }
    }
}
