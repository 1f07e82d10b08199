//! The ring that the kernel and a reader of perf events share: one page of positions, then data.
//!
//! The kernel moves `data_head`, the reader `data_tail`; what is between them belongs to the reader. A record
//! may wrap around the end, so it is copied out before anybody looks at it. Protocol: the comment on
//! `data_head` in <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/perf_event.h>

use std::{
    io,
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Place of `data_head` in the first page, bytes.
const DATA_HEAD: usize = 1024;
/// Place of `data_tail`.
const DATA_TAIL: usize = 1032;
/// Bytes of `perf_event_header`.
const HEADER: usize = 8;

/// One CPU's ring, unmapped and closed when dropped.
#[derive(Debug)]
pub(super) struct Ring {
    /// First byte of the mapping.
    base: NonNull<u8>,
    page: usize,
    /// Bytes of data, a power of two.
    size: usize,
    /// A record that wraps is put together here.
    scratch: Vec<u8>,
    _fd: OwnedFd,
}

// SAFETY: the mapping belongs to the ring alone and is not tied to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the ring of the perf event `fd` with `pages` pages of data, a power of two.
    pub(super) fn map(fd: OwnedFd, pages: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let size = pages * page;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                page + size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        Ok(Self {
            base: NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?,
            page,
            size,
            scratch: Vec::new(),
            _fd: fd,
        })
    }

    fn position(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `at` is one of the two aligned 64-bit positions in the first page, which lives as long as
        // `self`; the kernel reads and writes them as single words.
        unsafe { AtomicU64::from_ptr(self.base.add(at).cast().as_ptr()) }
    }

    /// Hands every record, header included, to `take`, and gives the space back.
    pub(super) fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        let head = self.position(DATA_HEAD).load(Ordering::Acquire);
        let mut tail = self.position(DATA_TAIL).load(Ordering::Relaxed);
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Ok(there @ HEADER..) = usize::try_from(head.wrapping_sub(tail)) {
            let mut header = [0; HEADER];
            self.copy(tail, &mut header);
            let [.., low, high] = header;
            let len = usize::from(u16::from_le_bytes([low, high]));
            if !(HEADER..=there).contains(&len) {
                // The kernel never does this; give everything up rather than read what is not a record.
                break;
            }
            scratch.resize(len, 0);
            self.copy(tail, &mut scratch);
            take(&scratch);
            tail = tail.wrapping_add(len as u64);
        }
        self.scratch = scratch;
        self.position(DATA_TAIL).store(head, Ordering::Release);
    }

    /// Copies bytes from the position `from` on, around the end if need be.
    fn copy(&self, from: u64, to: &mut [u8]) {
        let to_len = to.len().min(self.size);
        // The size is a power of two that fits `usize`, so the remainder does.
        let start = usize::try_from(from % self.size as u64).unwrap_or(0);
        let first = to_len.min(self.size - start);
        // SAFETY: both pieces lie in the data area, `size` bytes behind the first page; `to` has `to_len` bytes
        // and is not part of the mapping. The kernel does not write between tail and head.
        unsafe {
            let data = self.base.add(self.page);
            let into = to.as_mut_ptr();
            std::ptr::copy_nonoverlapping(data.add(start).as_ptr(), into, first);
            std::ptr::copy_nonoverlapping(data.as_ptr(), into.add(first), to_len - first);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; nothing borrows from it. There is nobody to tell of a failure.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.page + self.size) };
    }
}
