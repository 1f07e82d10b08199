//! Examined image files: each distinct file of the host is looked at once, however many processes map it.
//!
//! Joins `discover` (which files), `python` (what is in them) and `plan` (where probes go) for `ps`, `record`
//! and `doctor`. Invariant: a file that cannot be examined is a reason, never an error of the others.

use std::{
    fs::File,
    io::{self, Seek as _},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use object::{
    LittleEndian, Object as _, ObjectSymbol as _, ReadCache,
    elf::{FileHeader64, SHT_DYNSYM},
    read::elf::{FileHeader as _, SectionHeader as _},
};

use crate::{
    discover::{
        Classifier, FileIdentity, LoadSegment, MappedFile, Mapping, Range, bias, mapped_files, read_memory,
    },
    elf::{Elf, Step, needed},
    plan::{Plan, plan},
    python::{Allocator, ImageFacts, WhyNot, classify, examine_elf},
    units::{Pid, ProcAddr},
};

/// Files larger than this are not examined: the largest interpreters have some 40 MB.
const MAX_IMAGE_BYTES: u64 = 1 << 30;

/// What was found out about a file that holds a Python runtime.
#[derive(Debug)]
pub struct Image {
    /// Where it was first seen, as that process saw it.
    pub path: PathBuf,
    /// Tells it from other files.
    pub identity: FileIdentity,
    /// Facts and plan, or why there are none.
    pub runtime: Result<Runtime, WhyNot>,
    file: File,
    segments: Vec<LoadSegment>,
}

/// A runtime that can be traced.
#[derive(Debug)]
pub struct Runtime {
    /// What is in the file.
    pub facts: ImageFacts,
    /// What is to be probed.
    pub plan: Plan,
}

impl Image {
    /// A path that leads the kernel to this very file, whatever became of its name.
    pub fn kernel_path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// Load bias in a process that maps it at `ranges`.
    pub fn bias(&self, ranges: &[Range]) -> Option<u64> {
        bias(ranges, &self.segments)
    }

    /// Which allocator a process uses whose mapping of this file is `mapped`.
    pub fn allocator(&self, pid: Pid, mapped: &MappedFile) -> Option<Allocator> {
        let facts = &self.runtime.as_ref().ok()?.facts;
        let bias = self.bias(&mapped.ranges)?;
        Some(classify(
            facts,
            bias,
            |address: ProcAddr, to: &mut [u8]| match read_memory(pid, address, to.len()) {
                Ok(bytes) if bytes.len() == to.len() => {
                    to.copy_from_slice(&bytes);
                    true
                }
                _ => false,
            },
        ))
    }
}

/// All images that were looked at.
#[derive(Default)]
pub struct Images {
    classifier: Classifier<Option<Arc<Image>>>,
}

impl Images {
    /// Forgets which mapping showed which file; what is known about files stays.
    pub fn begin_scan(&mut self) {
        self.classifier.begin_scan();
    }

    /// The image of a file, if it holds a Python runtime.
    pub fn of_file(&mut self, path: &Path) -> io::Result<Option<Arc<Image>>> {
        let file = File::open(path)?;
        let found = self.classifier.classify(&file, |file| look_at(file, path))?;
        Ok(found.as_ref().clone())
    }

    /// The images of files, where they are some; those that are new are examined at the same time.
    pub fn of_files(&mut self, paths: &[PathBuf]) -> Vec<Arc<Image>> {
        let mut unknown: Vec<(FileIdentity, File, &Path)> = Vec::new();
        for path in paths {
            let Ok(file) = File::open(path) else { continue };
            let Ok(identity) = FileIdentity::of(&file) else {
                continue;
            };
            let is_new = unknown.iter().all(|(other, ..)| *other != identity);
            if is_new && !self.classifier.knows(&identity) {
                unknown.push((identity, file, path));
            }
        }
        for (identity, image) in look_at_all(&unknown) {
            self.classifier.learn(identity, image);
        }
        let images = paths.iter().map(|path| self.of_file(path));
        images.filter_map(|image| image.ok().flatten()).collect()
    }

    /// The images that a process maps, with the mapping of each.
    pub fn of_process(&mut self, pid: Pid) -> io::Result<Vec<(Arc<Image>, MappedFile)>> {
        let mut found = Vec::new();
        for mapped in mapped_files(pid)? {
            // A file that cannot be opened may be gone with its process, or be no file at all.
            let Ok(image) = self
                .classifier
                .classify_mapped(pid, &mapped, |file| look_at(file, &mapped.path))
            else {
                continue;
            };
            if let Some(image) = image.as_ref() {
                found.push((Arc::clone(image), mapped));
            }
        }
        Ok(found)
    }

    /// The image behind a new mapping.
    pub fn of_mapping(&mut self, mapping: &Mapping) -> Option<Arc<Image>> {
        let examine = |file: &File| look_at(file, &mapping.path);
        self.classifier
            .classify_mapping(mapping, examine)
            .ok()?
            .as_ref()
            .clone()
    }
}

/// Looks at files, on as many threads as there are processors for it.
fn look_at_all(files: &[(FileIdentity, File, &Path)]) -> Vec<(FileIdentity, Option<Arc<Image>>)> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some((identity, file, path)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push((*identity, look_at(file, path)));
        }
        found
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.min(files.len())).map(|_| scope.spawn(work)).collect();
        let mut found = work();
        for helper in helpers {
            // What a thread did that panicked is done again when it is asked for.
            found.extend(helper.join().unwrap_or_default());
        }
        found
    })
}

