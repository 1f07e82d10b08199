//! /proc/PID/pagemap: which pages of a process are in memory.
//!
//! Reading it makes the kernel walk the process's page tables, as it does for smaps. Format: the kernel's
//! `Documentation/admin-guide/mm/pagemap.rst`.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::{ingest::PAGE, units::Pid};

/// Bytes of an entry.
const ENTRY: usize = 8;
/// Most entries of one read: the pages of 4 MiB.
const MOST: usize = 1024;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// It is of a file, or shared.
const OF_FILE: u64 = 1 << 61;

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Nowhere: never touched, or given back, or there is no mapping.
    Absent,
    /// In memory, and the process's own.
    Resident,
    /// Swapped out, or of a file.
    Elsewhere,
}

impl PageState {
    fn new(entry: u64) -> Self {
        if entry & (PRESENT | SWAPPED) == 0 {
            Self::Absent
        } else if entry & (SWAPPED | OF_FILE) == 0 {
            Self::Resident
        } else {
            Self::Elsewhere
        }
    }
}

/// The pages of one process.
#[derive(Debug)]
pub struct PageMap(File);

impl PageMap {
    /// An error if the process is gone.
    pub fn open(pid: Pid) -> io::Result<Self> {
        Ok(Self(File::open(format!("/proc/{pid}/pagemap"))?))
    }

    /// Where `count` pages are from that at address `start` on; fewer if the address space ends, or the process has.
    pub fn read(&self, start: u64, count: usize) -> io::Result<Vec<PageState>> {
        let mut states = Vec::with_capacity(count.min(MOST));
        let mut entries = [0_u8; ENTRY * MOST];
        while states.len() < count {
            let wanted = (count - states.len()).min(MOST) * ENTRY;
            let at = (start / PAGE)
                .saturating_add(states.len() as u64)
                .saturating_mul(ENTRY as u64);
            let read = self
                .0
                .read_at(entries.get_mut(..wanted).unwrap_or_default(), at)?;
            let (read, _) = entries.get(..read).unwrap_or_default().as_chunks::<ENTRY>();
            if read.is_empty() {
                break;
            }
            states.extend(
                read.iter()
                    .map(|entry| PageState::new(u64::from_le_bytes(*entry))),
            );
        }
        Ok(states)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    use super::*;

    /// Bytes of the pages that are looked at.
    const BYTES: usize = 5000 * 4096;

    #[test]
    fn pages_that_were_given_back_are_absent() {
        // SAFETY: memory of its own, and nothing refers to what is given back.
        let start = unsafe {
            let start = mmap_anonymous(
                std::ptr::null_mut(),
                BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
            .unwrap();
            madvise(start, BYTES, Advice::LinuxNoHugepage).unwrap();
            start.cast::<u8>().write_bytes(1, BYTES / 2);
            madvise(start, BYTES / 4, Advice::LinuxDontNeed).unwrap();
            start
        };
        let pages = PageMap::open(Pid(std::process::id())).unwrap();
        let states = pages.read(start.addr() as u64 + 17, 5000).unwrap();
        // SAFETY: nothing refers to it.
        unsafe { munmap(start, BYTES).unwrap() };
        let mut expected = vec![PageState::Absent; 5000];
        expected[1250..2500].fill(PageState::Resident);
        assert!(states == expected);
        assert_eq!(pages.read(u64::MAX, 3).unwrap(), []);
        let code = pages_that_were_given_back_are_absent as fn() as usize as u64;
        assert_eq!(pages.read(code, 1).unwrap(), [PageState::Elsewhere]);
    }

    #[test]
    fn entries_are_as_the_kernel_documents_them() {
        for (entry, expected) in [
            (0, PageState::Absent),
            (1 << 55, PageState::Absent),
            (1 << 63 | 1 << 56, PageState::Resident),
            (1 << 63 | 1 << 61, PageState::Elsewhere),
            (1 << 62 | 5, PageState::Elsewhere),
        ] {
            assert_eq!(PageState::new(entry), expected, "{entry:#x}");
        }
    }
}
