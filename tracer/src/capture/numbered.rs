//! The files of a recording that is in several: `NAME.0001`, `NAME.0002` and so on, of which the newest are kept.
//!
//! A file never changes its name, so that one who reads or copies it is not surprised; the number tells the order.
//! Invariants: nothing but captures is ever removed; a file is removed only once there are newer ones.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{
    format::MAGIC,
    write::{Overwrite, WriteError},
};

/// Digits of a number, so that names sort; more if there are more files.
const DIGITS: usize = 4;

/// The files there are, and the number of the next one.
#[derive(Debug)]
pub struct Numbered {
    name: PathBuf,
    next: u32,
    keep: usize,
    files: VecDeque<PathBuf>,
}

impl Numbered {
    /// For at most `keep` files besides none; those of an earlier recording are an error or, on demand, removed.
    pub fn claim(name: &Path, keep: usize, overwrite: Overwrite) -> Result<Self, WriteError> {
        let earlier = existing(name).map_err(|source| WriteError::Create {
            path: name.into(),
            source,
        })?;
        for path in earlier {
            if overwrite == Overwrite::Refuse || !is_capture(&path) {
                return Err(WriteError::Exists { path });
            }
            fs::remove_file(&path).map_err(|source| WriteError::Create { path, source })?;
        }
        Ok(Self {
            name: name.into(),
            next: 1,
            keep,
            files: VecDeque::new(),
        })
    }

    /// The number and name of the next file, which is one of this recording's from now on.
    pub fn begin(&mut self) -> (u32, PathBuf) {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        let path = numbered(&self.name, number);
        self.files.push_back(path.clone());
        (number, path)
    }

    /// Removes the oldest files past those that are kept. One that cannot be removed is no longer looked after.
    pub fn trim(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        while self.files.len() > self.keep.max(1) {
            if let Some(oldest) = self.files.pop_front()
                && let Err(error) = fs::remove_file(&oldest)
                && error.kind() != io::ErrorKind::NotFound
            {
                result = Err(io::Error::new(
                    error.kind(),
                    format!("cannot remove {}: {error}", oldest.display()),
                ));
            }
        }
        result
    }

    /// The files there are, oldest first.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(PathBuf::as_path)
    }
}

/// The name of a file with this number.
fn numbered(name: &Path, number: u32) -> PathBuf {
    let mut path = OsString::from(name);
    path.push(format!(".{number:0DIGITS$}"));
    path.into()
}

/// Files with such names.
fn existing(name: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = match name.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let base = name.file_name().unwrap_or(OsStr::new("")).as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let number = entry
            .file_name()
            .as_encoded_bytes()
            .strip_prefix(base)
            .and_then(|rest| rest.strip_prefix(b"."))
            .is_some_and(|digits| digits.len() >= DIGITS && digits.iter().all(u8::is_ascii_digit));
        if number {
            found.push(directory.join(entry.file_name()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file begins as captures do.
fn is_capture(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    // Opening what is no file may wait for ever.
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
        && magic == MAGIC
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_files_are_kept_and_numbers_rise() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Numbered::claim(&directory.path().join("a"), 2, Overwrite::Refuse).unwrap();
        for expected in 1..=4 {
            let (number, path) = files.begin();
            assert_eq!(number, expected);
            fs::write(path, MAGIC).unwrap();
            files.trim().unwrap();
        }
        assert_eq!(names(directory.path()), ["a.0003", "a.0004"]);
        assert_eq!(files.files().count(), 2);
    }

    #[test]
    fn files_of_an_earlier_recording_are_removed_on_demand_and_others_never() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("a");
        for other in ["a", "a.1", "a.0007x", "b.0001"] {
            fs::write(directory.path().join(other), MAGIC).unwrap();
        }
        fs::write(directory.path().join("a.0007"), [&MAGIC[..], b"more"].concat()).unwrap();
        let refused = Numbered::claim(&name, 2, Overwrite::Refuse).unwrap_err();
        assert!(matches!(refused, WriteError::Exists { path } if path.ends_with("a.0007")));
        Numbered::claim(&name, 2, Overwrite::Force).unwrap();
        assert_eq!(names(directory.path()), ["a", "a.0007x", "a.1", "b.0001"]);
        fs::write(directory.path().join("a.2024"), "precious").unwrap();
        Numbered::claim(&name, 2, Overwrite::Force).unwrap_err();
        assert_eq!(fs::read(directory.path().join("a.2024")).unwrap(), b"precious");
    }
}
