//! Which of the blocks that were seen in sampling windows are still in use: read from their pools, not traced.
//!
//! A block is free if it is on its pool's list of free blocks, was never handed out, or its pool is another class's now. One that was freed and handed out
//! again looks in use; what its first words say (`content`) gives it away in most cases. Those of the newest window are looked at
//! often, which tells how long each stays; older ones whenever the heap is read. Invariant: who reads what the capture is told knows
//! which blocks are looked at, and however many were seen, their number is bounded.

use std::{collections::BTreeMap, io};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    content::{Content, Types, WORDS_BYTES, WORDS_FROM, Words, words},
    left_out::Count,
    types::KnownTypes,
};
use crate::{
    ingest::PoolState,
    units::{ByteCount, MonotonicNs, ProcAddr},
};

/// Blocks remembered of one process.
const MAX_SAMPLES: usize = 1 << 14;
/// Of the newest window, once they were looked at, and of all before it.
const MOST_NEW: usize = 1 << 10;
const MOST_OLD: usize = 1 << 11;
/// Of either, of all processes.
pub(super) const MOST_IN_ALL: usize = 1 << 16;
/// Pools walked at one look; blocks of others are taken for being in use still.
const MAX_POOLS: usize = 1 << 11;
/// `offsetof(struct pool_header, freeblock)`, and of `nextoffset`.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L254-L264>
const FREEBLOCK: usize = 8;
const NEXT_OFFSET: usize = 40;
/// Bytes between two size classes.
const ALIGNMENT: u64 = 16;

/// The memory of a process. An error if nothing of it can be read: it is about to end.
pub(super) trait Memory {
    /// A whole pool, if it is there.
    fn pool(&mut self, at: ProcAddr) -> io::Result<Option<Vec<u8>>>;

    /// What stands at each place, in their order.
    fn words(&mut self, places: &[ProcAddr]) -> io::Result<Vec<Option<Words>>>;
}

/// Which blocks are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    NewestWindow,
    AllWindows,
}

/// What a look found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Blocks that are no longer in use.
    pub(super) gone: Vec<u64>,
    /// Those that are, and are not looked at any more, as there are too many.
    pub(super) left: Vec<u64>,
    /// Those for which there was no room when they were seen.
    pub(super) refused: Vec<u64>,
}

/// A block that was seen.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Bytes of its class.
    size: u64,
    time: u64,
    content: Option<Content>,
}

/// Those of one process, by address.
#[derive(Debug, Default)]
pub(super) struct Survivors {
    samples: FxHashMap<u64, Sample>,
    /// When the last two windows were over; 0 for none.
    ends: [u64; 2],
    /// What is left to this process of [`MOST_IN_ALL`].
    most: usize,
    /// Blocks for which there was no room.
    refused: FxHashSet<u64>,
    types: KnownTypes,
    /// How many those were so far.
    left_out: Count,
}

impl Survivors {
    /// A block was allocated in a window; whether it is the first that was seen there.
    pub(super) fn add(&mut self, addr: ProcAddr, size: ByteCount, time: MonotonicNs) -> bool {
        // The newest at an address is the one that is there.
        if self.samples.len() >= MAX_SAMPLES && !self.samples.contains_key(&addr.get()) {
            let is_first = self.refused.len() >= MAX_SAMPLES || self.refused.insert(addr.get());
            self.left_out.add(u64::from(is_first), time);
            return is_first;
        }
        self.refused.remove(&addr.get());
        let sample = Sample {
            size: size.get(),
            time: time.get(),
            content: None,
        };
        self.samples.insert(addr.get(), sample).is_none()
    }

    /// For how many there was no room.
    pub(super) fn left_out(&self) -> Count {
        self.left_out
    }

    /// A window is over in which the process was hit. `most`: so many blocks of it are looked at on, and of all before it.
    pub(super) fn window_over(&mut self, over: MonotonicNs, most: usize) {
        let [_, last] = self.ends;
        self.ends = [last, over.get()];
        self.most = most;
    }

    /// The first and the last time at which blocks were allocated that can be looked at, if all that happened before `settled` is known.
    /// Those of a window are looked at together, once it is over.
    pub(super) fn due(&self, of: Of, settled: MonotonicNs) -> Option<(u64, u64)> {
        let [before, newest] = self.ends;
        match of {
            _ if newest == 0 => None,
            Of::NewestWindow => (newest < settled.get()).then_some((before + 1, newest)),
            Of::AllWindows if newest < settled.get() => Some((0, newest)),
            Of::AllWindows => (before > 0).then_some((0, before)),
        }
    }

