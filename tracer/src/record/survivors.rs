//! Which of the blocks that were seen in a sampling window are still in use: read from their pools, not traced.
//!
//! A block is free if it is on its pool's list of free blocks, was never handed out, or its pool is another class's now. One that was freed and handed out
//! again looks in use; what its first words say (an object's type, and more of one that does not change) gives it away in most
//! cases. Invariant: a process is asked
//! for a bounded number of pools at each audit, and whatever its memory holds, the walk ends.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    ingest::PoolState,
    units::{ByteCount, MonotonicNs, ProcAddr},
};

/// Blocks remembered of one process.
const MAX_SAMPLES: usize = 1 << 16;
/// Audits that tell of a sample: it may lie before some that began in its window, and two later ones settle it.
const CHECKS: u8 = 5;
/// Pools walked at one audit.
const MAX_POOLS: usize = 1024;
/// `offsetof(struct pool_header, freeblock)`, and of `nextoffset`.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L254-L264>
const FREEBLOCK: usize = 8;
const NEXT_OFFSET: usize = 40;
/// Bytes between two size classes.
const ALIGNMENT: u64 = 16;
/// Where the words of a block begin that are looked at.
const WORDS_FROM: u64 = 8;

/// The second word of a block and the two behind it. An object's type is in the first of them, behind its count, and a size and
/// a hash, digits or a value follow; or in the last, where two words of the collector's come first, which change.
pub(super) type Words = [u8; 24];

/// The memory of a process.
pub(super) trait Memory {
    /// A whole pool.
    fn pool(&mut self, at: ProcAddr) -> Option<Vec<u8>>;

    /// What stands at each place, in their order.
    fn words(&mut self, places: &[ProcAddr]) -> Vec<Option<Words>>;
}

/// A block that was seen.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Bytes of its class.
    size: u64,
    time: u64,
    /// What stood there when it was first looked at.
    content: Option<Content>,
    checks: u8,
}

/// What does not change of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Type, and what follows it.
    Plain([u64; 3]),
    /// Type of one that the collector knows.
    Collected(u64),
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
                content: None,
                checks: 0,
            };
            return self.samples.insert(addr.get(), sample).is_none();
        }
        true
    }

    /// Those that are still in use, of the ones seen before `began`; the others are forgotten, and these after some audits.
    /// `pools`: all of them as they have just been read, in order of addresses.
    pub(super) fn check(
        &mut self,
        began: MonotonicNs,
        pool_bytes: u32,
        pools: &[PoolState],
        mut memory: impl Memory,
    ) -> Vec<u64> {
        let mask = u64::from(pool_bytes).wrapping_sub(1);
        let mut later = FxHashMap::default();
        // Of a full pool only the samples need to be looked at; the others are walked.
        let mut full = Vec::new();
        let mut walked: BTreeMap<u64, Vec<(u64, Sample)>> = BTreeMap::new();
        for (addr, sample) in self.samples.drain() {
            if sample.time >= began.get() {
                later.insert(addr, sample);
                continue;
            }
            let at = addr & !mask;
            let known = pools.binary_search_by_key(&at, |pool| pool.address);
            let pool = known.ok().and_then(|index| pools.get(index));
            match pool.filter(|pool| (u64::from(pool.class) + 1) * ALIGNMENT == sample.size) {
                Some(pool) if pool.used == pool.carved => full.push((addr, sample)),
                Some(_) => walked.entry(at).or_default().push((addr, sample)),
                None => {}
            }
        }
        let places: Vec<ProcAddr> = full.iter().map(|(addr, _)| ProcAddr(addr + WORDS_FROM)).collect();
        let words = memory.words(&places);
        let mut in_use: Vec<(u64, Sample, Words)> = full
            .into_iter()
            .zip(words)
            .filter_map(|((addr, sample), words)| Some((addr, sample, words?)))
            .collect();
        for (pool, samples) in walked.into_iter().take(MAX_POOLS) {
            let Some(bytes) = memory.pool(ProcAddr(pool)) else {
                continue;
            };
            let free = free_blocks(pool, &bytes);
            let next = word32(&bytes, NEXT_OFFSET).map_or(0, u64::from);
            in_use.extend(samples.into_iter().filter_map(|(addr, sample)| {
                let is_in_use = addr - pool < next && !free.contains(&addr);
                let from = usize::try_from(addr - pool + WORDS_FROM).ok()?;
                let words = bytes.get(from..).and_then(<[u8]>::first_chunk).copied();
                is_in_use.then(|| (addr, sample, words.unwrap_or_default()))
            }));
        }
        let mut seconds: FxHashMap<u64, u32> = FxHashMap::default();
        for (_, _, words) in &in_use {
            *seconds.entry(numbers(words)[0]).or_default() += 1;
        }
        let mut alive = Vec::new();
        for (addr, mut sample, words) in in_use {
            let now = numbers(&words);
            // What stands in the place of the type in several blocks is a type, and not a place in a list of the collector's.
            let is_type = now[0] != 0 && seconds.get(&now[0]).is_some_and(|&times| times > 1);
            let same = match sample.content {
                // A hash is not there until somebody asks for it.
                Some(Content::Plain(before)) => {
                    before[..2] == now[..2] && [now[2], u64::MAX].contains(&before[2])
                }
                Some(Content::Collected(before)) => before == now[2],
                None => true,
            };
            if !same {
                continue;
            }
            alive.push(addr);
            sample.content.get_or_insert(if is_type {
                Content::Plain(now)
            } else {
                Content::Collected(now[2])
            });
            sample.checks += 1;
            if sample.checks < CHECKS {
                later.insert(addr, sample);
            }
        }
        self.samples = later;
        alive.sort_unstable();
        alive
    }
}

