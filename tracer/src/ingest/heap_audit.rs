//! A reading of a process's heap, which the recorder makes and a capture keeps: the pools that changed since the last one,
//! and how much of each writable region is resident.
//!
//! Apart from `event`, since it does not come from the kernel side. Bytes and not JSON, as there can be ten thousands of
//! pools in one. Invariant: decoding is total; what is encoded decodes to the same.

use crate::{
    python::Pool,
    units::{BootNs, MonotonicNs, Pid, ProcAddr},
};

/// Bytes before the pools.
const HEAD: usize = 48;
const POOL: usize = 16;
const REGION: usize = 24;
const ADDRESS: usize = 8;
const SINCE_START: u32 = 1;
const COMPLETE: u32 = 2;
/// The list of blocks that are gone follows (since 1.3).
const GONE: u32 = 4;

/// A reading of the pools and of the memory map of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapAudit {
    /// Process id.
    pub pid: Pid,
    /// When it started; with the pid it names the process.
    pub start: BootNs,
    /// What an event tells of that is older than this was known to the recorder and there to be read; a moment before reading
    /// began.
    pub began: MonotonicNs,
    /// When it ended.
    pub ended: MonotonicNs,
    /// Whether the process was traced before it had any block.
    pub since_start: bool,
    /// Whether all pools that could be found were read.
    pub complete: bool,
    /// Bytes of a pool.
    pub pool_bytes: u32,
    /// Pools that are not as they were in the audit before.
    pub changed: Vec<PoolState>,
    /// Private writable memory, by address.
    pub regions: Vec<Region>,
    /// Blocks of libc's malloc that were freed while that was not traced.
    pub gone: Vec<u64>,
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
}

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
    /// As a capture keeps it.
    pub fn encode(&self) -> Vec<u8> {
        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let flag = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
        let flags = flag(self.since_start, SINCE_START) | flag(self.complete, COMPLETE) | GONE;
        let mut out = Vec::with_capacity(HEAD + POOL * self.changed.len() + REGION * self.regions.len());
        for word in [self.pid.get(), flags] {
            out.extend(word.to_le_bytes());
        }
        for word in [self.start.get(), self.began.get(), self.ended.get()] {
            out.extend(word.to_le_bytes());
        }
        for word in [
            self.pool_bytes,
            length(self.changed.len()),
            length(self.regions.len()),
            0,
        ] {
            out.extend(word.to_le_bytes());
        }
        for pool in &self.changed {
            out.extend(pool.address.to_le_bytes());
            out.extend(pool.used.to_le_bytes());
            out.extend(pool.carved.to_le_bytes());
            let [a0, a1, a2, _] = pool.arena.to_le_bytes();
            out.extend([pool.class, a0, a1, a2]);
        }
        for region in &self.regions {
            for word in [region.start, region.end, region.anonymous] {
                out.extend(word.to_le_bytes());
            }
        }
        for addr in [&(self.gone.len() as u64)].into_iter().chain(&self.gone) {
            out.extend(addr.to_le_bytes());
        }
        out
    }

    /// What a capture kept; `None` if it is not what [`HeapAudit::encode`] makes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let (words, _) = head.as_chunks::<4>();
        let word = |index: usize| words.get(index).map(|word| u32::from_le_bytes(*word));
        let long = |index: usize| Some(u64::from(word(index + 1)?) << 32 | u64::from(word(index)?));
        let (flags, pools, regions, alive) = (word(1)?, word(9)?, word(10)?, word(11)?);
        let pools = usize::try_from(pools).ok()?.checked_mul(POOL)?;
        let (pools, rest) = rest.split_at_checked(pools)?;
        let regions = usize::try_from(regions).ok()?.checked_mul(REGION)?;
        let (regions, rest) = rest.split_at_checked(regions)?;
        let alive = usize::try_from(alive).ok()?.checked_mul(ADDRESS)?;
        // Sampled blocks, up to 1.3: of these a [`super::Survey`] tells.
        let (_, rest) = rest.split_at_checked(alive)?;
        if !rest.len().is_multiple_of(ADDRESS) {
            return None;
        }
        let rest = words_of(rest);
        let gone = match (flags & GONE != 0, rest.split_first()) {
            (true, Some((&count, gone))) if usize::try_from(count) == Ok(gone.len()) => gone.to_vec(),
            (false, None) => Vec::new(),
            _ => return None,
        };
        Some(Self {
            pid: Pid(word(0)?),
            start: BootNs(long(2)?),
            began: MonotonicNs(long(4)?),
            ended: MonotonicNs(long(6)?),
            since_start: flags & SINCE_START != 0,
            complete: flags & COMPLETE != 0,
            pool_bytes: word(8)?,
            changed: pools.as_chunks::<POOL>().0.iter().map(pool).collect(),
            regions: regions.as_chunks::<REGION>().0.iter().map(region).collect(),
            gone,
        })
    }
}

fn words_of(bytes: &[u8]) -> Vec<u64> {
    let words = bytes.as_chunks::<ADDRESS>().0.iter();
    words.map(|bytes| u64::from_le_bytes(*bytes)).collect()
}

fn pool(bytes: &[u8; POOL]) -> PoolState {
    let [a0, a1, a2, a3, a4, a5, a6, a7, u0, u1, c0, c1, class, i0, i1, i2] = *bytes;
    PoolState {
        address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        class,
        used: u16::from_le_bytes([u0, u1]),
        carved: u16::from_le_bytes([c0, c1]),
        arena: u32::from_le_bytes([i0, i1, i2, 0]),
    }
}

fn region(bytes: &[u8; REGION]) -> Region {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |index: usize| words.get(index).map_or(0, |word| u64::from_le_bytes(*word));
    Region {
        start: word(0),
        end: word(1),
        anonymous: word(2),
    }
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
            flags in any::<[bool; 2]>(),
            pools in prop::collection::vec((any::<(u64, u8, u16, u16)>(), 0_u32..1 << 24), 0..5),
            regions in prop::collection::vec(any::<[u64; 3]>(), 0..5),
            gone in prop::collection::vec(any::<u64>(), 0..5),
        ) {
            let [start, began, ended] = numbers;
            let [since_start, complete] = flags;
            let audit = HeapAudit {
                pid: Pid(pid),
                start: BootNs(start),
                began: MonotonicNs(began),
                ended: MonotonicNs(ended),
                since_start,
                complete,
                pool_bytes: pid,
                changed: pools
                    .into_iter()
                    .map(|((address, class, used, carved), arena)| PoolState { address, class, used, carved, arena })
                    .collect(),
                regions: regions
                    .into_iter()
                    .map(|[start, end, anonymous]| Region { start, end, anonymous })
                    .collect(),
                gone,
            };
            let bytes = audit.encode();
            prop_assert_eq!(HeapAudit::decode(&bytes), Some(audit));
            for len in 0..bytes.len() {
                prop_assert_eq!(HeapAudit::decode(bytes.get(..len).unwrap_or_default()), None);
            }
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = HeapAudit::decode(&bytes);
        }
    }
}