    /// The pools around the blocks that were allocated between two times.
    pub(super) fn pools(&self, first: u64, last: u64, pool_bytes: u32) -> Vec<ProcAddr> {
        let mask = u64::from(pool_bytes).wrapping_sub(1);
        let samples = self.samples.iter();
        let wanted = samples.filter(|(_, sample)| (first..=last).contains(&sample.time));
        let pools: FxHashSet<u64> = wanted.map(|(addr, _)| addr & !mask).collect();
        let mut pools: Vec<ProcAddr> = pools.into_iter().map(ProcAddr).collect();
        pools.sort_unstable();
        pools
    }

    /// Looks at those that were allocated between two times, and forgets what it finds. `pools`: those around them that are in use, as
    /// they have just been read, in order of addresses. Nothing is forgotten if the process cannot be read.
    pub(super) fn check(
        &mut self,
        first: u64,
        last: u64,
        pool_bytes: u32,
        pools: &[PoolState],
        mut memory: impl Memory,
    ) -> io::Result<Found> {
        let mut found = Found::default();
        // Of a full pool only the samples need to be looked at; the others are walked.
        let mut full = Vec::new();
        let mut walked: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        let mask = u64::from(pool_bytes).wrapping_sub(1);
        for (&addr, sample) in &self.samples {
            if !(first..=last).contains(&sample.time) {
                continue;
            }
            let at = addr & !mask;
            let known = pools.binary_search_by_key(&at, |pool| pool.address);
            let pool = known.ok().and_then(|index| pools.get(index));
            match pool.filter(|pool| (u64::from(pool.class) + 1) * ALIGNMENT == sample.size) {
                Some(pool) if pool.used == pool.carved => full.push((addr, sample.size)),
                Some(_) => walked.entry(at).or_default().push((addr, sample.size)),
                None => found.gone.push(addr),
            }
        }
        let in_use = in_use(&full, walked, mask, &mut memory, &mut found.gone)?;
        let mut types = Types::of(in_use.iter().map(|(_, size, words)| (*size, words)));
        self.types.learn(types.candidates(), &mut memory)?;
        types.keep(|value| self.types.has(value));
        for (addr, size, words) in in_use {
            if let Some(sample) = self.samples.get_mut(&addr)
                && types.is_another(&mut sample.content, size, &words)
            {
                found.gone.push(addr);
            }
        }
        for addr in &found.gone {
            self.samples.remove(addr);
        }
        let [before, newest] = self.ends;
        if last == newest {
            self.leave(before + 1, newest, MOST_NEW.min(self.most), &mut found.left);
        }
        self.leave(0, before, MOST_OLD.min(self.most), &mut found.left);
        found.refused = std::mem::take(&mut self.refused).into_iter().collect();
        for found in [&mut found.gone, &mut found.left, &mut found.refused] {
            found.sort_unstable();
        }
        Ok(found)
    }

    /// Forgets those between two times that are too many, evenly.
    fn leave(&mut self, first: u64, last: u64, most: usize, left: &mut Vec<u64>) {
        let samples = self.samples.iter();
        let of_kind = samples.filter(|(_, sample)| (first..=last).contains(&sample.time));
        let mut addrs: Vec<u64> = of_kind.map(|(&addr, _)| addr).collect();
        if addrs.len() <= most {
            return;
        }
        addrs.sort_unstable_by_key(|&addr| mixed(addr));
        for addr in addrs.drain(most..) {
            self.samples.remove(&addr);
            left.push(addr);
        }
    }
}

/// Which of these are in use, with their size and their words; the others are `gone`. `full`: in pools without a free block;
/// `walked`: in others, by pool.
fn in_use(
    full: &[(u64, u64)],
    walked: BTreeMap<u64, Vec<(u64, u64)>>,
    mask: u64,
    memory: &mut impl Memory,
    gone: &mut Vec<u64>,
) -> io::Result<Vec<(u64, u64, Words)>> {
    let mut in_use = Vec::new();
    // The last block of a pool can be smaller than what is read; behind the pool there may be nothing.
    let last = |addr: u64| (addr | mask).wrapping_sub(WORDS_BYTES as u64 - 1);
    let place = |addr: u64| addr.saturating_add(WORDS_FROM).min(last(addr));
    let places: Vec<ProcAddr> = full.iter().map(|&(addr, _)| ProcAddr(place(addr))).collect();
    for (&(addr, size), read) in full.iter().zip(memory.words(&places)?) {
        let from = usize::try_from(addr.saturating_add(WORDS_FROM) - place(addr)).unwrap_or(0);
        match read {
            Some(read) => in_use.push((addr, size, words(read.get(from..).unwrap_or_default()))),
            None => gone.push(addr),
        }
    }
    for (pool, samples) in walked.into_iter().take(MAX_POOLS) {
        let bytes = memory.pool(ProcAddr(pool))?.unwrap_or_default();
        let free = free_blocks(pool, &bytes);
        let next = word32(&bytes, NEXT_OFFSET).map_or(0, u64::from);
        for (addr, size) in samples {
            let from = usize::try_from(addr - pool + WORDS_FROM).unwrap_or(usize::MAX);
            if addr - pool < next && !free.contains(&addr) {
                in_use.push((addr, size, words(bytes.get(from..).unwrap_or_default())));
            } else {
                gone.push(addr);
            }
        }
    }
    Ok(in_use)
}

