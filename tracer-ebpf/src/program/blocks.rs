//! Records of allocations, reallocations and frees, and what blocks of libc's malloc occupy.

use aya_ebpf::maps::ring_buf::RingBufEntry;
use tracer_ebpf::{
    process::ProcessState,
    reason::Reason,
    record::{Alloc, Free, Realloc, block, kind},
};

use crate::{
    clock,
    emit::{add, count, lose, reserve, submit, submit_one_of},
    hit::Hit,
    maps::OpenRealloc,
    read,
};

/// Step of pymalloc's size classes, and alignment of all blocks.
/// <https://github.com/python/cpython/blob/3.13/Include/internal/pycore_obmalloc.h>
pub(crate) const ALIGNMENT: u64 = 16;

/// glibc's chunk header: the size of the chunk, with three flag bits, in the word before the block.
/// <https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.c>
const CHUNK_FLAGS: u64 = 7;
const CHUNK_MMAPPED: u64 = 2;
const CHUNK_OVERHEAD: u64 = 8;
const CHUNK_MMAPPED_OVERHEAD: u64 = 16;
const CHUNK_LEAST: u64 = 32;
/// A chunk can be this much larger than asked for: a remainder too small to split, or a page's rest.
const CHUNK_SLACK: u64 = 8192;
/// More than any process has: where the request is not known, a chunk's size must at least be possible.
const CHUNK_MOST: u64 = 1 << 47;

/// A block that is new.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Its address.
    pub(crate) address: u64,
    /// Bytes of its size class if it is pymalloc's, bytes asked for if it is mimalloc's, otherwise 0.
    pub(crate) class: u64,
    /// Bytes asked for, or 0 if that is not known.
    pub(crate) requested: u64,
}

/// Usable bytes of a block of libc's malloc: from its header, or computed if that is not glibc's.
#[inline(always)]
fn usable_size(state: *mut ProcessState, block: u64, requested: u64) -> u64 {
    let computed =
        ((requested + CHUNK_OVERHEAD + ALIGNMENT - 1) & !(ALIGNMENT - 1)).max(CHUNK_LEAST) - CHUNK_OVERHEAD;
    let Some(header) = read::user::<u64>(block - CHUNK_OVERHEAD) else {
        lose(state, Reason::ChunkUnreadable);
        return computed;
    };
    let overhead = if header & CHUNK_MMAPPED != 0 {
        CHUNK_MMAPPED_OVERHEAD
    } else {
        CHUNK_OVERHEAD
    };
    let size = (header & !CHUNK_FLAGS).wrapping_sub(overhead);
    let most = if requested == 0 {
        CHUNK_MOST
    } else {
        requested + CHUNK_SLACK
    };
    if size >= requested && size <= most {
        size
    } else {
        computed
    }
}

/// A record in the ring, to be submitted; a loss if there is no room.
#[inline(always)]
fn written<T: 'static>(
    state: *mut ProcessState,
    full: Reason,
    record: impl FnOnce() -> T,
) -> Option<RingBufEntry<T>> {
    // SAFETY: a map value.
    if unsafe { (*state).unannounced } != 0 {
        lose(state, full);
        return None;
    }
    let Some(mut entry) = reserve::<T>() else {
        lose(state, full);
        return None;
    };
    entry.write(record());
    Some(entry)
}

#[inline(always)]
pub(crate) fn send_alloc(hit: &Hit, state: *mut ProcessState, new: Block, stack: u64) {
    // SAFETY: a map value.
    add(unsafe { &raw mut (*state).allocs }, 1);
    let (flags, size) = if new.class != 0 {
        (hit.pool_kind(), new.class)
    } else {
        (block::RAW, usable_size(state, new.address, new.requested))
    };
    let entry = written(state, Reason::RingFullAlloc, || Alloc {
        head: hit.head(kind::ALLOC, flags, size_of::<Alloc>()),
        tid: hit.thread as u32,
        role: hit.site.role,
        time_ns: clock::now(),
        addr: new.address,
        size,
        stack,
    });
    if let Some(entry) = entry {
        submit(entry);
    }
}

/// `flags` is one of [`block`]'s constants: which domain the call was made in.
#[inline(always)]
pub(crate) fn send_realloc(
    hit: &Hit,
    state: *mut ProcessState,
    open: OpenRealloc,
    address: u64,
    flags: u8,
    stack: u64,
) {
    // SAFETY: a map value.
    add(unsafe { &raw mut (*state).reallocs }, 1);
    // Before a block of mimalloc's there is nothing to read.
    let raw_size = if flags == block::MIMALLOC {
        0
    } else {
        usable_size(state, address, open.requested)
    };
    let entry = written(state, Reason::RingFullRealloc, || Realloc {
        head: hit.head(kind::REALLOC, flags, size_of::<Realloc>()),
        tid: hit.thread as u32,
        reserved: 0,
        time_ns: clock::now(),
        old: open.old,
        addr: address,
        requested: open.requested,
        raw_size,
        stack,
    });
    if let Some(entry) = entry {
        submit(entry);
    }
}

/// `flags` is one of [`block`]'s constants: what kind of block it may be.
#[inline(always)]
pub(crate) fn send_free(hit: &Hit, state: *mut ProcessState, block: u64, flags: u8) {
    // SAFETY: a map value.
    let number = count(unsafe { &raw mut (*state).frees });
    let entry = written(state, Reason::RingFullFree, || Free {
        head: hit.head(kind::FREE, flags, size_of::<Free>()),
        tid: hit.thread as u32,
        reserved: 0,
        time_ns: clock::now(),
        addr: block,
    });
    if let Some(entry) = entry {
        submit_one_of(entry, hit.config, number);
    }
}
