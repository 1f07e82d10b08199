//! Large chunks of libc's heaps in which no block is known: whose they are as far as page faults tell.
//!
//! Apart from `unseen`, where the blocks that were seen stand for others: of large chunks a program makes few, and a short look sees
//! hardly any, but each has pages of its own. What was in a page before, nobody tells. So a chunk is believed to be of the stack
//! that touched most of its pages first. What was touched with a block that was seen, and is gone, tells only of chunks of a size that its
//! stack was seen to make. Where who drops what he allocates touched most, it is of who keeps such chunks, and his if nobody is known to: a
//! table that is made anew again and again is there all the time. Invariant: a chunk is of one stack, or of none.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{census::class_of, sizes::Sizes};
use crate::{
    ingest::{BIG_CHUNK, LibcBlock, PAGE, chunk_class},
    profile::live::TallyIndex,
};

/// A touch of a page, as far as it is of interest here.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageTouch {
    pub(super) page: u64,
    pub(super) bytes: u64,
    pub(super) tally: TallyIndex,
    /// That soon frees the large blocks that it allocates.
    pub(super) drops: bool,
    /// It came with a block that was seen.
    pub(super) for_block: bool,
}

/// What there is to go by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence<'a> {
    /// Where blocks are known.
    pub(super) known: &'a FxHashSet<u64>,
    /// By page.
    pub(super) touches: &'a [PageTouch],
    /// Of large blocks that stacks were seen to make.
    pub(super) sizes: &'a Sizes,
}

