//! Which file an image is: for looking it up while it is open, and for telling whether probes on it would hit.
//!
//! The kernel hangs probes on the inode below an overlay (`d_real_inode` in its `kernel/trace/bpf_trace.c`), so
//! one attach covers every container that shares the layer, and two attaches would count everything twice.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use rustix::fs::{fstat, fstatfs};

/// `OVERLAYFS_SUPER_MAGIC` of the kernel's `include/uapi/linux/magic.h`.
const OVERLAYFS: u64 = 0x794c_7630;

/// Which file an image is, for as long as something holds it open or mapped; then its inode can be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageKey {
    /// `st_dev` of the opened file.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl ImageKey {
    /// The key of an open file.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let stat = fstat(file)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

/// Files with the same identity have the same contents and the same probes.
///
/// On an overlay the device is that of one mount, so it is left out, and inode, time and size decide. That
/// errs for a file that was copied up unchanged (by `chmod` in a container), which counts as the one below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    device: Option<u64>,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl FileIdentity {
    /// The identity of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let on_overlay = u64::try_from(fstatfs(file)?.f_type).is_ok_and(|kind| kind == OVERLAYFS);
        Ok(Self {
            device: (!on_overlay).then(|| metadata.dev()),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.len(),
        })
    }
}
