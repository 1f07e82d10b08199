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
use crate::units::{MonotonicNs, ProcAddr};

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
/// A chunk is larger than what can be used of it by this, and by that if it is a mapping of its own.
const OVERHEAD: u64 = 8;
const MAPPED_OVERHEAD: u64 = 16;

/// The large blocks of one process.
#[derive(Debug, Default)]
pub(super) struct Large {
    /// By address: usable bytes, and when.
    blocks: FxHashMap<u64, (u64, u64)>,
    /// Blocks that were not remembered.
    left_out: Count,
    /// Enough of them had a head of glibc's.
    is_glibc: bool,
    /// Since when it could not be told which are gone.
    blind: Option<MonotonicNs>,
}

/// What stands in the word before a block of so many usable bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// It is in a chunk of so many bytes, among others.
    Chunk(u64),
    /// It is a mapping of its own.
    Mapping,
    /// No head of this block.
    Other,
}

impl Head {
    fn of(word: Option<u64>, bytes: u64) -> Self {
        let Some(word) = word else {
            return Self::Other;
        };
        let (size, is_mapped) = (word & !FLAGS, word & MAPPED != 0);
        let overhead = if is_mapped { MAPPED_OVERHEAD } else { OVERHEAD };
        match bytes.checked_add(overhead) {
            Some(whole) if whole == size && is_mapped => Self::Mapping,
            Some(whole) if whole == size => Self::Chunk(size),
            _ => Self::Other,
        }
    }
}

impl Large {
    /// A block was allocated; there is room for so many more of all processes.
    pub(super) fn add(&mut self, addr: ProcAddr, bytes: u64, time: MonotonicNs, room: &mut usize) {
        let has_room = self.blocks.len() < MOST && *room > 0;
        if !has_room && !self.blocks.contains_key(&addr.get()) {
            self.left_out.add(1, time);
        } else if self.blocks.insert(addr.get(), (bytes, time.get())).is_none() {
            *room -= 1;
        }
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
        let known: Vec<(u64, u64)> = self.before(began).take(LOOKED_AT).collect();
        let words = read(&known.iter().map(|&(addr, _)| head_of(addr)).collect::<Vec<_>>())?;
        let heads = known.iter().zip(words);
        let right = heads
            .filter(|((_, bytes), word)| Head::of(*word, *bytes) != Head::Other)
            .count();
        if right > 0 && right * ONE_IN >= known.len() {
            (self.is_glibc, self.blind) = (true, None);
        }
        Ok(())
    }

