//! Blocks of libc's malloc that are thought to be in use, and whether they are: while their frees are not traced, what stands
//! in memory around them is the only witness.
//!
//! Apart from `audit`, which says when it is read. glibc keeps the size of a chunk in the word before its block, and in the
//! next chunk's whether this one is in use; its free lists of small chunks keep theirs as if they were in use, so that some
//! two hundred chunks up to 1 KiB can look in use for each thread. A chunk that was freed and handed out again with the same
//! size looks as if nothing had been. Another malloc has something else there. Invariants: only what was seen allocated is read,
//! and of one process a bounded number; of a process whose blocks never had such heads none is taken for gone.
//! <https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.c>

use std::io;

use rustc_hash::FxHashMap;

use super::left_out::Count;
use crate::{
    ingest::{LibcBlock, OVERHEAD},
    units::{MonotonicNs, ProcAddr},
};

/// Blocks remembered of one process, and of all. Those beyond are counted and not looked at: some 40 bytes each.
const MOST: usize = 1 << 16;
pub(super) const MOST_IN_ALL: usize = 1 << 19;
/// So many are looked at to tell whose malloc it is, and it is glibc's if one in so many has its head. Those that were freed a
/// moment ago, or in a gap, may have none; and what another malloc has there is hardly ever the size of the block by chance.
const LOOKED_AT: usize = 1 << 10;
const ONE_IN: usize = 16;
/// The word before a block: the size of its chunk, and three bits.
const SIZE_AT: u64 = 8;
pub(super) const FLAGS: u64 = 7;
/// The chunk before this one is in use.
pub(super) const PREVIOUS_IN_USE: u64 = 1;
/// The chunk is a mapping of its own.
pub(super) const MAPPED: u64 = 2;
/// What is beside the block in a chunk that is a mapping of its own, as its head tells.
const MAPPED_OVERHEAD: u64 = 16;

/// The large blocks of one process.
#[derive(Debug, Default)]
pub(super) struct Large {
    /// By address.
    blocks: FxHashMap<u64, Known>,
    /// Blocks that were not remembered.
    left_out: Count,
    /// Enough of them had a head of glibc's.
    is_glibc: bool,
    /// Since when it could not be told which are gone.
    blind: Option<MonotonicNs>,
}

/// A block.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Usable bytes.
    bytes: u64,
    born: u64,
    origin: Origin,
}

/// What told of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The interpreter's allocator, whose frees are traced but for gaps.
    Site,
    /// The mapping that was made for it. Whoever asked for it may give it back at any time without a site being hit.
    Mapping,
}

/// Which blocks may have gone unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unseen {
    /// All: frees were not traced for a time.
    All,
    /// Those that mappings were made for.
    Mappings,
}

/// What a look finds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Addresses of blocks that are gone.
    pub(super) gone: Vec<u64>,
    /// Mappings that have grown or shrunk where they are.
    pub(super) resized: Vec<LibcBlock>,
}

/// What stands in the word before a block of so many usable bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// It is in a chunk of so many bytes, among others.
    Chunk(u64),
    /// It is a mapping of its own, of so many usable bytes.
    Mapping(u64),
    /// No head of such a block.
    Other,
}

impl Head {
    /// A mapping that can grow and shrink where it is may have others than `bytes`, a chunk may not.
    pub(super) fn of(word: Option<u64>, addr: u64, bytes: u64) -> Self {
        let Some(word) = word else {
            return Self::Other;
        };
        let (size, is_mapped) = (word & !FLAGS, word & MAPPED != 0);
        if !is_mapped && bytes.checked_add(OVERHEAD) == Some(size) {
            return Self::Chunk(size);
        }
        let mapped = LibcBlock {
            addr,
            bytes: size.saturating_sub(MAPPED_OVERHEAD),
        };
        let is_known = bytes.checked_add(MAPPED_OVERHEAD) == Some(size);
        if word & FLAGS == MAPPED && (is_known || mapped.is_mapping()) {
            return Self::Mapping(mapped.bytes);
        }
        Self::Other
    }

    /// Whether it is that of a block of so many usable bytes.
    fn is_of(self, bytes: u64) -> bool {
        match self {
            Self::Chunk(_) => true,
            Self::Mapping(found) => found == bytes,
            Self::Other => false,
        }
    }
}

