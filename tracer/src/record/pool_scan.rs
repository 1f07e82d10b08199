//! Finds the pools of a process that are in use, from a few places where blocks were seen.
//!
//! Apart from `audit`, which says when and of whom. What the tracer has seen only starts the search: pools lie in
//! arenas and arenas beside each other, so that pools of which no block was ever seen are found too; otherwise what the
//! tracer misses would be missing on both sides of the comparison. Invariant: only aligned places near a pool in
//! use are read, and at most as many as asked for.

use std::{collections::VecDeque, io};

use rustc_hash::FxHashSet;

use crate::{
    python::{POOL_HEADER_BYTES, Pool, SIZE_CLASSES, pool_in_use},
    units::ProcAddr,
};

/// An arena has this many bytes or less (256 KiB up to 3.9), or twice as many (3.15 with huge pages), and need not
/// be aligned: an arena with a pool in one part of the address space reaches into its neighbours at most.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L210-L234>
const PART_BITS: u32 = 20;

/// A part of the address space, by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Part(u64);

impl Part {
    /// The part that an address is in.
    pub(super) fn of(addr: ProcAddr) -> Self {
        Self(addr.get() >> PART_BITS)
    }

    /// The parts from one address up to another, without those before this one.
    pub(super) fn between(self, start: u64, end: u64) -> impl Iterator<Item = Self> {
        let first = self.0.max(start >> PART_BITS);
        (first..=end.saturating_sub(1) >> PART_BITS).map(Self)
    }

    /// The places in it where the header of a pool can stand.
    fn places(self, pool_bytes: u32) -> impl Iterator<Item = ProcAddr> {
        let start = self.0 << PART_BITS;
        (0..1 << PART_BITS)
            .step_by(pool_bytes as usize)
            .map(move |by| ProcAddr(start + by))
    }

    fn neighbours(self) -> impl Iterator<Item = Self> {
        let last = u64::MAX >> PART_BITS;
        let above = self.0.checked_add(1).filter(|&part| part <= last);
        self.0.checked_sub(1).into_iter().chain(above).map(Self)
    }
}

/// A search, and what it has found so far.
#[derive(Debug)]
pub(super) struct Scan {
    pool_bytes: u32,
    /// Used blocks of each size class.
    pub(super) used: [u64; SIZE_CLASSES],
    /// Pools in use, in no order.
    pub(super) pools: Vec<(ProcAddr, Pool)>,
    /// Places that were read.
    pub(super) read: usize,
    /// The parts that were read,
    pub(super) seen: FxHashSet<Part>,
    /// ... those of them that hold pools in use,
    pub(super) parts: FxHashSet<Part>,
    /// ... and those to which the search leads and has not come.
    open: VecDeque<Part>,
}

impl Scan {
    /// Nothing is found yet.
    pub(super) fn new(pool_bytes: u32) -> Self {
        Self {
            pool_bytes,
            used: [0; SIZE_CLASSES],
            pools: Vec::new(),
            read: 0,
            seen: FxHashSet::default(),
            parts: FxHashSet::default(),
            open: VecDeque::new(),
        }
    }

    /// Searches these parts, and then around the pools that were found. `read` appends what stands at each of the given places;
    /// at most `limit` are read, with those of searches before. Parts to which it does not come stay in `from`, or are
    /// [`Scan::left`].
    pub(super) fn search(
        &mut self,
        from: &mut impl Iterator<Item = Part>,
        limit: usize,
        mut read: impl FnMut(&[ProcAddr], &mut Vec<Option<[u8; POOL_HEADER_BYTES]>>) -> io::Result<()>,
    ) -> io::Result<()> {
        // A pool has no other size; anything smaller would be a search without an end.
        if !self.pool_bytes.is_power_of_two() || !(4096..=1 << PART_BITS).contains(&self.pool_bytes) {
            return Ok(());
        }
        let (mut places, mut headers) = (Vec::new(), Vec::new());
        let of_part = (1 << PART_BITS) / self.pool_bytes as usize;
        while self.read + of_part <= limit {
            // In this order each part has its turn, whatever is found.
            let Some(part) = from.next().or_else(|| self.open.pop_front()) else {
                break;
            };
            if !self.seen.insert(part) {
                continue;
            }
            places.clear();
            places.extend(part.places(self.pool_bytes));
            headers.clear();
            read(&places, &mut headers)?;
            self.read += places.len();
            let before = self.pools.len();
            for (header, &place) in headers.iter().zip(&places) {
                let pool = header
                    .as_ref()
                    .and_then(|header| pool_in_use(header, place, self.pool_bytes));
                if let Some(pool) = pool
                    && let Some(used) = self.used.get_mut(pool.class)
                {
                    *used += u64::from(pool.used);
                    self.pools.push((place, pool));
                }
            }
            if self.pools.len() > before {
                self.parts.insert(part);
                let unseen = part.neighbours().filter(|next| !self.seen.contains(next));
                self.open.extend(unseen);
            }
        }
        Ok(())
    }

