//! perf's side-band records to [`MapEvent`].
//!
//! Layouts: `enum perf_event_type` in
//! <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/perf_event.h>. File names in them are the
//! target's: any bytes.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use crate::{
    discover::maps::{MappedFile, Range, split_deleted},
    units::{FileOffset, MonotonicNs, Pid, ProcAddr},
};

const LOST: u32 = 2;
const COMM: u32 = 3;
const EXIT: u32 = 4;
const FORK: u32 = 7;
const MMAP2: u32 = 10;
/// Bit of `misc`: the name changed because of an exec.
const MISC_COMM_EXEC: u16 = 1 << 13;
/// Bytes of the `sample_id` behind every record: pid, tid, time.
const SAMPLE_ID: usize = 16;
/// What the kernel writes when it has no room for a path; then it gives no inode either.
const NO_PATH: [&[u8]; 2] = [b"//enomem", b"//toolong"];

/// A file mapped to run code from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Process id.
    pub pid: Pid,
    /// When.
    pub time: MonotonicNs,
    /// Where.
    pub start: ProcAddr,
    /// Bytes.
    pub len: u64,
    /// What of the file stands at `start`.
    pub file_offset: FileOffset,
    /// Device, as `makedev` numbers it, as in `MappedFile`.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Tells apart files that had this inode one after the other; 0 on file systems without.
    pub generation: u64,
    /// Path, as in `MappedFile` (with ` (deleted)` behind it if it has no name).
    pub path: PathBuf,
}

impl Mapping {
    /// The file of this one mapping, to be opened.
    pub fn as_file(&self) -> MappedFile {
        let (path, deleted) = split_deleted(self.path.as_os_str().as_bytes());
        MappedFile {
            device: self.device,
            inode: self.inode,
            path: PathBuf::from(OsStr::from_bytes(path)),
            deleted,
            ranges: vec![Range {
                start: self.start,
                end: ProcAddr(self.start.get().saturating_add(self.len)),
                file_offset: self.file_offset,
                exec: true,
            }],
        }
    }
}

/// Something that changes which process maps what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapEvent {
    /// A file was mapped executable.
    Mapped(Mapping),
    /// A process became another program; its mappings follow, or came just before.
    Exec {
        /// Process id.
        pid: Pid,
        /// When.
        time: MonotonicNs,
    },
    /// A process made another one, which maps what it maps.
    Forked {
        /// Process id of the new one.
        pid: Pid,
        /// Process id of the one that made it.
        parent: Pid,
        /// When.
        time: MonotonicNs,
    },
    /// The main thread of a process exited.
    Exited {
        /// Process id.
        pid: Pid,
        /// When.
        time: MonotonicNs,
    },
    /// That many records were lost: scan /proc.
    Lost {
        /// How many.
        records: u64,
        /// When that was noticed.
        time: MonotonicNs,
    },
}

impl MapEvent {
    /// When it happened.
    pub fn time(&self) -> MonotonicNs {
        match self {
            Self::Mapped(mapping) => mapping.time,
            Self::Exec { time, .. }
            | Self::Forked { time, .. }
            | Self::Exited { time, .. }
            | Self::Lost { time, .. } => *time,
        }
    }
}

/// The fields of a record, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*bytes))
    }

    fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*bytes))
    }
}

/// The event in a whole record; `None` if it says nothing of interest or is too short.
pub(super) fn parse(record: &[u8]) -> Option<MapEvent> {
    let (body, sample_id) = record.split_at_checked(record.len().checked_sub(SAMPLE_ID)?)?;
    let (_, time) = sample_id.split_first_chunk::<8>()?;
    let time = MonotonicNs(Fields(time).u64()?);
    let (header, body) = body.split_first_chunk::<8>()?;
    let [k0, k1, k2, k3, m0, m1, _, _] = *header;
    let mut fields = Fields(body);
    match u32::from_ne_bytes([k0, k1, k2, k3]) {
        MMAP2 => mapped(fields, time),
        COMM if u16::from_ne_bytes([m0, m1]) & MISC_COMM_EXEC != 0 => Some(MapEvent::Exec {
            pid: Pid(fields.u32()?),
            time,
        }),
        FORK => {
            let (pid, parent) = (Pid(fields.u32()?), Pid(fields.u32()?));
            // A new thread has its process as "parent".
            (pid != parent).then_some(MapEvent::Forked { pid, parent, time })
        }
        EXIT => {
            let (pid, _parent, tid) = (fields.u32()?, fields.u32()?, fields.u32()?);
            (pid == tid).then_some(MapEvent::Exited { pid: Pid(pid), time })
        }
        LOST => {
            let (_id, records) = (fields.u64()?, fields.u64()?);
            Some(MapEvent::Lost { records, time })
        }
        _ => None,
    }
}