impl Large {
    /// A block was allocated; there is room for so many more of all processes. Whether it is remembered.
    pub(super) fn add(
        &mut self,
        addr: ProcAddr,
        bytes: u64,
        time: MonotonicNs,
        origin: Origin,
        room: &mut usize,
    ) -> bool {
        let has_room = self.blocks.len() < MOST && *room > 0;
        if !has_room && !self.blocks.contains_key(&addr.get()) {
            self.left_out.add(1, time);
            return false;
        }
        let block = Known {
            bytes,
            born: time.get(),
            origin,
        };
        if self.blocks.insert(addr.get(), block).is_none() {
            *room -= 1;
        }
        true
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many were not.
    pub(super) fn left_out(&self) -> Count {
        self.left_out
    }

    /// Where those are that are remembered, in order; none if the malloc is not known to be glibc's.
    pub(super) fn places(&self) -> Vec<u64> {
        let known = self.blocks.keys().copied().filter(|_| self.is_glibc);
        let mut places: Vec<u64> = known.collect();
        places.sort_unstable();
        places
    }

    /// It was freed.
    pub(super) fn remove(&mut self, addr: ProcAddr, room: &mut usize) {
        *room += usize::from(self.blocks.remove(&addr.get()).is_some());
    }

    /// Since when it cannot be told which are gone, as the malloc is not glibc's.
    pub(super) fn blind(&self) -> Option<MonotonicNs> {
        self.blind
    }

    /// Finds out whether the malloc is glibc's, if that is not known. For the arguments see [`Large::take_gone`].
    pub(super) fn learn(
        &mut self,
        began: MonotonicNs,
        mut read: impl FnMut(&[ProcAddr]) -> io::Result<Vec<Option<u64>>>,
    ) -> io::Result<()> {
        if self.is_glibc {
            return Ok(());
        }
        // What a mapping told of is known by such a head.
        let known: Vec<(u64, u64)> = self
            .before(began, Unseen::All)
            .filter(|(addr, _)| {
                self.blocks
                    .get(addr)
                    .is_some_and(|block| block.origin == Origin::Site)
            })
            .take(LOOKED_AT)
            .collect();
        let words = read(&known.iter().map(|&(addr, _)| head_of(addr)).collect::<Vec<_>>())?;
        let heads = known.iter().zip(words);
        let right = heads
            .filter(|((addr, bytes), word)| Head::of(*word, *addr, *bytes).is_of(*bytes))
            .count();
        if right > 0 && right * ONE_IN >= known.len() {
            (self.is_glibc, self.blind) = (true, None);
        }
        Ok(())
    }

    /// Looks which blocks from before `began` are gone of those that can be, and forgets those; and which have another size, if
    /// `is_mapped` says that there is memory for it: what looks like a head and is none would be that of more. `read` gives the word at each of the
    /// addresses, where there is one.
    pub(super) fn take_gone(
        &mut self,
        began: MonotonicNs,
        unseen: Unseen,
        is_mapped: impl Fn(LibcBlock) -> bool,
        mut read: impl FnMut(&[ProcAddr]) -> io::Result<Vec<Option<u64>>>,
    ) -> io::Result<Changed> {
        let mut known: Vec<(u64, u64)> = self.before(began, unseen).collect();
        if !self.is_glibc {
            if !known.is_empty() {
                self.blind.get_or_insert(began);
            }
            return Ok(Changed::default());
        }
        known.sort_unstable();
        let words = read(&known.iter().map(|&(addr, _)| head_of(addr)).collect::<Vec<_>>())?;
        let (mut gone, mut resized) = (Vec::new(), Vec::new());
        let mut open = Vec::new();
        for (&(addr, bytes), word) in known.iter().zip(words) {
            match Head::of(word, addr, bytes) {
                Head::Mapping(now) if now == bytes => {}
                Head::Mapping(now) if (LibcBlock { addr, bytes }).is_mapping() => {
                    let block = LibcBlock { addr, bytes: now };
                    if now < bytes || is_mapped(block) {
                        resized.push(block);
                    } else if !is_mapped(LibcBlock { addr, bytes }) {
                        gone.push(addr);
                    }
                }
                Head::Chunk(size) => open.push((addr, head_of(addr.saturating_add(size)))),
                Head::Mapping(_) | Head::Other => gone.push(addr),
            }
        }
        let next = read(&open.iter().map(|&(_, next)| next).collect::<Vec<_>>())?;
        for (&(addr, _), next) in open.iter().zip(next) {
            if next.is_none_or(|next| next & PREVIOUS_IN_USE == 0) {
                gone.push(addr);
            }
        }
        for addr in &gone {
            self.blocks.remove(addr);
        }
        for block in &resized {
            if let Some(known) = self.blocks.get_mut(&block.addr) {
                known.bytes = block.bytes;
            }
        }
        Ok(Changed { gone, resized })
    }

    /// Address and bytes of those that were allocated before.
    fn before(&self, time: MonotonicNs, unseen: Unseen) -> impl Iterator<Item = (u64, u64)> + '_ {
        let wanted = self.blocks.iter().filter(move |(_, block)| {
            block.born < time.get() && (unseen == Unseen::All || block.origin == Origin::Mapping)
        });
        wanted.map(|(&addr, block)| (addr, block.bytes))
    }
}

/// Where the head of a block is.
pub(super) fn head_of(addr: u64) -> ProcAddr {
    ProcAddr(addr.saturating_sub(SIZE_AT))
}

#[cfg(test)]
mod tests;
