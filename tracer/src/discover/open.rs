//! The file behind a mapping, opened although it may be deleted, replaced or in another mount namespace.
//!
//! `/proc/PID/map_files` leads to the very file (it needs `CAP_SYS_ADMIN` or `CAP_CHECKPOINT_RESTORE`); a path
//! is the second way, and must lead to the inode that is mapped. Files are first opened with `O_PATH`, which
//! has no side effects, and read only if they are regular: a target can map devices too.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

use super::{identity::ImageKey, maps::MappedFile};
use crate::units::Pid;

/// How a file was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Through the mapping itself.
    MapFiles,
    /// By its path, below the process's root.
    ProcessRoot,
    /// By its path, below our root.
    OwnRoot,
}

/// A regular file that a process maps. Its path for others is `/proc/self/fd/N`.
#[derive(Debug)]
pub struct OpenedFile {
    /// Open for reading.
    pub file: File,
    /// Which file it is.
    pub key: ImageKey,
    /// How it was reached.
    pub via: Via,
    /// Whether the mapping names another device than the file, as on btrfs and overlayfs.
    pub device_differs: bool,
}

/// Opens a mapped file for reading. The error is the first way's: the others are only tried for what it lacks.
pub fn open_mapped(pid: Pid, mapped: &MappedFile) -> io::Result<OpenedFile> {
    let first = match through_mapping(pid, mapped) {
        Ok(opened) => return Ok(opened),
        Err(error) => error,
    };
    if mapped.deleted {
        return Err(first);
    }
    below_root_of(pid, mapped)
        .or_else(|_| below_own_root(mapped))
        .map_err(|_| first)
}

fn through_mapping(pid: Pid, mapped: &MappedFile) -> io::Result<OpenedFile> {
    // Any mapping would do; the executable one is the least likely to have been replaced meanwhile.
    let range = mapped
        .ranges
        .iter()
        .find(|range| range.exec)
        .or(mapped.ranges.first())
        .ok_or(io::ErrorKind::NotFound)?;
    let (start, end) = (range.start.get(), range.end.get());
    let path = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
    let found = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    verify(&found, mapped, Via::MapFiles)
}

fn below_root_of(pid: Pid, mapped: &MappedFile) -> io::Result<OpenedFile> {
    let root = open(
        format!("/proc/{pid}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let found = openat2(
        root,
        relative(&mapped.path),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    verify(&found, mapped, Via::ProcessRoot)
}

/// For a process that has changed its root within our mount namespace: the kernel shows its paths as ours.
fn below_own_root(mapped: &MappedFile) -> io::Result<OpenedFile> {
    let found = openat2(
        CWD,
        &mapped.path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS,
    )?;
    let opened = verify(&found, mapped, Via::OwnRoot)?;
    // The path is the target's word; only exactly the mapped file may be read with our root.
    if opened.device_differs {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(opened)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Opens what `found` stands for, if it is the regular file that is mapped.
fn verify(found: &OwnedFd, mapped: &MappedFile, via: Via) -> io::Result<OpenedFile> {
    let stat = fstat(found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if stat.st_ino != mapped.inode {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "another file stands in its place",
        ));
    }
    let file = File::from(open(
        format!("/proc/self/fd/{}", found.as_raw_fd()),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?);
    Ok(OpenedFile {
        file,
        key: ImageKey::of(found)?,
        via,
        device_differs: stat.st_dev != mapped.device,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{fs, io::Read, process::Command};

    use super::*;
    use crate::discover::{
        mapped_files,
        test_support::{Cat, copy_program},
    };

    fn start(program: &Path) -> (Cat, MappedFile) {
        let cat = Cat::start(&mut Command::new(program));
        let mapped = mapped_files(cat.pid()).unwrap().remove(0);
        (cat, mapped)
    }

    fn copy_of_cat(dir: &Path) -> std::path::PathBuf {
        let program = dir.join("my\ncat");
        copy_program(Path::new("/bin/cat"), &program);
        program
    }

    #[test]
    fn a_deleted_file_is_opened_through_its_mapping() {
        let dir = tempfile::tempdir().unwrap();
        let program = copy_of_cat(dir.path());
        let (cat, _) = start(&program);
        let key = ImageKey::of(File::open(&program).unwrap()).unwrap();
        fs::remove_file(&program).unwrap();
        let mapped = mapped_files(cat.pid()).unwrap().remove(0);
        assert!(mapped.deleted);
        assert_eq!(mapped.path, program);
        let mut opened = open_mapped(cat.pid(), &mapped).unwrap();
        assert_eq!((opened.via, opened.key), (Via::MapFiles, key));
        let mut bytes = Vec::new();
        opened.file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, fs::read("/bin/cat").unwrap());
        drop(cat);
    }

    #[test]
    fn a_path_leads_to_the_file_only_while_the_inode_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let program = copy_of_cat(dir.path());
        let (cat, mapped) = start(&program);
        let pid = cat.pid();
        let opened = below_root_of(pid, &mapped).unwrap();
        assert_eq!(opened.via, Via::ProcessRoot);
        assert_eq!(below_own_root(&mapped).unwrap().key, opened.key);
        fs::rename(&program, dir.path().join("old")).unwrap();
        copy_program(Path::new("/bin/cat"), &program);
        assert!(below_root_of(pid, &mapped).is_err());
        assert!(below_own_root(&mapped).is_err());
        // The mapping still leads to it.
        assert_eq!(open_mapped(pid, &mapped).unwrap().key, opened.key);
        drop(cat);
    }

    #[test]
    fn a_link_in_place_of_the_file_does_not_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let program = copy_of_cat(dir.path());
        let (cat, mapped) = start(&program);
        fs::remove_file(&program).unwrap();
        std::os::unix::fs::symlink("/proc/self/exe", &program).unwrap();
        assert!(below_root_of(cat.pid(), &mapped).is_err());
        drop(cat);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let (cat, mut mapped) = start(Path::new("/bin/cat"));
        let pid = cat.pid();
        drop(cat);
        mapped.inode += 1;
        assert!(open_mapped(pid, &mapped).is_err());
    }
}
