//! Which of the blocks that were seen in a sampling window are still in use: read from their pools, not traced.
//!
//! A block is free if it is on its pool's list of free blocks, was never handed out, or its pool is another class's now. One that was freed and handed out
//! again looks in use; what its first words say (an object's type) gives it away in most cases. Invariant: a process is asked
//! for a bounded number of pools at each audit, and whatever its memory holds, the walk ends.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::units::{ByteCount, MonotonicNs, ProcAddr};

/// Blocks remembered of one process.
const MAX_SAMPLES: usize = 1 << 14;
/// Audits that tell of a sample: it may lie before one that began in its window, and two later ones settle it.
const CHECKS: u8 = 3;
/// Pools read at one audit.
const MAX_POOLS: usize = 512;
/// `offsetof(struct pool_header, freeblock)`, and of `szidx` and `nextoffset`.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L254-L264>
const FREEBLOCK: usize = 8;
const SIZE_INDEX: usize = 36;
const NEXT_OFFSET: usize = 40;
/// Bytes between two size classes.
const ALIGNMENT: u64 = 16;
/// Where an object's type stands: behind its count, and where the collector's head comes first.
const TYPES: [usize; 2] = [8, 24];

/// A block that was seen.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Bytes of its class.
    size: u64,
    time: u64,
    /// What stood at [`TYPES`] when it was first looked at.
    types: Option<[u64; 2]>,
    checks: u8,
}

/// Those of one process, by address.
#[derive(Debug, Default)]
pub(super) struct Survivors {
    samples: FxHashMap<u64, Sample>,
}

impl Survivors {
    /// A block was allocated in a window; whether it is the first that was seen there.
    pub(super) fn add(&mut self, addr: ProcAddr, size: ByteCount, time: MonotonicNs) -> bool {
        // The newest at an address is the one that is there.
        if self.samples.len() < MAX_SAMPLES || self.samples.contains_key(&addr.get()) {
            let sample = Sample {
                size: size.get(),
                time: time.get(),
                types: None,
                checks: 0,
            };
            return self.samples.insert(addr.get(), sample).is_none();
        }
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Those that are still in use, of the ones seen before `began`; the others are forgotten, and these after some audits.
    /// `read` gives a whole pool.
    pub(super) fn check(
        &mut self,
        began: MonotonicNs,
        pool_bytes: u32,
        mut read: impl FnMut(ProcAddr) -> Option<Vec<u8>>,
    ) -> Vec<u64> {
        let mask = u64::from(pool_bytes).wrapping_sub(1);
        let mut by_pool: BTreeMap<u64, Vec<(u64, Sample)>> = BTreeMap::new();
        let mut later = FxHashMap::default();
        for (addr, sample) in self.samples.drain() {
            if sample.time < began.get() {
                by_pool.entry(addr & !mask).or_default().push((addr, sample));
            } else {
                later.insert(addr, sample);
            }
        }
        let mut alive = Vec::new();
        for (pool, samples) in by_pool.into_iter().take(MAX_POOLS) {
            let Some(bytes) = read(ProcAddr(pool)) else {
                continue;
            };
            let free = free_blocks(pool, &bytes);
            let class = word32(&bytes, SIZE_INDEX).map_or(0, |index| (u64::from(index) + 1) * ALIGNMENT);
            let next = word32(&bytes, NEXT_OFFSET).map_or(0, u64::from);
            for (addr, mut sample) in samples {
                let offset = usize::try_from(addr - pool).unwrap_or(usize::MAX);
                let types = TYPES.map(|at| word(&bytes, offset.saturating_add(at)).unwrap_or(0));
                let is_in_use = class == sample.size && addr - pool < next && !free.contains(&addr);
                let is_the_same = sample.types.is_none_or(|known| known == types);
                if is_in_use && is_the_same {
                    alive.push(addr);
                    sample.types = Some(types);
                    sample.checks += 1;
                    if sample.checks < CHECKS {
                        later.insert(addr, sample);
                    }
                }
            }
        }
        self.samples = later;
        alive.sort_unstable();
        alive
    }
}

/// The blocks on a pool's list.
fn free_blocks(pool: u64, bytes: &[u8]) -> FxHashSet<u64> {
    let mut free = FxHashSet::default();
    let mut at = word(bytes, FREEBLOCK).unwrap_or(0);
    // A list that comes back to itself ends, as one that leaves the pool does.
    while at != 0 && free.insert(at) {
        let Some(offset) = at
            .checked_sub(pool)
            .and_then(|offset| usize::try_from(offset).ok())
        else {
            break;
        };
        let Some(next) = word(bytes, offset) else { break };
        at = next;
    }
    free
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u64::from_le_bytes(*word))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    const POOL: u64 = 0x7f00_0001_0000;
    const BYTES: usize = 4096;

