//! Large chunks of libc's heaps in which no block is known: whose they are as far as page faults tell.
//!
//! Apart from `unseen`, where the blocks that were seen stand for others: of large chunks a program makes few, and a short look sees
//! hardly any, but each has pages of its own. What was in a page before, nobody tells. So a chunk is believed to be of a stack
//! that touched most of its pages first, if that keeps such blocks and no block that was seen has been there. Invariant: a chunk is of
//! one stack, or of none.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    ingest::{BIG_CHUNK, LibcBlock, OVERHEAD, PAGE, chunk_class},
    profile::live::TallyIndex,
};

/// A touch of a page, as far as it is of interest here.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageTouch {
    pub(super) page: u64,
    pub(super) bytes: u64,
    /// `None`: of whom it is known that what he touches is not what he keeps.
    pub(super) tally: Option<TallyIndex>,
}

/// Who has less than one part in so many of his bytes in small chunks is not who fills a heap with such.
const FEW_SMALL: u64 = 10;

/// The class from which on chunks are told one by one.
pub(super) fn first_class() -> u8 {
    chunk_class(BIG_CHUNK)
}

/// Chunks of one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) bytes: u64,
    pub(super) chunks: u64,
}

impl Held {
    fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.chunks += 1;
    }
}

/// What stacks hold in large chunks.
#[derive(Debug, Default)]
pub(super) struct Big {
    /// By the first address of a region and class of chunks.
    parts: FxHashMap<(u64, u8), FxHashMap<TallyIndex, Held>>,
    /// In all of them.
    held: FxHashMap<TallyIndex, Held>,
}

impl Big {
    /// `chunks`: those in use, by address. `known`: where blocks are known. `touches`: by page. `region`: the first address of that in
    /// which an address is.
    pub(super) fn new(
        chunks: &[LibcBlock],
        known: &FxHashSet<u64>,
        touches: &[PageTouch],
        region: impl Fn(u64) -> Option<u64>,
    ) -> Self {
        let mut big = Self::default();
        for chunk in chunks.iter().filter(|chunk| !known.contains(&chunk.addr)) {
            let Some((region, tally)) = region(chunk.addr).zip(whose(chunk, touches)) else {
                continue;
            };
            let bytes = chunk.bytes.saturating_add(OVERHEAD);
            let of_class = big.parts.entry((region, chunk_class(bytes))).or_default();
            of_class.entry(tally).or_default().add(chunk.bytes);
            big.held.entry(tally).or_default().add(chunk.bytes);
        }
        big
    }

    /// Whether a stack that was seen to allocate so many bytes in small chunks and in large ones fills a heap with small ones, too. (A
    /// table that grows had all sizes.)
    pub(super) fn fills(&self, tally: TallyIndex, small: u64, big: u64) -> bool {
        let all = small.saturating_add(big.max(self.held(tally)));
        small >= all / FEW_SMALL
    }

    /// The same of one of which nothing was seen but that it has `touched` so much outside of large chunks: if it holds much in these, it
    /// did so for others that are gone.
    pub(super) fn may_fill(&self, tally: TallyIndex, touched: u64) -> bool {
        self.held(tally) <= touched / FEW_SMALL
    }

    fn held(&self, tally: TallyIndex) -> u64 {
        self.held.get(&tally).map_or(0, |held| held.bytes)
    }

    /// What stacks hold in chunks of a class.
    pub(super) fn of(&self, region: u64, class: u8) -> Option<&FxHashMap<TallyIndex, Held>> {
        self.parts.get(&(region, class))
    }

    /// Classes of which something is known there.
    pub(super) fn classes(&self, region: u64) -> impl Iterator<Item = u8> + '_ {
        let of_region = self.parts.keys().filter(move |(of, _)| *of == region);
        of_region.map(|(_, class)| *class)
    }
}

/// Who touched most of the pages of a chunk. What its first page has was put there with the chunk before it.
fn whose(chunk: &LibcBlock, touches: &[PageTouch]) -> Option<TallyIndex> {
    let end = chunk.addr.saturating_add(chunk.bytes);
    let from = touches.partition_point(|touch| touch.page <= chunk.addr / PAGE * PAGE);
    let inside = touches.get(from..).unwrap_or_default().iter();
    let mut sums: FxHashMap<Option<TallyIndex>, u64> = FxHashMap::default();
    for touch in inside.take_while(|touch| touch.page < end) {
        let sum = sums.entry(touch.tally).or_default();
        *sum = sum.saturating_add(touch.bytes);
    }
    let all = sums
        .values()
        .fold(0, |all: u64, bytes| all.saturating_add(*bytes));
    let (tally, bytes) = sums.into_iter().max_by_key(|&(_, bytes)| bytes)?;
    tally.filter(|_| bytes > all / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x10_0000;
    const CHUNK: u64 = 10 * PAGE;

    /// Touches by page of the chunk at [`START`], and whether a block is known there; whose the chunk is.
    #[track_caller]
    fn check(touches: &[(u64, Option<TallyIndex>)], is_known: bool, expected: Option<TallyIndex>) {
        let chunk = LibcBlock {
            addr: START + 0x110,
            bytes: CHUNK,
        };
        let touches: Vec<PageTouch> = touches
            .iter()
            .map(|&(page, tally)| PageTouch {
                page: START + page * PAGE,
                bytes: 4 * PAGE,
                tally,
            })
            .collect();
        let known = is_known.then_some(chunk.addr).into_iter().collect();
        let big = Big::new(&[chunk], &known, &touches, |_| Some(START));
        let class = chunk_class(CHUNK);
        let found = big.of(START, class).and_then(|parts| parts.iter().next());
        let expected = expected.map(|tally| (tally, CHUNK));
        assert_eq!(found.map(|(tally, held)| (*tally, held.bytes)), expected);
        assert_eq!(big.classes(START).count(), usize::from(expected.is_some()));
    }

    #[test]
    fn who_makes_large_chunks_does_not_fill_a_heap_with_small_ones() {
        let chunk = LibcBlock {
            addr: START + 16,
            bytes: CHUNK - 8,
        };
        let touch = PageTouch {
            page: START + PAGE,
            bytes: PAGE,
            tally: Some(7),
        };
        let big = Big::new(&[chunk], &FxHashSet::default(), &[touch], |_| Some(START));
        assert!(big.fills(7, CHUNK, 0) && big.fills(8, 100, 100));
        assert!(
            !big.fills(7, CHUNK / 10 - 100, 0),
            "it holds as much in large ones"
        );
        assert!(!big.fills(8, 10, 100));
        assert!(big.may_fill(7, 10 * CHUNK) && big.may_fill(8, 0));
        assert!(!big.may_fill(7, 9 * CHUNK));
    }

    #[test]
    fn a_chunk_is_of_who_touched_most_of_it() {
        check(&[(1, Some(7)), (4, Some(7)), (9, Some(8))], false, Some(7));
        check(&[(1, Some(7)), (4, Some(8))], false, None);
        check(&[(1, Some(7)), (4, None), (5, None)], false, None);
        check(&[], false, None);
        // The first page is of the chunk before, and what lies behind of the next one.
        check(
            &[(0, Some(8)), (3, Some(7)), (11, Some(8)), (12, Some(8))],
            false,
            Some(7),
        );
        check(&[(3, Some(7))], true, None);
    }
}
