//! Remembers what was found out about files, so that each distinct file is examined once for the whole host.
//!
//! Keyed by what changes when a file is replaced (device, inode, modification time, size), not by its path. The
//! memory is bounded: when it is full it is emptied, which costs time and nothing else.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    sync::Arc,
};

use super::open::ImageKey;

/// Files remembered at one time.
const CAPACITY: usize = 16_384;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stamp {
    key: ImageKey,
    modified: (i64, i64),
    size: u64,
}

/// Findings of type `T` about files.
#[derive(Debug)]
pub struct Classifier<T> {
    known: HashMap<Stamp, Arc<T>>,
    capacity: usize,
}

impl<T> Default for Classifier<T> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            capacity: CAPACITY,
        }
    }
}

impl<T> Classifier<T> {
    /// What is known about `file`, found out by `examine` if it is seen for the first time. Errors of
    /// `examine` belong into `T`: a file that cannot be understood is not tried again either.
    pub fn classify(&mut self, file: &File, examine: impl FnOnce(&File) -> T) -> io::Result<Arc<T>> {
        let metadata = file.metadata()?;
        let stamp = Stamp {
            key: ImageKey {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.len(),
        };
        if self.known.len() >= self.capacity && !self.known.contains_key(&stamp) {
            self.known.clear();
        }
        Ok(match self.known.entry(stamp) {
            Entry::Occupied(found) => Arc::clone(found.get()),
            Entry::Vacant(place) => Arc::clone(place.insert(Arc::new(examine(file)))),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{fs, io::Read, path::Path};

    use super::*;

    fn contents(cache: &mut Classifier<String>, path: &Path, examined: &mut u32) -> String {
        let found = cache
            .classify(&File::open(path).unwrap(), |mut file| {
                *examined += 1;
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            })
            .unwrap();
        found.as_str().to_owned()
    }

    #[test]
    fn a_file_is_examined_again_only_when_it_was_replaced_or_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, "first").unwrap();
        fs::hard_link(&one, &two).unwrap();
        let mut cache = Classifier::default();
        let mut examined = 0;
        assert_eq!(contents(&mut cache, &one, &mut examined), "first");
        assert_eq!(contents(&mut cache, &two, &mut examined), "first");
        assert_eq!(examined, 1);
        fs::write(&one, "second").unwrap();
        assert_eq!(contents(&mut cache, &two, &mut examined), "second");
        fs::write(dir.path().join("new"), "third!").unwrap();
        fs::rename(dir.path().join("new"), &one).unwrap();
        assert_eq!(contents(&mut cache, &one, &mut examined), "third!");
        assert_eq!(contents(&mut cache, &two, &mut examined), "second");
        assert_eq!(examined, 3);
    }

    #[test]
    fn the_memory_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = Classifier {
            capacity: 2,
            ..Classifier::default()
        };
        let mut examined = 0;
        for name in ["a", "b", "c", "d", "d"] {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            contents(&mut cache, &path, &mut examined);
            assert!(cache.known.len() <= 2);
        }
        assert!(examined >= 4);
    }
}