/// An order that has nothing to do with where blocks are, nor with which of them are sampled.
fn mixed(addr: u64) -> u64 {
    let mixed = (addr >> 4)
        .wrapping_add(0x51_7c_c1_b7)
        .wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
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
    #![expect(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        reason = "a test fails by panicking"
    )]

    use proptest::prelude::*;

    use super::*;

    const POOL: u64 = 0x7f00_0001_0000;
    const BYTES: usize = 4096;
    const TYPE: u64 = 0x55_0000;
    const META: u64 = 0x58_0000;
    const NONE: u64 = 0x66_0000;

    fn address(block: u64) -> u64 {
        POOL + 48 + 64 * block
    }

    /// A pool of 64-byte blocks of which ten were handed out, objects of one type; these are free again, in this order.
    fn pool(free: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        for block in 0..10 {
            put(&mut bytes, address(block) + 8, TYPE);
        }
        let mut at = POOL + 8;
        for &block in free {
            put(&mut bytes, at, address(block));
            at = address(block);
        }
        put(&mut bytes, at, 0);
        put(&mut bytes, POOL + 40, 48 + 64 * 10);
        bytes
    }

    fn put(bytes: &mut [u8], at: u64, value: u64) {
        let at = usize::try_from(at - POOL).unwrap_or(usize::MAX);
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
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

    fn add(survivors: &mut Survivors, blocks: &[u64], time: u64) {
        for &block in blocks {
            assert!(survivors.add(ProcAddr(address(block)), ByteCount(64), MonotonicNs(time)));
        }
    }

    /// Seen at 5, in a window up to 6.
    fn survivors(blocks: &[u64]) -> Survivors {
        let mut survivors = Survivors::default();
        add(&mut survivors, blocks, 5);
        survivors.window_over(MonotonicNs(6), usize::MAX);
        survivors
    }

    /// Memory that holds one pool, which must not be read as a whole if it is full.
    struct Held<'a> {
        bytes: &'a [u8],
        is_full: bool,
    }

    impl Memory for Held<'_> {
        fn pool(&mut self, at: ProcAddr) -> io::Result<Option<Vec<u8>>> {
            assert_eq!((at, self.is_full), (ProcAddr(POOL), false));
            Ok((!self.bytes.is_empty()).then(|| self.bytes.to_vec()))
        }

        fn words(&mut self, places: &[ProcAddr]) -> io::Result<Vec<Option<Words>>> {
            let at = |place: &ProcAddr| {
                if place.get() < POOL {
                    return Some(of_type(*place));
                }
                assert!(self.is_full);
                let from = usize::try_from(place.get() - POOL).ok()?;
                self.bytes.get(from..)?.first_chunk().copied()
            };
            Ok(places.iter().map(at).collect())
        }
    }

    /// Memory of which nothing is known: no pool is there, or nothing can be read.
    struct Unread(bool);

    impl Memory for Unread {
        fn pool(&mut self, _: ProcAddr) -> io::Result<Option<Vec<u8>>> {
            Ok(None)
        }

        fn words(&mut self, places: &[ProcAddr]) -> io::Result<Vec<Option<Words>>> {
            if self.0 {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(vec![Some([0; WORDS_BYTES]); places.len()])
        }
    }

    /// What is behind the count of a type, and of its type; `NONE` is an object of a type.
    fn of_type(place: ProcAddr) -> Words {
        let type_ = if place.get() == NONE + 8 { TYPE } else { META };
        words(&type_.to_le_bytes())
    }

    #[track_caller]
    fn look(survivors: &mut Survivors, of: Of, state: PoolState, bytes: &[u8]) -> Found {
        let is_full = state.used == state.carved;
        let (first, last) = survivors.due(of, MonotonicNs(1000)).unwrap();
        let held = Held { bytes, is_full };
        survivors.check(first, last, 4096, &[state], held).unwrap()
    }

    #[track_caller]
    fn check_in(survivors: &mut Survivors, state: PoolState, bytes: &[u8], gone: &[u64]) {
        let found = look(survivors, Of::AllWindows, state, bytes);
        let blocks: Vec<u64> = found.gone.iter().map(|addr| (addr - POOL - 48) / 64).collect();
        assert_eq!((blocks.as_slice(), found.left), (gone, Vec::new()));
    }

    #[track_caller]
    fn check(survivors: &mut Survivors, bytes: &[u8], gone: &[u64]) {
        check_in(survivors, state(3, 7), bytes, gone);
    }

    #[test]
    fn a_block_that_is_free_or_was_never_handed_out_is_gone_and_told_of_once() {
        let mut survivors = survivors(&[1, 2, 3, 12]);
        check(&mut survivors, &pool(&[7, 2]), &[2, 12]);
        check(&mut survivors, &pool(&[1, 7, 2]), &[1]);
        check(&mut survivors, &pool(&[7]), &[]);
        // It is not there any more.
        check(&mut survivors, &[], &[3]);
        assert!(survivors.samples.is_empty());
    }

    #[test]
    fn of_a_process_that_cannot_be_read_nothing_is_told() {
        let mut survivors = survivors(&[1, 2]);
        let found = survivors.check(0, 6, 4096, &[state(3, 10)], Unread(true));
        assert_eq!(found.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(survivors.samples.len(), 2);
    }

    #[test]
    fn all_blocks_of_a_full_pool_are_in_use() {
        let mut survivors = survivors(&[1, 2]);
        let mut bytes = pool(&[]);
        check_in(&mut survivors, state(3, 10), &bytes, &[]);
        put(&mut bytes, address(1) + 16, 1);
        check_in(&mut survivors, state(3, 10), &bytes, &[1]);
    }

    #[test]
    fn a_block_that_is_another_object_now_is_gone() {
        let mut survivors = survivors(&[1, 2]);
        let mut bytes = pool(&[]);
        check(&mut survivors, &bytes, &[]);
        put(&mut bytes, address(2) + 8, TYPE + 8);
        check(&mut survivors, &bytes, &[2]);
    }

    #[test]
    fn what_blocks_share_that_is_no_type_may_change() {
        let mut survivors = survivors(&[1, 2]);
        let mut bytes = pool(&[]);
        for block in [1, 2] {
            put(&mut bytes, address(block) + 8, NONE);
        }
        check(&mut survivors, &bytes, &[]);
        put(&mut bytes, address(2) + 8, NONE + 8);
        put(&mut bytes, address(1) + 16, 7);
        check(&mut survivors, &bytes, &[]);
    }

    #[test]
    fn the_last_block_of_a_pool_is_read_without_what_is_behind_it() {
        let mut survivors = survivors(&[]);
        let mut bytes = vec![0; BYTES];
        let blocks = [POOL + 4096 - 16, POOL + 4096 - 32];
        for at in blocks {
            assert!(survivors.add(ProcAddr(at), ByteCount(16), MonotonicNs(5)));
            put(&mut bytes, at + 8, TYPE);
        }
        let full = state(0, 10);
        assert_eq!(
            look(&mut survivors, Of::AllWindows, full, &bytes),
            Found::default()
        );
        put(&mut bytes, blocks[0] + 8, TYPE + 8);
        let found = look(&mut survivors, Of::AllWindows, full, &bytes);
        assert_eq!(found.gone, [blocks[0]]);
    }

    #[test]
    fn a_block_whose_pool_is_another_classs_is_gone() {
        let mut survivors = survivors(&[1, 2]);
        check(&mut survivors, &pool(&[]), &[]);
        check_in(&mut survivors, state(4, 7), &pool(&[]), &[1, 2]);
    }

    #[test]
    fn a_window_is_looked_at_as_a_whole_once_it_is_over_and_known() {
        let mut survivors = Survivors::default();
        let due = |survivors: &Survivors, of, settled| survivors.due(of, MonotonicNs(settled));
        add(&mut survivors, &[1], 5);
        assert_eq!(due(&survivors, Of::AllWindows, 99), None);
        survivors.window_over(MonotonicNs(6), usize::MAX);
        for of in [Of::AllWindows, Of::NewestWindow] {
            assert_eq!(due(&survivors, of, 6), None);
        }
        assert_eq!(due(&survivors, Of::AllWindows, 7), Some((0, 6)));
        assert_eq!(due(&survivors, Of::NewestWindow, 7), Some((1, 6)));
        survivors.window_over(MonotonicNs(20), usize::MAX);
        assert_eq!(due(&survivors, Of::AllWindows, 20), Some((0, 6)));
        assert_eq!(due(&survivors, Of::NewestWindow, 20), None);
        assert_eq!(due(&survivors, Of::NewestWindow, 21), Some((7, 20)));
        // Blocks are of the window in which they were allocated, however late that is told.
        add(&mut survivors, &[2, 4], 20);
        add(&mut survivors, &[3], 6);
        add(&mut survivors, &[5], 21);
        assert_eq!(survivors.pools(22, 99, 4096), []);
        assert_eq!(survivors.pools(7, 20, 4096), [ProcAddr(POOL)]);
        let bytes = pool(&[1, 2, 3, 5]);
        let found = look(&mut survivors, Of::NewestWindow, state(3, 7), &bytes);
        assert_eq!(found.gone, [address(2)]);
        check(&mut survivors, &bytes, &[1, 3]);
    }

    #[test]
    fn of_too_many_some_are_left_and_told_of() {
        let mut survivors = Survivors::default();
        let of_window = |survivors: &mut Survivors, window: u64, blocks: u64| {
            for block in 0..blocks {
                let addr = POOL + (window << 20) + 64 * block;
                survivors.add(ProcAddr(addr), ByteCount(64), MonotonicNs(5 + window * 10));
            }
            survivors.window_over(MonotonicNs(6 + window * 10), usize::MAX);
        };
        // All of them are in pools that are in use and have no free block.
        let pools: Vec<PoolState> = (0..1 << 12)
            .map(|pool| PoolState {
                address: POOL + (pool << 12),
                ..state(3, 10)
            })
            .collect();
        let look = |survivors: &mut Survivors| {
            let (first, last) = survivors.due(Of::AllWindows, MonotonicNs(1000)).unwrap();
            let found = survivors.check(first, last, 4096, &pools, Unread(false)).unwrap();
            assert!(found.gone.is_empty());
            (found.left.len(), found.refused.len())
        };
        of_window(&mut survivors, 0, 1100);
        assert_eq!(look(&mut survivors), (1100 - MOST_NEW, 0));
        assert_eq!(look(&mut survivors), (0, 0));
        of_window(&mut survivors, 1, 1100);
        assert_eq!(look(&mut survivors), (1100 - MOST_NEW, 0));
        of_window(&mut survivors, 2, 1100);
        of_window(&mut survivors, 3, 1100);
        // One window was not looked at before it was old.
        let left = 2 * MOST_NEW + 1100 - MOST_OLD + 1100 - MOST_NEW;
        assert_eq!(look(&mut survivors), (left, 0));
        assert_eq!(survivors.samples.len(), MOST_NEW + MOST_OLD);
        // What has no room is told of as well.
        of_window(&mut survivors, 4, MAX_SAMPLES as u64);
        assert_eq!(
            (survivors.samples.len(), survivors.refused.len()),
            (MAX_SAMPLES, MOST_NEW + MOST_OLD)
        );
        let left = MAX_SAMPLES - MOST_NEW - MOST_OLD;
        assert_eq!(look(&mut survivors), (left, MOST_NEW + MOST_OLD));
        survivors.window_over(MonotonicNs(60), 100);
        assert_eq!(look(&mut survivors), (MOST_NEW + MOST_OLD - 100, 0));
    }

    #[test]
    fn one_that_finds_room_later_is_not_refused() {
        let mut survivors = survivors(&[]);
        let at = |block: u64| ProcAddr(POOL + 64 * block);
        for block in 0..=MAX_SAMPLES as u64 {
            assert!(survivors.add(at(block), ByteCount(64), MonotonicNs(5)));
        }
        let refused = at(MAX_SAMPLES as u64);
        assert!(!survivors.add(refused, ByteCount(64), MonotonicNs(5)));
        assert_eq!(survivors.refused.len(), 1);
        survivors.samples.remove(&at(0).get());
        assert!(survivors.add(refused, ByteCount(64), MonotonicNs(5)));
        assert!(survivors.refused.is_empty());
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
            let mut survivors = survivors(&[0, 1, 2]);
            let found = look(&mut survivors, Of::AllWindows, state(3, 7), &bytes);
            prop_assert!(found.gone.len() + survivors.samples.len() == 3);
        }
    }
}
