//! Where the pools of a process are looked for, reading after reading.
//!
//! Apart from `pool_scan`, which makes one search. A reading has a limit; what it does not come to is first at one of the next, and
//! memory of which no event told is searched once, piece by piece. So neither a heap beyond the limit nor much memory without
//! pools keeps anything from being found. Invariant: what is remembered is bounded, and all that is left out is counted.

use std::io;

use rustc_hash::FxHashSet;

use super::{
    left_out::Count,
    pool_scan::{Part, Scan},
};
use crate::{
    ingest::{PoolState, Region},
    python::POOL_HEADER_BYTES,
    units::{MonotonicNs, ProcAddr},
};

/// Parts remembered of each kind; four times what one reading comes to.
const MOST: usize = 1 << 14;
/// Parts remembered in which there may be a pool: as many as one reading comes to.
const MOST_TOUCHED: usize = 1 << 12;

/// Those of one process.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Parts in which events told of a block since the last reading: who acquired a pool there is to be known by the next.
    told: FxHashSet<Part>,
    /// Those to which the last reading did not come.
    left: Vec<Part>,
    /// Those in which it found pools.
    found: FxHashSet<Part>,
    /// Parts in which memory was touched while no event would have told of a pool, and no reading has come since.
    touched: FxHashSet<Part>,
    /// The first part that is to be searched though no event told of it, and all behind it.
    unsearched: Option<Part>,
    /// Those that were too many.
    left_out: Count,
}

impl Places {
    /// Where its pools are is not known: anywhere.
    pub(super) fn search_all(&mut self) {
        self.unsearched = Some(Part::default());
    }

    /// Whether there is memory that no reading has come to yet.
    pub(super) fn is_searching(&self) -> bool {
        self.unsearched.is_some()
    }

    /// There is a block in it.
    pub(super) fn block(&mut self, part: Part, time: MonotonicNs) {
        if self.told.len() < MOST {
            self.told.insert(part);
        } else if !self.told.contains(&part) {
            self.left_out.add(1, time);
        }
    }

    /// Memory was touched in it, while no event tells of a pool that is acquired: there may be one. A new arena would be found only once
    /// somebody is seen to acquire a pool beside it.
    pub(super) fn touched(&mut self, part: Part) {
        if self.touched.len() < MOST_TOUCHED {
            self.touched.insert(part);
        }
    }

    /// Reads `limit` places at most, in `regions` where nothing is known of them.
    pub(super) fn scan(
        &mut self,
        pool_bytes: u32,
        limit: usize,
        regions: &[Region],
        now: MonotonicNs,
        mut read: impl FnMut(&[ProcAddr], &mut Vec<Option<[u8; POOL_HEADER_BYTES]>>) -> io::Result<()>,
    ) -> io::Result<Scan> {
        let mut scan = Scan::new(pool_bytes);
        let mut known = self.told.iter().chain(&self.left).chain(&self.found).copied();
        let mut unsearched = None;
        if let Some(from) = self.unsearched {
            // As much for either, so that none keeps the other from its end.
            scan.search(&mut known, limit / 2, &mut read)?;
            let mut parts = regions
                .iter()
                .flat_map(|region| from.between(region.start, region.end));
            scan.search(&mut parts, limit, &mut read)?;
            unsearched = parts.next();
        }
        scan.search(&mut known, limit, &mut read)?;
        let mut left = scan.left(known);
        // With what is left of the limit: most of it is no arena.
        scan.search(&mut self.touched.iter().copied(), limit, &mut read)?;
        self.touched.retain(|part| !scan.seen.contains(part));
        self.left_out
            .at_least(left.len().saturating_sub(MOST) as u64, now);
        left.truncate(MOST);
        self.told.clear();
        self.left = left;
        self.found.clone_from(&scan.parts);
        self.unsearched = unsearched;
        Ok(scan)
    }

    /// Whether the last reading came to all of them.
    pub(super) fn are_read(&self) -> bool {
        self.left.is_empty() && !self.is_searching()
    }

    /// Whether each was read by some reading. `pools`: what is known of them, in order of addresses.
    pub(super) fn are_known(&self, pools: &[PoolState]) -> bool {
        let of = |pool: &PoolState| Part::of(ProcAddr(pool.address));
        let has_pool = |part: &Part| pools.binary_search_by_key(part, of).is_ok();
        !self.is_searching() && self.left.iter().all(has_pool)
    }