fn mapped(mut fields: Fields<'_>, time: MonotonicNs) -> Option<MapEvent> {
    let (pid, _tid) = (Pid(fields.u32()?), fields.u32()?);
    let (start, len, file_offset) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (major, minor) = (fields.u32()?, fields.u32()?);
    let (inode, generation) = (fields.u64()?, fields.u64()?);
    let (_protection, _flags) = (fields.u32()?, fields.u32()?);
    let path = fields.0.split(|byte| *byte == 0).next()?;
    if NO_PATH.contains(&path) {
        return Some(MapEvent::Lost { records: 1, time });
    }
    // `//anon`, `[vdso]`, `anon_inode:...` are no files.
    if inode == 0 || !path.starts_with(b"/") || path.starts_with(b"//") {
        return None;
    }
    Some(MapEvent::Mapped(Mapping {
        pid,
        time,
        start: ProcAddr(start),
        len,
        file_offset: FileOffset(file_offset),
        device: rustix::fs::makedev(major, minor),
        inode,
        generation,
        path: PathBuf::from(OsString::from_vec(path.to_vec())),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record as the kernel lays it out: words of 32 bits, a name, and the time 77.
    fn record(kind: u32, misc: u16, words: &[u32], name: &[u8]) -> Vec<u8> {
        let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        if !name.is_empty() {
            body.extend_from_slice(name);
            body.resize(body.len() / 8 * 8 + 8, 0);
        }
        body.extend([1u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat());
        body.extend(77u64.to_ne_bytes());
        let mut record = kind.to_ne_bytes().to_vec();
        record.extend(misc.to_ne_bytes());
        record.extend(u16::try_from(body.len() + 8).unwrap_or(0).to_ne_bytes());
        record.extend(body);
        record
    }

    fn mmap2(inode: u32, name: &[u8]) -> Vec<u8> {
        let words = [5, 6, 0x1000, 0, 0x2000, 0, 0x3000, 0, 8, 1, inode, 0, 9, 0, 5, 2];
        record(MMAP2, 2, &words, name)
    }

    const TIME: MonotonicNs = MonotonicNs(77);

    #[test]
    fn a_mapped_file_comes_with_its_identity() {
        let expected = MapEvent::Mapped(Mapping {
            pid: Pid(5),
            time: TIME,
            start: ProcAddr(0x1000),
            len: 0x2000,
            file_offset: FileOffset(0x3000),
            device: 0x801,
            inode: 42,
            generation: 9,
            path: PathBuf::from("/a b\nc"),
        });
        assert_eq!(parse(&mmap2(42, b"/a b\nc")), Some(expected));
    }

    #[test]
    fn what_is_no_file_is_left_out_and_a_missing_path_is_a_loss() {
        assert_eq!(parse(&mmap2(0, b"//anon")), None);
        assert_eq!(parse(&mmap2(0, b"[vdso]")), None);
        assert_eq!(parse(&mmap2(7, b"anon_inode:[x]")), None);
        let lost = Some(MapEvent::Lost {
            records: 1,
            time: TIME,
        });
        assert_eq!(parse(&mmap2(0, b"//toolong")), lost);
        assert_eq!(
            parse(&record(LOST, 0, &[1, 0, 3, 0], b"")),
            Some(MapEvent::Lost {
                records: 3,
                time: TIME
            })
        );
    }

    #[test]
    fn only_execs_new_processes_and_main_threads_count() {
        assert_eq!(parse(&record(COMM, 0, &[5, 5], b"thread")), None);
        let exec = MapEvent::Exec {
            pid: Pid(5),
            time: TIME,
        };
        assert_eq!(
            parse(&record(COMM, MISC_COMM_EXEC, &[5, 5], b"python3")),
            Some(exec)
        );
        let forked = MapEvent::Forked {
            pid: Pid(6),
            parent: Pid(5),
            time: TIME,
        };
        assert_eq!(parse(&record(FORK, 0, &[6, 5, 6, 5, 0, 0], b"")), Some(forked));
        assert_eq!(parse(&record(FORK, 0, &[5, 5, 7, 5, 0, 0], b"")), None);
        let exited = MapEvent::Exited {
            pid: Pid(6),
            time: TIME,
        };
        assert_eq!(parse(&record(EXIT, 0, &[6, 5, 6, 5, 0, 0], b"")), Some(exited));
        assert_eq!(parse(&record(EXIT, 0, &[5, 5, 7, 5, 0, 0], b"")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(kind in 0u32..12, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
            let mut record = kind.to_ne_bytes().to_vec();
            record.extend(&bytes);
            parse(&record);
        }
    }
}