/// Who has less than one part in so many of his bytes in small chunks is not who fills a heap with such.
const FEW_SMALL: u64 = 10;
/// Shares are compared in so small parts.
const FINE: u128 = 1 << 32;

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
    /// `chunks`: those in use, by address. `region`: the first address of that in which a chunk is, and whether blocks of its class are known
    /// there that stand for others.
    pub(super) fn new(
        chunks: &[LibcBlock],
        evidence: Evidence<'_>,
        region: impl Fn(&LibcBlock) -> Option<(u64, bool)>,
    ) -> Self {
        let (mut big, mut of_droppers) = (Self::default(), Vec::new());
        let unknown = |chunk: &&LibcBlock| !evidence.known.contains(&chunk.addr);
        for chunk in chunks.iter().filter(unknown) {
            let Some(((region, is_kept), (tally, drops))) = region(chunk).zip(whose(chunk, evidence)) else {
                continue;
            };
            let place = (region, class_of(chunk.bytes));
            if drops {
                of_droppers.push((place, chunk.bytes, tally, is_kept));
            } else {
                big.add(place, chunk.bytes, tally);
            }
        }
        let keepers = big.parts.clone();
        for (place, bytes, tally, is_kept) in of_droppers {
            // To keepers whole, as far as that goes in the shares of what they keep.
            let owner = match keepers.get(&place) {
                Some(keepers) => keepers
                    .iter()
                    .map(|(&keeper, held)| {
                        let more = big.held_there(place, keeper) - held.bytes;
                        let after = u128::from(more) + u128::from(bytes);
                        (u128::from(held.bytes) * FINE / after.max(1), keeper)
                    })
                    .max()
                    .map(|(_, keeper)| keeper),
                None => (!is_kept).then_some(tally),
            };
            if let Some(owner) = owner {
                big.add(place, bytes, owner);
            }
        }
        big
    }

    fn add(&mut self, place: (u64, u8), bytes: u64, tally: TallyIndex) {
        let of_class = self.parts.entry(place).or_default();
        of_class.entry(tally).or_default().add(bytes);
        self.held.entry(tally).or_default().add(bytes);
    }

    fn held_there(&self, place: (u64, u8), tally: TallyIndex) -> u64 {
        let held = self.parts.get(&place).and_then(|parts| parts.get(&tally));
        held.map_or(0, |held| held.bytes)
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

/// Who touched most of the pages of a chunk, and whether that drops what it allocates. What its first page has was put there with the
/// chunk before it.
fn whose(chunk: &LibcBlock, evidence: Evidence<'_>) -> Option<(TallyIndex, bool)> {
    let end = chunk.addr.saturating_add(chunk.bytes);
    let touches = evidence.touches;
    let from = touches.partition_point(|touch| touch.page <= chunk.addr / PAGE * PAGE);
    let inside = touches.get(from..).unwrap_or_default().iter();
    let mut sums: FxHashMap<Option<(TallyIndex, bool)>, u64> = FxHashMap::default();
    for touch in inside.take_while(|touch| touch.page < end) {
        let tells = !touch.for_block || evidence.sizes.has(chunk.bytes, touch.tally);
        let sum = sums
            .entry(tells.then_some((touch.tally, touch.drops)))
            .or_default();
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

    fn chunk() -> LibcBlock {
        LibcBlock {
            addr: START + 0x110,
            bytes: CHUNK,
        }
    }

    fn touch(page: u64, tally: TallyIndex) -> PageTouch {
        PageTouch {
            page: START + page * PAGE,
            bytes: 4 * PAGE,
            tally,
            drops: false,
            for_block: false,
        }
    }

    fn for_block(page: u64, tally: TallyIndex) -> PageTouch {
        PageTouch {
            for_block: true,
            ..touch(page, tally)
        }
    }

    /// Touches of the chunk at [`START`], and whether a block is known there; whose the chunk is.
    #[track_caller]
    fn check(touches: &[PageTouch], is_known: bool, expected: Option<TallyIndex>) {
        check_seen(touches, &[], is_known, expected);
    }

    /// The same where of some sizes blocks were seen.
    #[track_caller]
    fn check_seen(
        touches: &[PageTouch],
        seen: &[(u64, TallyIndex)],
        is_known: bool,
        expected: Option<TallyIndex>,
    ) {
        let mut sizes = Sizes::default();
        for &(bytes, tally) in seen {
            sizes.add(bytes, tally);
        }
        let known = is_known.then_some(chunk().addr).into_iter().collect();
        let evidence = Evidence {
            known: &known,
            touches,
            sizes: &sizes,
        };
        let big = Big::new(&[chunk()], evidence, |_| Some((START, false)));
        let found = big
            .of(START, class_of(CHUNK))
            .and_then(|parts| parts.iter().next());
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
        let evidence = Evidence {
            known: &FxHashSet::default(),
            touches: &[touch(1, 7)],
            sizes: &Sizes::default(),
        };
        let big = Big::new(&[chunk], evidence, |_| Some((START, false)));
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
        check(&[touch(1, 7), touch(4, 7), touch(9, 8)], false, Some(7));
        check(&[touch(1, 7), touch(4, 8)], false, None);
        check(&[touch(1, 7), for_block(4, 8), for_block(5, 7)], false, None);
        check(&[], false, None);
        // The first page is of the chunk before, and what lies behind of the next one.
        let touches = [touch(0, 8), touch(3, 7), touch(11, 8), touch(12, 8)];
        check(&touches, false, Some(7));
        check(&[touch(3, 7)], true, None);
    }

    #[test]
    fn what_was_touched_with_a_block_tells_of_chunks_of_sizes_that_were_seen() {
        let touches = [for_block(1, 7), for_block(4, 7), touch(9, 8)];
        check_seen(&touches, &[(CHUNK, 7)], false, Some(7));
        check_seen(&touches, &[(CHUNK + 16, 7), (CHUNK, 8)], false, None);
    }

    #[test]
    fn what_a_dropper_touched_is_of_who_keeps_such_chunks_or_else_its_own() {
        let drops = |page, tally| PageTouch {
            drops: true,
            ..touch(page, tally)
        };
        let behind = LibcBlock {
            addr: chunk().addr + 2 * CHUNK,
            bytes: CHUNK,
        };
        let held = |chunks: &[LibcBlock], is_kept: bool| {
            let evidence = Evidence {
                known: &FxHashSet::default(),
                touches: &[drops(1, 7), drops(4, 7), touch(9, 8), touch(25, 8)],
                sizes: &Sizes::default(),
            };
            let big = Big::new(chunks, evidence, |_| Some((START, is_kept)));
            [7, 8].map(|tally| big.held(tally) / CHUNK)
        };
        assert_eq!(held(&[chunk()], false), [1, 0]);
        assert_eq!(held(&[chunk()], true), [0, 0], "blocks stand for others");
        assert_eq!(held(&[chunk(), behind], false), [0, 2]);
        let of_another_class = LibcBlock {
            bytes: 8 * CHUNK,
            ..behind
        };
        assert_eq!(held(&[chunk(), of_another_class], false), [1, 8]);
    }

    #[test]
    fn keepers_have_what_a_dropper_touched_by_what_they_keep_and_each_chunk_whole() {
        let at = |index: u64| LibcBlock {
            addr: START + 0x110 + 2 * index * CHUNK,
            bytes: CHUNK,
        };
        let owner = |index: u64| match index {
            0..3 => 7,
            3 => 8,
            _ => 9,
        };
        let touches: Vec<PageTouch> = (0..8)
            .map(|index| PageTouch {
                drops: index > 3,
                ..touch(20 * index + 5, owner(index))
            })
            .collect();
        let evidence = Evidence {
            known: &FxHashSet::default(),
            touches: &touches,
            sizes: &Sizes::default(),
        };
        let chunks: Vec<LibcBlock> = (0..8).map(at).collect();
        let big = Big::new(&chunks, evidence, |_| Some((START, false)));
        let parts = big.of(START, class_of(CHUNK));
        let chunks = |tally| {
            let held = parts.and_then(|parts| parts.get(&tally));
            held.map(|held| (held.chunks, held.bytes / CHUNK))
        };
        assert_eq!([7, 8, 9].map(chunks), [Some((6, 6)), Some((2, 2)), None]);
    }
}
