//! A reading of a process's heap, which the recorder makes and a capture keeps: the pools that changed since the last one,
//! and how much of each writable region is resident.
//!
//! Apart from `event`, since it does not come from the kernel side. Bytes and not JSON, as there can be ten thousands of
//! pools in one. Invariant: decoding is total; what is encoded decodes to the same.

use bytes::{Buf as _, BufMut as _};
use tracer_ebpf::limits::MOST_TICK_NS;

use super::{
    libc_block::LibcBlock,
    list::{ADDRESS, address, addresses, counted, items, length, put_some},
};
use crate::{
    python::Pool,
    units::{BootNs, MonotonicNs, Pid, ProcAddr},
};

/// An event that is told to be older than this, nanoseconds, is known to the recorder, and what it made is there to be read: it waits in
/// the ring and for the recorder's thread, which takes probes off in the meantime.
pub const KNOWN_AFTER_NS: u64 = MOST_TICK_NS + 240_000_000;
/// Bytes before the pools.
const HEAD: usize = 48;
const POOL: usize = 16;
const REGION: usize = 24;
/// Bytes of an arena's index.
const ARENA: usize = 3;
const SINCE_START: u32 = 1;
const COMPLETE: u32 = 2;
/// The list of blocks that are gone follows (since 1.3).
const GONE: u32 = 4;
const PARTIAL: u32 = 8;
/// How much of each region is in huge pages follows (since 1.4).
const HUGE: u32 = 16;
/// What is in use of libc's heaps follows (since 1.5).
const CHUNKS: u32 = 32;
const CHUNK: usize = 17;
/// The list of mappings that are blocks follows (since 1.6).
const MAPPED: u32 = 64;
const BLOCK: usize = 16;
/// The list of large chunks in use follows (since 1.6).
const BIG: u32 = 128;
/// The list of pages that are no longer there follows (since 1.7).
const GIVEN_BACK: u32 = 256;
/// The list of pages that came without a touch follows (since 1.7).
const CAME: u32 = 512;
const CAME_BYTES: usize = 20;

/// A reading of the pools and of the memory map of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapAudit {
    /// Process id.
    pub pid: Pid,
    /// When it started; with the pid it names the process.
    pub start: BootNs,
    /// What an event tells of that is older than this was known to the recorder and there to be read: [`KNOWN_AFTER_NS`] before
    /// reading began.
    pub began: MonotonicNs,
    /// When it ended.
    pub ended: MonotonicNs,
    /// Whether the process was traced before it had any block.
    pub since_start: bool,
    /// Whether all pools that could be found were read, this time or in an audit before.
    pub complete: bool,
    /// Whether some were not read this time: what `changed` does not tell of may have changed, too.
    pub is_partial: bool,
    /// Bytes of a pool.
    pub pool_bytes: u32,
    /// Pools that are not as they were in the audit before.
    pub changed: Vec<PoolState>,
    /// Private writable memory, by address.
    pub regions: Vec<Region>,
    /// Blocks of libc's malloc that were freed while that was not traced.
    pub gone: Vec<u64>,
    /// Blocks of libc's malloc that are mappings of their own, as they are now, where frees and allocations were not traced: new
    /// ones, and those that have another size.
    pub mapped: Vec<LibcBlock>,
    /// What is in use of libc's heaps, of those regions where that could be read.
    pub chunks: Vec<Chunks>,
    /// The blocks in those of them that have [`BIG_CHUNK`] and more, by address; of very many a part.
    pub big: Vec<LibcBlock>,
    /// Of the pages of which an event told that they were touched, those that are mapped and no longer there: the process has given
    /// them back. Addresses.
    pub given_back: Vec<u64>,
    /// Pages that are in mappings of which events told since the last time.
    pub came: Vec<Came>,
}

/// A page of a mapping: somebody touched it, or it came with the mapping, as it was moved there or the kernel was asked to fill it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// Where the mapping begins, as the event told.
    pub mapping: u64,
    /// Address of the page.
    pub page: u64,
    /// Resident pages of the mapping that it stands for, itself included.
    pub pages: u32,
}

/// A pool, as its header has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolState {
    /// Its address.
    pub address: u64,
    /// Index of its size class.
    pub class: u8,
    /// Blocks in use; 0 if it is in use no more.
    pub used: u16,
    /// Blocks that were ever handed out since it has this class.
    pub carved: u16,
    /// Index of its arena among those of its interpreter; 24 bits are kept.
    pub arena: u32,
}

/// A part of the address space that the process alone writes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// The address behind it.
    pub end: u64,
    /// Bytes of it that are anonymous and resident.
    pub anonymous: u64,
    /// Of these, bytes in pages of 2 MiB.
    pub huge: u64,
}

/// Chunks of libc's malloc in one region that are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    /// Where their region starts.
    pub region: u64,
    /// Class of their size, [`chunk_class`].
    pub class: u8,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// The class of a chunk's size in bytes: 0 of those that the interpreter's large blocks do not have, 1 below [`BIG_CHUNK`], 2 up to