    /// How many were too many.
    pub(super) fn left_out(&self) -> Count {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const POOL: u32 = 16384;
    const PART: u64 = 1 << 20;

    /// A header of a pool with one block in use.
    fn header() -> [u8; POOL_HEADER_BYTES] {
        let mut header = [0; POOL_HEADER_BYTES];
        let (words, _) = header.as_chunks_mut::<4>();
        for (word, value) in words
            .iter_mut()
            .zip([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, POOL - 16])
        {
            *word = value.to_le_bytes();
        }
        header
    }

    /// Reads so many parts at most, of a process with one pool in each of these; which were read, in their order.
    fn read(places: &mut Places, pools: &[u64], parts: usize, memory: std::ops::Range<u64>) -> Vec<u64> {
        let region = Region {
            start: memory.start * PART,
            end: memory.end * PART,
            anonymous: PART,
            huge: 0,
        };
        let mut order = Vec::new();
        let read = |at: &[ProcAddr], headers: &mut Vec<_>| {
            let first = at.first().unwrap().get();
            order.push(first / PART);
            headers.extend(at.iter().map(|at| {
                let is_pool = at.get() == first && pools.contains(&(first / PART));
                is_pool.then(header)
            }));
            Ok(())
        };
        let scan = places.scan(POOL, parts * 64, &[region], MonotonicNs(1), read);
        assert_eq!(scan.unwrap().seen.len(), order.len());
        order
    }

    fn part(number: u64) -> Part {
        Part::of(ProcAddr(number * PART))
    }

    #[test]
    fn memory_without_pools_is_searched_once_and_no_reading_takes_too_long() {
        let mut places = Places::default();
        places.search_all();
        let mut all = Vec::new();
        for _ in 0..20 {
            assert!(places.is_searching() && !places.are_known(&[]));
            let order = read(&mut places, &[150], 10, 100..200);
            assert!(order.len() <= 10);
            all.extend(order);
            if !places.is_searching() {
                break;
            }
        }
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once, (100..200).collect::<Vec<_>>());
        // Only the part with a pool and those beside it are read again.
        assert!(all.len() < 100 + 20, "{}", all.len());
        for _ in 0..2 {
            assert_eq!(read(&mut places, &[150], 10, 100..200), [150, 149, 151]);
            assert!(places.are_read());
        }
    }

    #[test]
    fn a_heap_beyond_the_limit_has_its_turn_part_by_part() {
        let mut places = Places::default();
        let pools: Vec<u64> = (0..100).map(|number| number * 10).collect();
        for &number in &pools {
            places.block(part(number), MonotonicNs(1));
        }
        read(&mut places, &pools, 40, 0..0);
        let mut last = vec![0; 1000];
        for turn in 1..40 {
            // What an event told of is never left for later.
            places.block(part(turn * 10), MonotonicNs(1));
            let order = read(&mut places, &pools, 40, 0..0);
            assert!(order.len() == 40 && order.contains(&(turn * 10)), "{order:?}");
            assert!(!places.are_read());
            for number in order {
                if let Some(last) = last.get_mut(usize::try_from(number).unwrap()) {
                    *last = turn;
                }
            }
        }
        // A hundred with pools, and two beside each.
        let oldest = pools
            .iter()
            .filter_map(|&number| last.get(usize::try_from(number).ok()?))
            .min();
        assert!(oldest.is_some_and(|&turn| turn >= 40 - 10), "{oldest:?}");
    }

    #[test]
    fn where_memory_was_touched_is_looked_at_once_and_last() {
        let mut places = Places::default();
        places.block(part(10), MonotonicNs(1));
        for number in [30, 40, 50] {
            places.touched(part(number));
        }
        // There is a pool in one of them, which is read again then.
        let mut all = read(&mut places, &[10, 40], 5, 0..0);
        assert_eq!(all.first(), Some(&10));
        all.extend(read(&mut places, &[10, 40], 20, 0..0));
        all.extend(read(&mut places, &[10, 40], 20, 0..0));
        let times = |number: u64| all.iter().filter(|&&read| read == number).count();
        assert_eq!([30, 50].map(times), [1, 1]);
        assert!(times(10) == 3 && times(40) >= 2, "{all:?}");
        assert!(places.are_read());
        for number in 0..MOST_TOUCHED as u64 + 5 {
            places.touched(part(number));
        }
        assert_eq!(places.touched.len(), MOST_TOUCHED);
    }

    #[test]
    fn parts_left_for_later_are_known_once_they_were_read() {
        let mut places = Places::default();
        for number in [0, 10, 20] {
            places.block(part(number), MonotonicNs(1));
        }
        let mut pools: Vec<PoolState> = Vec::new();
        read(&mut places, &[0, 10, 20], 2, 0..0);
        assert!(!places.are_known(&pools));
        for number in [0, 1, 9, 10, 11, 19, 20, 21] {
            pools.push(PoolState {
                address: number * PART + 3 * u64::from(POOL),
                ..PoolState::default()
            });
        }
        assert!(places.are_known(&pools) && !places.are_read());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_rest_is_counted() {
        let mut places = Places::default();
        for number in 0..MOST as u64 + 7 {
            places.block(part(number * 3), MonotonicNs(5));
            places.block(part(0), MonotonicNs(6));
        }
        let mut expected = Count::default();
        expected.add(7, MonotonicNs(5));
        assert_eq!((places.told.len(), places.left_out()), (MOST, expected));
        read(&mut places, &[], 1, 0..0);
        for number in 0..MOST as u64 {
            places.block(part(number * 3 + 1), MonotonicNs(7));
        }
        read(&mut places, &[], 1, 0..0);
        assert_eq!(places.left.len(), MOST);
        assert_ne!(places.left_out(), expected);
    }
}
