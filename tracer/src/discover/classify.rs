//! Remembers what was found out about files, so that each distinct file is examined once for the whole host.
//!
//! The lasting memory is keyed by the file's identity, which changes when a file is replaced, and is one for
//! all containers that share a layer. Asking it needs the file open, so a second memory, emptied at each scan of /proc, is keyed by what a
//! mapping says of its file: hundreds of processes map the same libc. Both are bounded: a full one is emptied,
//! which costs time and nothing else.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    io,
    path::PathBuf,
    sync::Arc,
};

use super::{identity::FileIdentity, maps::MappedFile, open::open_mapped, watch::Mapping};
use crate::units::Pid;

/// Files remembered at one time, in either memory.
const CAPACITY: usize = 16_384;

/// A file as a mapping shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shown {
    device: u64,
    inode: u64,
    /// 0 where /proc/PID/maps showed it.
    generation: u64,
    path: PathBuf,
}

/// Findings of type `T` about files.
#[derive(Debug)]
pub struct Classifier<T> {
    known: HashMap<FileIdentity, Arc<T>>,
    shown: HashMap<Shown, Arc<T>>,
    capacity: usize,
}

impl<T> Default for Classifier<T> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            shown: HashMap::new(),
            capacity: CAPACITY,
        }
    }
}

impl<T> Classifier<T> {
    /// Call it before each scan of /proc, and every few seconds if none is due: between two calls, an inode
    /// that a mapping shows is taken for the file it was.
    pub fn begin_scan(&mut self) {
        self.shown.clear();
    }

    /// What is known about `file`, found out by `examine` if it is seen for the first time. Errors of
    /// `examine` belong into `T`: a file that cannot be understood is not tried again either.
    pub fn classify(&mut self, file: &File, examine: impl FnOnce(&File) -> T) -> io::Result<Arc<T>> {
        let identity = FileIdentity::of(file)?;
        self.make_room(&identity);
        Ok(match self.known.entry(identity) {
            Entry::Occupied(found) => Arc::clone(found.get()),
            Entry::Vacant(place) => Arc::clone(place.insert(Arc::new(examine(file)))),
        })
    }

    /// Whether something is known about that file.
    pub fn knows(&self, identity: &FileIdentity) -> bool {
        self.known.contains_key(identity)
    }

    /// Remembers what was found out elsewhere about a file.
    pub fn learn(&mut self, identity: FileIdentity, found: T) {
        self.make_room(&identity);
        self.known.insert(identity, Arc::new(found));
    }

    fn make_room(&mut self, identity: &FileIdentity) {
        if self.known.len() >= self.capacity && !self.known.contains_key(identity) {
            self.known.clear();
        }
    }

    /// What is known about a file that a process maps; an error if it cannot be opened.
    pub fn classify_mapped(
        &mut self,
        pid: Pid,
        mapped: &MappedFile,
        examine: impl FnOnce(&File) -> T,
    ) -> io::Result<Arc<T>> {
        self.classify_shown(pid, mapped, 0, examine)
    }

    /// The same for a mapping that the watcher saw.
    pub fn classify_mapping(
        &mut self,
        mapping: &Mapping,
        examine: impl FnOnce(&File) -> T,
    ) -> io::Result<Arc<T>> {
        self.classify_shown(mapping.pid, &mapping.as_file(), mapping.generation, examine)
    }

    fn classify_shown(
        &mut self,
        pid: Pid,
        mapped: &MappedFile,
        generation: u64,
        examine: impl FnOnce(&File) -> T,
    ) -> io::Result<Arc<T>> {
        let shown = Shown {
            device: mapped.device,
            inode: mapped.inode,
            generation,
            path: mapped.path.clone(),
        };
        if let Some(found) = self.shown.get(&shown) {
            return Ok(Arc::clone(found));
        }
        let opened = open_mapped(pid, mapped)?;
        let found = self.classify(&opened.file, examine)?;
        if self.shown.len() >= self.capacity {
            self.shown.clear();
        }
        self.shown.insert(shown, Arc::clone(&found));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{fs, io::Read, path::Path};

    use super::*;
    use crate::discover::mapped_files;

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
    fn a_mapped_file_is_opened_once_a_scan_and_examined_once() {
        let me = Pid(std::process::id());
        let mapped = mapped_files(me).unwrap().remove(0);
        let mut cache = Classifier::default();
        let mut examined = 0;
        let mut first = None;
        for _ in 0..3 {
            cache.begin_scan();
            for _ in 0..3 {
                let found = cache.classify_mapped(me, &mapped, |_| examined += 1).unwrap();
                assert!(Arc::ptr_eq(first.get_or_insert(Arc::clone(&found)), &found));
            }
            assert_eq!((cache.known.len(), cache.shown.len()), (1, 1));
        }
        assert_eq!(examined, 1);
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