/// 128 KiB, and then one for each power of two. A program that makes blocks of many sizes makes them in turn, so that a short look sees
/// few of these.
pub fn chunk_class(bytes: u64) -> u8 {
    let power = u8::try_from(bytes.max(1).ilog2()).unwrap_or(u8::MAX);
    let of_large = power.saturating_sub(HUGE_CHUNK).saturating_add(1);
    of_large * u8::from(bytes >= LARGE_CHUNK) + u8::from(bytes >= BIG_CHUNK)
}

/// Chunks of so many bytes can be of large blocks.
const LARGE_CHUNK: u64 = 512;
/// Chunks of so many bytes are told one by one: they have pages of their own, of which it is known who touched them first.
pub const BIG_CHUNK: u64 = 16 << 10;
/// The power of two from which on each is a class of its own, less one.
const HUGE_CHUNK: u8 = 16;

impl PoolState {
    /// Of a pool as its header was read.
    pub fn new(address: ProcAddr, pool: Pool) -> Self {
        let number = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        Self {
            address: address.get(),
            class: u8::try_from(pool.class).unwrap_or(u8::MAX),
            used: number(pool.used),
            carved: number(pool.carved),
            arena: pool.arena & 0xff_ffff,
        }
    }
}

impl HeapAudit {
    /// When reading began: what was there before was read.
    pub fn read_from(&self) -> MonotonicNs {
        MonotonicNs(self.began.0.saturating_add(KNOWN_AFTER_NS)).min(self.ended)
    }

    /// As a capture keeps it.
    pub fn encode(&self) -> Vec<u8> {
        let flag = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
        let flags = flag(self.since_start, SINCE_START) | flag(self.complete, COMPLETE) | GONE;
        let has_huge = self.regions.iter().any(|region| region.huge > 0);
        let flags = flags | flag(self.is_partial, PARTIAL) | flag(has_huge, HUGE);
        let flags = flags | flag(!self.chunks.is_empty(), CHUNKS) | flag(!self.mapped.is_empty(), MAPPED);
        let flags = flags | flag(!self.big.is_empty(), BIG);
        let flags = flags | flag(!self.given_back.is_empty(), GIVEN_BACK);
        let flags = flags | flag(!self.came.is_empty(), CAME);
        let lists = POOL * self.changed.len() + REGION * self.regions.len() + ADDRESS * (1 + self.gone.len());
        let mut out = Vec::with_capacity(HEAD + lists);
        out.put_u32_le(self.pid.get());
        out.put_u32_le(flags);
        out.put_u64_le(self.start.get());
        out.put_u64_le(self.began.get());
        out.put_u64_le(self.ended.get());
        out.put_u32_le(self.pool_bytes);
        out.put_u32_le(length(&self.changed));
        out.put_u32_le(length(&self.regions));
        // Sampled blocks, up to 1.3.
        out.put_u32_le(0);
        for pool in &self.changed {
            out.put_u64_le(pool.address);
            out.put_u16_le(pool.used);
            out.put_u16_le(pool.carved);
            out.put_u8(pool.class);
            out.put_uint_le(pool.arena.into(), ARENA);
        }
        for region in &self.regions {
            out.put_u64_le(region.start);
            out.put_u64_le(region.end);
            out.put_u64_le(region.anonymous);
        }
        out.put_u64_le(self.gone.len() as u64);
        for &addr in &self.gone {
            out.put_u64_le(addr);
        }
        for region in self.regions.iter().filter(|_| has_huge) {
            out.put_u64_le(region.huge);
        }
        put_some(&mut out, &self.chunks, |out, chunks| {
            out.put_u64_le(chunks.region);
            out.put_u8(chunks.class);
            out.put_u64_le(chunks.bytes);
        });
        for blocks in [&self.mapped, &self.big] {
            put_some(&mut out, blocks, |out, block| {
                out.put_u64_le(block.addr);
                out.put_u64_le(block.bytes);
            });
        }
        put_some(&mut out, &self.given_back, |out, &page| out.put_u64_le(page));
        put_some(&mut out, &self.came, |out, came| {
            out.put_u64_le(came.mapping);
            out.put_u64_le(came.page);
            out.put_u32_le(came.pages);
        });
        out
    }

