//! Blocks of libc's malloc that are thought to be in use, and whether they are: while their frees are not traced, what stands
//! in memory around them is the only witness.
//!
//! Apart from `audit`, which says when it is read. glibc keeps the size of a chunk in the word before its block, and in the
//! next chunk's whether this one is in use; its free lists of small chunks keep theirs as if they were in use, so that some
//! two hundred chunks up to 1 KiB can look in use for each thread. A chunk that was freed and handed out again with the same
//! size looks as if nothing had been. Invariant: only what was seen allocated is read, and of one process a bounded number.
//! <https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.c>

use std::io;

use rustc_hash::FxHashMap;

use crate::units::{MonotonicNs, ProcAddr};

/// Blocks remembered of one process, and of all. Those beyond are counted and not looked at: some 40 bytes each.
const MOST: usize = 1 << 16;
pub(super) const MOST_IN_ALL: usize = 1 << 19;
/// The word before a block: the size of its chunk, and three bits.
const SIZE_AT: u64 = 8;
const FLAGS: u64 = 7;
/// The chunk before this one is in use.
const PREVIOUS_IN_USE: u64 = 1;
/// The chunk is a mapping of its own.
const MAPPED: u64 = 2;
/// A chunk is larger than what can be used of it by this, and by that if it is a mapping of its own.
const OVERHEAD: u64 = 8;
const MAPPED_OVERHEAD: u64 = 16;

/// The large blocks of one process.
#[derive(Debug, Default)]
pub(super) struct Large {
    /// By address: usable bytes, and when.
    blocks: FxHashMap<u64, (u64, u64)>,
    /// Blocks that were not remembered, and since when.
    left_out: Option<(u64, MonotonicNs)>,
}

impl Large {
    /// A block was allocated; there is room for so many more of all processes.
    pub(super) fn add(&mut self, addr: ProcAddr, bytes: u64, time: MonotonicNs, room: &mut usize) {
        let has_room = self.blocks.len() < MOST && *room > 0;
        if !has_room && !self.blocks.contains_key(&addr.get()) {
            self.left_out.get_or_insert((0, time)).0 += 1;
        } else if self.blocks.insert(addr.get(), (bytes, time.get())).is_none() {
            *room -= 1;
        }
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// How many were not, and since when.
    pub(super) fn left_out(&self) -> Option<(u64, MonotonicNs)> {
        self.left_out
    }

    /// It was freed.
    pub(super) fn remove(&mut self, addr: ProcAddr, room: &mut usize) {
        *room += usize::from(self.blocks.remove(&addr.get()).is_some());
    }

    /// Looks which blocks from before `began` are gone, and forgets those. `read` gives the word at each of the addresses,
    /// where there is one.
    pub(super) fn take_gone(
        &mut self,
        began: MonotonicNs,
        mut read: impl FnMut(&[ProcAddr]) -> io::Result<Vec<Option<u64>>>,
    ) -> io::Result<Vec<u64>> {
        let mut known: Vec<(u64, u64)> = self
            .blocks
            .iter()
            .filter(|(_, (_, time))| *time < began.get())
            .map(|(&addr, &(bytes, _))| (addr, bytes))
            .collect();
        known.sort_unstable();
        let before = |addr: u64| ProcAddr(addr.saturating_sub(SIZE_AT));
        let sizes = read(&known.iter().map(|&(addr, _)| before(addr)).collect::<Vec<_>>())?;
        let mut gone = Vec::new();
        let mut open = Vec::new();
        for (&(addr, bytes), size) in known.iter().zip(sizes) {
            match size {
                Some(size) if size & MAPPED != 0 && size & !FLAGS == bytes + MAPPED_OVERHEAD => {}
                Some(size) if size & MAPPED == 0 && size & !FLAGS == bytes + OVERHEAD => {
                    open.push((addr, before(addr.saturating_add(size & !FLAGS))));
                }
                _ => gone.push(addr),
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
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Looks at blocks of 1024 usable bytes at 0x1000 and of 8 KiB, a mapping, at 0x8010.
    #[track_caller]
    fn check(words: &[(u64, u64)], began: u64, expected: &[u64]) {
        let words: BTreeMap<u64, u64> = words.iter().copied().collect();
        let mut large = Large::default();
        for (addr, bytes) in [(0x1000, 1032), (0x8010, 0x1ff0), (0x9010, 0x1ff0)] {
            large.add(ProcAddr(addr), bytes, MonotonicNs(5), &mut 9);
        }
        large.remove(ProcAddr(0x9010), &mut 9);
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

    #[test]
    fn what_is_too_much_is_counted_and_room_is_for_all() {
        let (mut large, mut room) = (Large::default(), 2);
        for (addr, time) in [(0x10, 1), (0x20, 2), (0x30, 3), (0x20, 4), (0x40, 5)] {
            large.add(ProcAddr(addr), 8, MonotonicNs(time), &mut room);
        }
        assert_eq!((large.len(), room), (2, 0));
        assert_eq!(large.left_out(), Some((2, MonotonicNs(3))));
        large.remove(ProcAddr(0x10), &mut room);
        large.remove(ProcAddr(0x10), &mut room);
        assert_eq!((large.len(), room), (1, 1));
        let (mut large, mut room) = (Large::default(), MOST * 2);
        for addr in 0..MOST as u64 + 7 {
            large.add(ProcAddr(addr * 16), 8, MonotonicNs(1), &mut room);
        }
        assert_eq!((large.len(), room), (MOST, MOST));
        assert_eq!(large.left_out(), Some((7, MonotonicNs(1))));
    }

    proptest! {
        #[test]
        fn whatever_the_memory_holds_what_is_gone_was_known(
            words in prop::collection::vec(any::<Option<u64>>(), 1..9),
            blocks in prop::collection::btree_map(any::<u64>(), 0..u64::MAX >> 2, 0..9),
        ) {
            let mut large = Large::default();
            for (&addr, &bytes) in &blocks {
                large.add(ProcAddr(addr), bytes, MonotonicNs(1), &mut 9);
            }
            let mut words = words.iter().cycle();
            let gone = large
                .take_gone(MonotonicNs(2), |places| {
                    Ok(places.iter().filter_map(|_| words.next().copied()).collect())
                })
                .unwrap();
            prop_assert!(gone.iter().all(|addr| blocks.contains_key(addr)));
        }
    }
}