    /// Looks which blocks from before `began` are gone, and forgets those. `read` gives the word at each of the addresses,
    /// where there is one.
    pub(super) fn take_gone(
        &mut self,
        began: MonotonicNs,
        mut read: impl FnMut(&[ProcAddr]) -> io::Result<Vec<Option<u64>>>,
    ) -> io::Result<Vec<u64>> {
        let mut known: Vec<(u64, u64)> = self.before(began).collect();
        if !self.is_glibc {
            if !known.is_empty() {
                self.blind.get_or_insert(began);
            }
            return Ok(Vec::new());
        }
        known.sort_unstable();
        let words = read(&known.iter().map(|&(addr, _)| head_of(addr)).collect::<Vec<_>>())?;
        let mut gone = Vec::new();
        let mut open = Vec::new();
        for (&(addr, bytes), word) in known.iter().zip(words) {
            match Head::of(word, bytes) {
                Head::Mapping => {}
                Head::Chunk(size) => open.push((addr, head_of(addr.saturating_add(size)))),
                Head::Other => gone.push(addr),
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
        Ok(gone)
    }

    /// Address and bytes of those that were allocated before.
    fn before(&self, time: MonotonicNs) -> impl Iterator<Item = (u64, u64)> + '_ {
        let older = self
            .blocks
            .iter()
            .filter(move |(_, (_, born))| *born < time.get());
        older.map(|(&addr, &(bytes, _))| (addr, bytes))
    }
}

/// Where the head of a block is.
fn head_of(addr: u64) -> ProcAddr {
    ProcAddr(addr.saturating_sub(SIZE_AT))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// So many, since then.
    fn count(number: u64, since: u64) -> Count {
        let mut count = Count::default();
        count.add(number, MonotonicNs(since));
        count
    }

    /// Looks at blocks of 1024 usable bytes at 0x1000 and of 8 KiB, a mapping, at 0x8010.
    #[track_caller]
    fn check(words: &[(u64, u64)], began: u64, expected: &[u64]) {
        let words: BTreeMap<u64, u64> = words.iter().copied().collect();
        let mut large = Large::default();
        for (addr, bytes) in [(0x1000, 1032), (0x8010, 0x1ff0), (0x9010, 0x1ff0)] {
            large.add(ProcAddr(addr), bytes, MonotonicNs(5), &mut 9);
        }
        large.remove(ProcAddr(0x9010), &mut 9);
        large.is_glibc = true;
        let mut look = || {
            large.take_gone(MonotonicNs(began), |places| {
                Ok(places
                    .iter()
                    .map(|place| words.get(&place.get()).copied())
                    .collect())
            })
        };
        assert_eq!(look().unwrap(), expected);
        assert_eq!(look().unwrap(), [0; 0], "what is gone is forgotten");
    }

    #[test]
    fn the_words_around_a_block_say_whether_it_is_in_use() {
        let (size, next, mapped) = ((0xff8, 0x411), (0x1000 + 1040 - 8, 0x91), (0x8008, 0x2002));
        check(&[size, next, mapped], 9, &[]);
        check(&[size, next], 9, &[0x8010]);
        check(&[size, next, (0x8008, 0x3002)], 9, &[0x8010]);
        check(&[(0xff8, 0x821), next, mapped], 9, &[0x1000]);
        check(&[size, (next.0, 0x90), mapped], 9, &[0x1000]);
        check(&[size, mapped], 9, &[0x1000]);
        check(&[], 9, &[0x1000, 0x8010]);
        check(&[], 5, &[]);
    }

    /// Whether any is gone of a hundred blocks, after they were looked at when so many of them had heads of glibc's, and then none;
    /// and whether that could be told.
    #[track_caller]
    fn check_malloc(right: usize, expected: (usize, bool)) {
        let mut large = Large::default();
        for index in 0..100 {
            large.add(ProcAddr(0x1000 * (index + 1)), 1032, MonotonicNs(5), &mut 1000);
        }
        let began = MonotonicNs(9);
        // Who is in use is read of what was there long enough only.
        large
            .learn(MonotonicNs(5), |places| Ok(vec![Some(0x411); places.len()]))
            .unwrap();
        assert!(!large.is_glibc);
        large
            .learn(began, |places| {
                let of = |(index, _)| Some(if index < right { 0x411 } else { 0x7f00 });
                Ok(places.iter().enumerate().map(of).collect())
            })
            .unwrap();
        let nothing = |places: &[ProcAddr]| Ok(vec![None; places.len()]);
        large.learn(began, nothing).unwrap();
        let gone = large.take_gone(began, nothing).unwrap();
        assert_eq!((gone.len(), large.blind().is_none()), expected);
    }

    #[test]
    fn of_another_malloc_none_is_taken_for_gone() {
        check_malloc(0, (0, false));
        check_malloc(6, (0, false));
        check_malloc(7, (100, true));
        check_malloc(100, (100, true));
    }

    #[test]
    fn a_malloc_that_is_found_to_be_glibcs_later_is_seen_from_then_on() {
        let mut large = Large::default();
        let nothing = |places: &[ProcAddr]| Ok(vec![None; places.len()]);
        assert!(large.take_gone(MonotonicNs(9), nothing).unwrap().is_empty());
        assert_eq!(large.blind(), None, "nothing was to be told");
        large.add(ProcAddr(0x1000), 1032, MonotonicNs(5), &mut 9);
        assert!(large.take_gone(MonotonicNs(9), nothing).unwrap().is_empty());
        assert_eq!(large.blind(), Some(MonotonicNs(9)));
        large.learn(MonotonicNs(9), |_| Ok(vec![Some(0x411)])).unwrap();
        assert_eq!(large.blind(), None);
        assert_eq!(large.take_gone(MonotonicNs(9), nothing).unwrap(), [0x1000]);
    }

    #[test]
    fn what_is_too_much_is_counted_and_room_is_for_all() {
        let (mut large, mut room) = (Large::default(), 2);
        for (addr, time) in [(0x10, 1), (0x20, 2), (0x30, 3), (0x20, 4), (0x40, 5)] {
            large.add(ProcAddr(addr), 8, MonotonicNs(time), &mut room);
        }
        assert_eq!((large.len(), room), (2, 0));
        assert_eq!(large.left_out(), count(2, 3));
        large.remove(ProcAddr(0x10), &mut room);
        large.remove(ProcAddr(0x10), &mut room);
        assert_eq!((large.len(), room), (1, 1));
        let (mut large, mut room) = (Large::default(), MOST * 2);
        for addr in 0..MOST as u64 + 7 {
            large.add(ProcAddr(addr * 16), 8, MonotonicNs(1), &mut room);
        }
        assert_eq!((large.len(), room), (MOST, MOST));
        assert_eq!(large.left_out(), count(7, 1));
    }

    proptest! {
        #[test]
        fn whatever_the_memory_holds_what_is_gone_was_known(
            words in prop::collection::vec(any::<Option<u64>>(), 1..9),
            blocks in prop::collection::btree_map(any::<u64>(), any::<u64>(), 0..9),
        ) {
            let mut large = Large::default();
            for (&addr, &bytes) in &blocks {
                large.add(ProcAddr(addr), bytes, MonotonicNs(1), &mut 9);
            }
            let mut words = words.iter().cycle();
            let mut read = |places: &[ProcAddr]| {
                Ok(places.iter().filter_map(|_| words.next().copied()).collect())
            };
            large.learn(MonotonicNs(2), &mut read).unwrap();
            large.is_glibc = true;
            let gone = large.take_gone(MonotonicNs(2), read).unwrap();
            prop_assert!(gone.iter().all(|addr| blocks.contains_key(addr)));
        }
    }
}