    /// A pool of 64-byte blocks of which ten were handed out; these are free again, in this order.
    fn pool(free: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        let address = |block: u64| POOL + 48 + 64 * block;
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let mut at = FREEBLOCK;
        for &block in free {
            put(at, address(block));
            at = 48 + 64 * usize::try_from(block).unwrap_or(0);
        }
        put(at, 0);
        put(NEXT_OFFSET, 48 + 64 * 10);
        bytes[SIZE_INDEX..SIZE_INDEX + 4].copy_from_slice(&3_u32.to_le_bytes());
        bytes
    }

    fn survivors(blocks: &[u64]) -> Survivors {
        let mut survivors = Survivors::default();
        for block in blocks {
            survivors.add(ProcAddr(POOL + 48 + 64 * block), ByteCount(64), MonotonicNs(5));
        }
        survivors
    }

    #[track_caller]
    fn check(survivors: &mut Survivors, bytes: Option<&[u8]>, began: u64, expected: &[u64]) {
        let alive = survivors.check(MonotonicNs(began), 4096, |at| {
            assert_eq!(at, ProcAddr(POOL));
            bytes.map(<[u8]>::to_vec)
        });
        let blocks: Vec<u64> = alive.iter().map(|addr| (addr - POOL - 48) / 64).collect();
        assert_eq!(blocks, expected);
    }

    #[test]
    fn a_block_that_is_free_or_was_never_handed_out_is_not_in_use() {
        let mut survivors = survivors(&[1, 2, 3, 12]);
        check(&mut survivors, Some(&pool(&[7, 2])), 10, &[1, 3]);
        check(&mut survivors, Some(&pool(&[1, 7, 2])), 20, &[3]);
        check(&mut survivors, None, 30, &[]);
        check(&mut survivors, Some(&pool(&[])), 40, &[]);
    }

    #[test]
    fn a_block_whose_pool_is_another_classs_is_gone() {
        let mut survivors = survivors(&[1, 2]);
        check(&mut survivors, Some(&pool(&[])), 10, &[1, 2]);
        let mut bytes = pool(&[]);
        bytes[SIZE_INDEX] = 4;
        check(&mut survivors, Some(&bytes), 20, &[]);
    }

    #[test]
    fn a_block_that_is_another_object_now_is_not_the_same() {
        let mut survivors = survivors(&[1, 2]);
        check(&mut survivors, Some(&pool(&[])), 10, &[1, 2]);
        let mut bytes = pool(&[]);
        bytes[48 + 64 + TYPES[0]] = 1;
        check(&mut survivors, Some(&bytes), 20, &[2]);
    }

    #[test]
    fn there_is_room_for_new_ones_however_many_stay() {
        let mut survivors = survivors(&[1, 2]);
        for audit in 0..u64::from(CHECKS) {
            check(&mut survivors, Some(&pool(&[])), 10 + audit, &[1, 2]);
        }
        assert!(survivors.samples.is_empty());
    }

    #[test]
    fn what_is_newer_than_the_audit_waits() {
        let mut survivors = survivors(&[1]);
        let alive = survivors.check(MonotonicNs(5), 4096, |_| panic!("nothing is old enough"));
        assert_eq!(alive, [0; 0]);
        check(&mut survivors, Some(&pool(&[])), 6, &[1]);
    }

    proptest! {
        #[test]
        fn whatever_the_memory_holds_the_walk_ends(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            first in any::<u64>(),
            near in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if let Some(place) = bytes.get_mut(8..16) {
                let at = if near { POOL + first % 300 } else { first };
                place.copy_from_slice(&at.to_le_bytes());
            }
            let alive = survivors(&[0, 1, 2]).check(MonotonicNs(10), 4096, |_| Some(bytes.clone()));
            prop_assert!(alive.len() <= 3);
        }
    }
}