    /// Parts beside pools to which the search has not come, and of those others that it has not come to; none twice.
    pub(super) fn left(&self, others: impl Iterator<Item = Part>) -> Vec<Part> {
        let mut left = FxHashSet::default();
        others
            .chain(self.open.iter().copied())
            .filter(|part| !self.seen.contains(part) && left.insert(*part))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const POOL: u32 = 16384;
    const PART: u64 = 1 << PART_BITS;

    type Memory = BTreeMap<u64, [u8; POOL_HEADER_BYTES]>;

    /// Memory with pools of this many used 16-byte blocks at these addresses.
    fn memory(pools: &[(u64, u32)]) -> Memory {
        let header = |count: u32| {
            let mut header = [0; POOL_HEADER_BYTES];
            let words = [0, 48 + 16 * count, POOL - 16]
                .into_iter()
                .flat_map(u32::to_le_bytes);
            header
                .iter_mut()
                .zip(count.to_le_bytes())
                .for_each(|(to, from)| *to = from);
            header
                .iter_mut()
                .skip(36)
                .zip(words)
                .for_each(|(to, from)| *to = from);
            header
        };
        pools.iter().map(|&(at, count)| (at, header(count))).collect()
    }

    /// What is found, and the parts that are left.
    fn search(memory: &Memory, known: &[u64], limit: usize) -> (Scan, Vec<Part>) {
        let mut known = known.iter().map(|&addr| Part::of(ProcAddr(addr)));
        let mut scan = Scan::new(POOL);
        let read = |places: &[ProcAddr], headers: &mut Vec<_>| {
            headers.extend(places.iter().map(|place| memory.get(&place.get()).copied()));
            Ok(())
        };
        scan.search(&mut known, limit, read).unwrap();
        let left = scan.left(known);
        (scan, left)
    }

    #[track_caller]
    fn check(pools: &[(u64, u32)], known: &[u64], expected: (u64, u64)) {
        let (found, left) = search(&memory(pools), known, usize::MAX);
        assert_eq!(left, []);
        assert_eq!((found.pools.len() as u64, found.used.iter().sum()), expected);
    }

    #[test]
    fn pools_beside_known_ones_are_found_and_far_ones_are_not() {
        let at = 100 * PART;
        check(&[(at, 3)], &[at + 48], (1, 3));
        check(&[(at, 3), (at + 5 * u64::from(POOL), 7)], &[at], (2, 10));
        check(&[(at, 3), (at - PART, 7), (at - 2 * PART, 9)], &[at], (3, 19));
        check(&[(at, 3), (at + 2 * PART, 7)], &[at], (1, 3));
        check(&[(at, 3)], &[at + 9 * PART], (0, 0));
        check(&[], &[0, u64::MAX], (0, 0));
    }

    #[test]
    fn what_a_search_does_not_come_to_is_left() {
        let pools: Vec<_> = (1..50).map(|part| (part * PART, 1)).collect();
        let known = [3 * PART, 30 * PART, 40 * PART, 30 * PART, 20 * PART];
        let (found, left) = search(&memory(&pools), &known, 64 * 3 + 63);
        assert_eq!((found.read, found.pools.len()), (64 * 3, 3));
        assert_eq!(left, [20, 2, 4, 29, 31, 39, 41].map(Part));
        let (found, left) = search(&memory(&pools), &known, 64 * 51);
        assert_eq!((found.pools.len(), found.parts.len(), left), (49, 49, Vec::new()));
    }

    #[test]
    fn a_process_that_cannot_be_read_is_an_error() {
        let mut parts = [Part::of(ProcAddr(PART))].into_iter();
        let gone = Scan::new(POOL).search(&mut parts, 1 << 20, |_, _| Err(io::ErrorKind::NotFound.into()));
        assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_size_that_no_pool_has_is_not_searched_with() {
        for pool_bytes in [0, 1, 16, 5000, 1 << 21] {
            let mut scan = Scan::new(pool_bytes);
            scan.search(&mut [Part(1)].into_iter(), 1 << 20, |_, _| unreachable!())
                .unwrap();
            assert_eq!(scan.read, 0);
        }
    }

    proptest! {
        #[test]
        fn hostile_memory_ends_the_search_within_its_limit(
            byte in any::<u8>(), limit in 0usize..5000, known in prop::collection::vec(any::<u64>(), 0..20)
        ) {
            let mut parts = known.iter().map(|&addr| Part::of(ProcAddr(addr)));
            let one = memory(&[(0, 1)]).remove(&0).unwrap();
            let mut read = 0;
            // Every place looks like a pool, or like nothing at all.
            let mut found = Scan::new(POOL);
            found.search(&mut parts, limit, |places, headers| {
                read += places.len();
                let header = if byte.is_multiple_of(2) { one } else { [byte; POOL_HEADER_BYTES] };
                headers.extend(places.iter().map(|_| Some(header)));
                Ok(())
            }).unwrap();
            prop_assert!(read <= limit && found.read == read);
            prop_assert!(found.pools.len() <= read);
        }
    }
}