/// `None` if the file holds no Python runtime.
fn look_at(file: &File, path: &Path) -> Option<Arc<Image>> {
    if !defines_runtime(file) {
        return None;
    }
    let start = std::time::Instant::now();
    let identity = FileIdentity::of(file).ok()?;
    let kept = file.try_clone().ok()?;
    let mut segments = Vec::new();
    let runtime = read_all(file).map_err(|_| WhyNot::NotRuntime).and_then(|data| {
        let elf = Elf::parse(&data)?;
        segments = elf
            .segments()
            .iter()
            .map(|segment| LoadSegment {
                address: segment.address,
                offset: segment.offset,
                file_size: segment.file_size,
                exec: segment.executable,
            })
            .collect();
        let facts = examine_elf(&elf)?;
        let plan = plan(&facts, &elf);
        Ok(Runtime { facts, plan })
    });
    tracing::debug!("{}: examined in {:?}", path.display(), start.elapsed());
    Some(Arc::new(Image {
        path: path.to_owned(),
        identity,
        runtime,
        file: kept,
        segments,
    }))
}

/// The symbol of a Python runtime.
const RUNTIME: &[u8] = b"_PyRuntime";

/// Whether the file's dynamic symbols define `_PyRuntime`. Reads little: most files of a host are no Python.
fn defines_runtime(file: &File) -> bool {
    let Ok(mut file) = file.try_clone() else {
        return false;
    };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) || file.rewind().is_err() {
        return false;
    }
    let cache = ReadCache::new(file);
    if names_runtime(&cache) == Some(false) {
        return false;
    }
    let Ok(parsed) = object::File::parse(&cache) else {
        return false;
    };
    parsed
        .dynamic_symbols()
        .any(|symbol| symbol.is_definition() && symbol.name_bytes() == Ok(RUNTIME))
}

/// Whether the name is among those of the dynamic symbols at all, in one reading: one for each name is most of the work
/// of looking through a host. `None` if it cannot be told.
fn names_runtime(data: &ReadCache<File>) -> Option<bool> {
    let header = FileHeader64::<LittleEndian>::parse(data).ok()?;
    let sections = header.section_headers(LittleEndian, data).ok()?;
    let symbols = sections
        .iter()
        .find(|section| section.sh_type(LittleEndian) == SHT_DYNSYM)?;
    let names = sections.get(usize::try_from(symbols.sh_link(LittleEndian)).ok()?)?;
    let names = names.data(LittleEndian, data).ok()?;
    Some(memchr::memmem::find(names, RUNTIME).is_some())
}

/// The file, with zeroes for what nobody looks at: most of some files is debugging information.
fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len().min(MAX_IMAGE_BYTES);
    // Zeroed memory costs nothing before it is written to.
    let mut data = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    for step in Step::ALL {
        for range in needed(&data, step) {
            let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
                continue;
            };
            if let Some(part) = data.get_mut(start..end) {
                file.read_exact_at(part, range.start)?;
            }
        }
    }
    Ok(data)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::python::tests::runtimes;

    #[test]
    fn what_is_left_out_of_a_file_is_not_missed() {
        for (path, whole, facts) in runtimes() {
            let part = read_all(&File::open(&path).unwrap()).unwrap();
            let (elf, of_whole) = (Elf::parse(&part).unwrap(), Elf::parse(&whole).unwrap());
            for segment in of_whole.segments() {
                let bytes = elf.bytes_from(segment.address);
                assert!(
                    bytes == of_whole.bytes_from(segment.address),
                    "{}: {segment:?} is not there",
                    path.display()
                );
            }
            // The symbol table is among what they come from.
            let of_part = examine_elf(&elf).unwrap();
            assert_eq!(format!("{of_part:?}"), format!("{facts:?}"), "{}", path.display());
        }
    }

    #[test]
    fn files_are_examined_once_in_whatever_way_they_are_asked_for() {
        let mut paths: Vec<PathBuf> = runtimes().into_iter().map(|(path, ..)| path).take(2).collect();
        paths.extend(paths.clone());
        paths.push(PathBuf::from("/proc/self/exe"));
        paths.push(PathBuf::from("/nowhere"));
        let mut images = Images::default();
        let found = images.of_files(&paths);
        assert_eq!(found.len(), paths.len() - 2, "what is no interpreter is left out");
        for (image, path) in found.iter().zip(&paths) {
            assert!(Arc::ptr_eq(image, &images.of_file(path).unwrap().unwrap()));
        }
    }
}