    /// What a capture kept; `None` if it is not what [`HeapAudit::encode`] makes.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let mut audit = Self {
            pid: Pid(from.try_get_u32_le().ok()?),
            ..Self::default()
        };
        let flags = from.try_get_u32_le().ok()?;
        audit.since_start = flags & SINCE_START != 0;
        audit.complete = flags & COMPLETE != 0;
        audit.is_partial = flags & PARTIAL != 0;
        audit.start = BootNs(from.try_get_u64_le().ok()?);
        audit.began = MonotonicNs(from.try_get_u64_le().ok()?);
        audit.ended = MonotonicNs(from.try_get_u64_le().ok()?);
        audit.pool_bytes = from.try_get_u32_le().ok()?;
        let pools = from.try_get_u32_le().ok()?;
        let regions = from.try_get_u32_le().ok()?;
        let alive = from.try_get_u32_le().ok()?;
        audit.changed = items(from, pools.into(), POOL, pool)?;
        audit.regions = items(from, regions.into(), REGION, region)?;
        // Of sampled blocks a [`super::Survey`] tells since 1.4.
        addresses(from, alive.into())?;
        audit.gone = counted(from, flags & GONE != 0, ADDRESS, address)?;
        if flags & HUGE != 0 {
            for region in &mut audit.regions {
                region.huge = from.try_get_u64_le().ok()?;
            }
        }
        audit.chunks = counted(from, flags & CHUNKS != 0, CHUNK, chunks)?;
        audit.mapped = counted(from, flags & MAPPED != 0, BLOCK, block)?;
        audit.big = counted(from, flags & BIG != 0, BLOCK, block)?;
        audit.given_back = counted(from, flags & GIVEN_BACK != 0, ADDRESS, address)?;
        audit.came = counted(from, flags & CAME != 0, CAME_BYTES, came)?;
        from.is_empty().then_some(audit)
    }
}

fn pool(from: &mut &[u8]) -> Option<PoolState> {
    let mut pool = PoolState {
        address: from.try_get_u64_le().ok()?,
        used: from.try_get_u16_le().ok()?,
        carved: from.try_get_u16_le().ok()?,
        class: from.try_get_u8().ok()?,
        arena: 0,
    };
    pool.arena = u32::try_from(from.try_get_uint_le(ARENA).ok()?).ok()?;
    Some(pool)
}

fn region(from: &mut &[u8]) -> Option<Region> {
    Some(Region {
        start: from.try_get_u64_le().ok()?,
        end: from.try_get_u64_le().ok()?,
        anonymous: from.try_get_u64_le().ok()?,
        huge: 0,
    })
}

fn chunks(from: &mut &[u8]) -> Option<Chunks> {
    Some(Chunks {
        region: from.try_get_u64_le().ok()?,
        class: from.try_get_u8().ok()?,
        bytes: from.try_get_u64_le().ok()?,
    })
}

fn block(from: &mut &[u8]) -> Option<LibcBlock> {
    Some(LibcBlock {
        addr: from.try_get_u64_le().ok()?,
        bytes: from.try_get_u64_le().ok()?,
    })
}

fn came(from: &mut &[u8]) -> Option<Came> {
    Some(Came {
        mapping: from.try_get_u64_le().ok()?,
        page: from.try_get_u64_le().ok()?,
        pages: from.try_get_u32_le().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_again_and_nothing_shorter(
            numbers in any::<[u64; 3]>(),
            pid in any::<u32>(),
            flags in any::<[bool; 3]>(),
            pools in prop::collection::vec((any::<(u64, u8, u16, u16)>(), 0_u32..1 << 24), 0..5),
            regions in prop::collection::vec(any::<[u64; 4]>(), 0..5),
            gone in prop::collection::vec(any::<u64>(), 0..5),
            mapped in prop::collection::vec(any::<(u64, u64)>(), 0..5),
            big in prop::collection::vec(any::<(u64, u64)>(), 0..5),
            chunks in prop::collection::vec(any::<(u64, u8, u64)>(), 0..5),
            given_back in prop::collection::vec(any::<u64>(), 0..5),
            came in prop::collection::vec(any::<(u64, u64, u32)>(), 0..5),
        ) {
            let blocks = |numbers: Vec<(u64, u64)>| {
                numbers.into_iter().map(|(addr, bytes)| LibcBlock { addr, bytes }).collect()
            };
            let [start, began, ended] = numbers;
            let [since_start, complete, is_partial] = flags;
            let audit = HeapAudit {
                pid: Pid(pid),
                start: BootNs(start),
                began: MonotonicNs(began),
                ended: MonotonicNs(ended),
                since_start,
                complete,
                is_partial,
                pool_bytes: pid,
                changed: pools
                    .into_iter()
                    .map(|((address, class, used, carved), arena)| PoolState { address, class, used, carved, arena })
                    .collect(),
                regions: regions
                    .into_iter()
                    .map(|[start, end, anonymous, huge]| Region { start, end, anonymous, huge })
                    .collect(),
                gone,
                mapped: blocks(mapped),
                big: blocks(big),
                chunks: chunks
                    .into_iter()
                    .map(|(region, class, bytes)| Chunks { region, class, bytes })
                    .collect(),
                given_back,
                came: came
                    .into_iter()
                    .map(|(mapping, page, pages)| Came { mapping, page, pages })
                    .collect(),
            };
            let bytes = audit.encode();
            prop_assert_eq!(HeapAudit::decode(&bytes), Some(audit));
            for len in 0..bytes.len() {
                prop_assert_eq!(HeapAudit::decode(bytes.get(..len).unwrap_or_default()), None);
            }
        }

        #[test]
        fn a_chunk_has_one_class(bytes in any::<u64>(), more in any::<u64>()) {
            prop_assert_eq!(chunk_class(bytes) == 0, bytes < 512);
            prop_assert!(chunk_class(bytes) <= chunk_class(bytes.saturating_add(more)));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = HeapAudit::decode(&bytes);
        }
    }
}