fn numbers(words: &Words) -> [u64; 3] {
    [0, 8, 16].map(|at| word(words, at).unwrap_or(0))
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
        bytes
    }

    fn state(class: u8, used: u16) -> PoolState {
        PoolState {
            address: POOL,
            class,
            used,
            carved: 10,
            arena: 0,
        }
    }

    fn survivors(blocks: &[u64]) -> Survivors {
        let mut survivors = Survivors::default();
        for block in blocks {
            assert!(survivors.add(ProcAddr(POOL + 48 + 64 * block), ByteCount(64), MonotonicNs(5)));
        }
        survivors
    }

    /// Memory that holds one pool, which must not be read as a whole if it is full.
    struct Held<'a> {
        bytes: Option<&'a [u8]>,
        is_full: bool,
    }

    impl Memory for Held<'_> {
        fn pool(&mut self, at: ProcAddr) -> Option<Vec<u8>> {
            assert_eq!((at, self.is_full), (ProcAddr(POOL), false));
            self.bytes.map(<[u8]>::to_vec)
        }

        fn words(&mut self, places: &[ProcAddr]) -> Vec<Option<Words>> {
            assert!(places.is_empty() || self.is_full);
            let at = |place: &ProcAddr| {
                let from = usize::try_from(place.get() - POOL).ok()?;
                self.bytes?.get(from..)?.first_chunk().copied()
            };
            places.iter().map(at).collect()
        }
    }

    #[track_caller]
    fn check_in(
        survivors: &mut Survivors,
        state: PoolState,
        bytes: Option<&[u8]>,
        began: u64,
        expected: &[u64],
    ) {
        let is_full = state.used == state.carved;
        let alive = survivors.check(MonotonicNs(began), 4096, &[state], Held { bytes, is_full });
        let blocks: Vec<u64> = alive.iter().map(|addr| (addr - POOL - 48) / 64).collect();
        assert_eq!(blocks, expected);
    }

    #[track_caller]
    fn check(survivors: &mut Survivors, bytes: Option<&[u8]>, began: u64, expected: &[u64]) {
        check_in(survivors, state(3, 7), bytes, began, expected);
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
    fn all_blocks_of_a_full_pool_are_in_use() {
        let mut survivors = survivors(&[1, 2]);
        check_in(&mut survivors, state(3, 10), Some(&pool(&[])), 10, &[1, 2]);
        let mut bytes = pool(&[]);
        bytes[48 + 64 + 24] = 1;
        check_in(&mut survivors, state(3, 10), Some(&bytes), 20, &[2]);
    }

    #[test]
    fn a_hash_that_was_asked_for_makes_no_other_object() {
        let mut survivors = survivors(&[1, 2]);
        let mut bytes = pool(&[]);
        for (block, hash) in [(64, [0xff; 8]), (128, [7; 8])] {
            bytes[48 + block + 8] = 1;
            bytes[48 + block + 24..48 + block + 32].copy_from_slice(&hash);
        }
        check(&mut survivors, Some(&bytes), 10, &[1, 2]);
        bytes[48 + 64 + 24..48 + 64 + 32].copy_from_slice(&[3; 8]);
        check(&mut survivors, Some(&bytes), 20, &[1, 2]);
    }

    /// A word of the first block is another one now; which of the two are the same. `second`: the words that stand where a type
    /// does, or the collector's.
    #[track_caller]
    fn check_changed(second: [u8; 2], changed: usize, expected: &[u64]) {
        let mut survivors = survivors(&[1, 2]);
        let mut bytes = pool(&[]);
        (bytes[48 + 64 + 8], bytes[48 + 128 + 8]) = (second[0], second[1]);
        check(&mut survivors, Some(&bytes), 10, &[1, 2]);
        bytes[48 + 64 + changed] = 9;
        check(&mut survivors, Some(&bytes), 20, expected);
    }

    #[test]
    fn a_block_that_is_another_object_now_is_not_the_same() {
        check_changed([1, 1], 8, &[2]);
        check_changed([1, 1], 16, &[2]);
        check_changed([1, 1], 24, &[2]);
        check_changed([1, 1], 0, &[1, 2]);
        // The collector's words change, and the count behind them.
        check_changed([1, 2], 8, &[1, 2]);
        check_changed([1, 2], 16, &[1, 2]);
        check_changed([1, 2], 24, &[2]);
    }

    #[test]
    fn a_block_whose_pool_is_another_classs_is_gone() {
        let mut survivors = survivors(&[1, 2]);
        check(&mut survivors, Some(&pool(&[])), 10, &[1, 2]);
        check_in(&mut survivors, state(4, 7), Some(&pool(&[])), 20, &[]);
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
        check(&mut survivors, None, 5, &[]);
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
            let held = Held { bytes: Some(&bytes), is_full: false };
            let alive = survivors(&[0, 1, 2]).check(MonotonicNs(10), 4096, &[state(3, 7)], held);
            prop_assert!(alive.len() <= 3);
        }
    }
}
