//! How much of libc's heaps is in use, by the size of chunks: what is left of them is libc's free memory, whoever touched it first.
//!
//! Apart from `large`, which looks at blocks that were seen: this finds those that were not. glibc's chunks stand side by side, each
//! with its size in front and in it whether the one before is in use; the last one, the top, is free. Chunks that are kept ready for
//! the next of their size look in use: some two hundred of up to 1 KiB for each thread. The program goes on while it is read, and what
//! does not look like a chunk any more ends the walk. Invariant: a region is told of if it could be walked to its end.
//! <https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.c>

use std::{collections::BTreeMap, io};

use super::large::{FLAGS, MAPPED, PREVIOUS_IN_USE};
use crate::{
    ingest::{BIG_CHUNK, Chunks, LibcBlock, Region, chunk_class},
    units::ProcAddr,
};

/// Bytes read of one process in one reading. Of a heap of which more has to be read nothing is told.
const MOST_BYTES: u64 = 256 << 20;
/// Pages read at once where one follows the other.
const PAGES: u64 = 32;
const PAGE: usize = 4096;
/// What a heap can grow by while it is looked at.
const MOST_GROWTH: u64 = 64 << 20;
const WORD: u64 = 8;
const LEAST_CHUNK: u64 = 32;
const ALIGNMENT: u64 = 16;

/// Most chunks of a process that are told one by one.
const MOST_BIG: usize = 1 << 14;

/// A page of a process.
pub(super) type Page = [u8; PAGE];

/// Memory of a process that is read as far as it is looked at.
struct Memory<Read> {
    read: Read,
    /// Pages from there on, as they are now.
    from: u64,
    pages: Vec<Option<Page>>,
    /// Bytes that may still be read.
    left: u64,
}

impl<Read: FnMut(&[ProcAddr]) -> io::Result<Vec<Option<Page>>>> Memory<Read> {
    /// The word at an address that is a multiple of its size; `None` if there is none, or too much was read.
    fn word(&mut self, addr: u64, end: u64) -> io::Result<Option<u64>> {
        let size = PAGE as u64;
        let page = addr / size * size;
        let known = self.from..self.from + self.pages.len() as u64 * size;
        if !known.contains(&page) {
            // A walk that goes on goes on for long; whether it does where one begins, or behind a large chunk, is not known.
            let wanted = if page == known.end { PAGES } else { 1 };
            let last = end.min(page.saturating_add(self.left.min(wanted * size)));
            let places: Vec<ProcAddr> = (page..last).step_by(PAGE).map(ProcAddr).collect();
            self.left -= (places.len() as u64 * size).min(self.left);
            (self.from, self.pages) = (page, (self.read)(&places)?);
        }
        let index = usize::try_from((page - self.from) / size).unwrap_or(usize::MAX);
        let Some(Some(bytes)) = self.pages.get(index) else {
            return Ok(None);
        };
        let (words, _) = bytes.as_chunks::<8>();
        let inside = usize::try_from(addr % size / WORD).unwrap_or(usize::MAX);
        Ok(words.get(inside).map(|word| u64::from_le_bytes(*word)))
    }
}

/// What was counted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Counted {
    pub(super) chunks: Vec<Chunks>,
    /// The blocks in large ones, by address; of very many a part.
    pub(super) big: Vec<LibcBlock>,
    /// There was more to be read than may be: of the region that was too large nothing is told, nor of those behind it.
    pub(super) was_too_much: bool,
}

/// What is in use of the regions in which blocks of libc's stand that are known, at `blocks`, which are in order. `read` gives pages,
/// where there are some.
pub(super) fn in_use(
    regions: &[Region],
    blocks: &[u64],
    read: impl FnMut(&[ProcAddr]) -> io::Result<Vec<Option<Page>>>,
) -> io::Result<Counted> {
    let mut memory = Memory {
        read,
        from: 0,
        pages: Vec::new(),
        left: MOST_BYTES,
    };
    let mut counted = Counted::default();
    for region in regions {
        let before = blocks.partition_point(|&block| block < region.start.saturating_add(2 * WORD));
        let Some(first) = blocks.get(before).filter(|&&block| block < region.end) else {
            continue;
        };
        // The heap that grows with brk begins with a chunk, others have something in front.
        let mut found = None;
        for start in [region.start, first.saturating_sub(2 * WORD)] {
            found = walk(&mut memory, start, region.end)?;
            if let Some(walked) = &mut found {
                *walked.sums.entry(0).or_default() += start - region.start;
                break;
            }
        }
        counted.was_too_much |= found.is_none() && memory.left == 0;
        let Walked { sums, big } = found.unwrap_or_default();
        counted
            .chunks
            .extend(sums.into_iter().map(|(class, bytes)| Chunks {
                region: region.start,
                class,
                bytes,
            }));
        let room = MOST_BIG - counted.big.len();
        counted.big.extend(big.into_iter().take(room));
    }
    Ok(counted)
}

/// What is in use of one heap.
#[derive(Debug, Default)]
struct Walked {
    /// Bytes by class.
    sums: BTreeMap<u8, u64>,
    big: Vec<LibcBlock>,
}

/// What is in use from a chunk on; `None` if they do not follow each other up to the end.
fn walk<Read: FnMut(&[ProcAddr]) -> io::Result<Vec<Option<Page>>>>(
    memory: &mut Memory<Read>,
    start: u64,
    end: u64,
) -> io::Result<Option<Walked>> {
    let mut walked = Walked::default();
    let mut at = start;
    let mut head = memory.word(at.saturating_add(WORD), end)?;
    loop {
        let Some(word) = head else {
            return Ok(None);
        };
        let size = word & !FLAGS;
        let next = at.saturating_add(size);
        let is_chunk = size >= LEAST_CHUNK && size.is_multiple_of(ALIGNMENT) && word & MAPPED == 0;
        if !is_chunk || next > end.saturating_add(MOST_GROWTH) {
            return Ok(None);
        }
        if next == end {
            return Ok(Some(walked));
        }
        // It may have grown since the regions were read.
        let last = next.saturating_add(2 * WORD).max(end);
        head = memory.word(next.saturating_add(WORD), last)?;
        if head.is_some_and(|head| head & PREVIOUS_IN_USE != 0) {
            let bytes = size.min(end - at);
            *walked.sums.entry(chunk_class(size)).or_default() += bytes;
            if bytes >= BIG_CHUNK && walked.big.len() < MOST_BIG {
                walked.big.push(LibcBlock {
                    addr: at + 2 * WORD,
                    bytes: size - WORD,
                });
            }
        }
        if next > end {
            return Ok(Some(walked));
        }
        at = next;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    const START: u64 = 0x10_0000;
    const BYTES: u64 = 64 * PAGE as u64;

    /// Chunks, each with whether it is in use, and the top behind them.
    fn heap(start: u64, chunks: &[(u64, bool)]) -> Vec<u64> {
        let mut words = vec![0; usize::try_from(BYTES / WORD).unwrap()];
        let (mut at, mut previous) = (start, true);
        let mut set = |at: u64, word| {
            if let Some(to) = words.get_mut(usize::try_from((at - START) / WORD).unwrap() + 1) {
                *to = word;
            }
        };
        for &(size, in_use) in chunks {
            set(at, size | u64::from(previous));
            (at, previous) = (at + size, in_use);
        }
        set(at, (START + BYTES - at) | u64::from(previous));
        words
    }

    fn look(words: &[u64], blocks: &[u64]) -> Vec<(u8, u64)> {
        let counted = count(words, blocks);
        let chunks = counted.chunks.into_iter();
        chunks.map(|chunks| (chunks.class, chunks.bytes)).collect()
    }

    fn count(words: &[u64], blocks: &[u64]) -> Counted {
        let region = Region {
            start: START,
            end: START + BYTES,
            ..Region::default()
        };
        let read = |places: &[ProcAddr]| {
            let page = |place: &ProcAddr| {
                let first = usize::try_from((place.get() - START) / WORD).unwrap();
                let words = words.get(first..first + PAGE / 8)?;
                Page::try_from(
                    words
                        .iter()
                        .flat_map(|word| word.to_le_bytes())
                        .collect::<Vec<_>>(),
                )
                .ok()
            };
            Ok(places.iter().map(page).collect())
        };
        let counted = in_use(&[region], blocks, read).unwrap();
        assert!(!counted.was_too_much);
        counted
    }

    #[test]
    fn what_is_in_use_is_told_by_class() {
        let chunks = [
            (0x290, true),
            (0x100, true),
            (0x30, false),
            (0x8000, true),
            (0x4000, false),
            (0x2000, true),
            (0x2_0000, true),
        ];
        let words = heap(START, &chunks);
        let expected = [
            (0, 0x100),
            (chunk_class(0x290), 0x290 + 0x2000),
            (chunk_class(0x8000), 0x8000),
            (chunk_class(0x2_0000), 0x2_0000),
        ];
        assert_eq!(look(&words, &[START + 0x2a0]), expected);
        // Large ones are told one by one.
        let big = count(&words, &[START + 0x2a0]).big;
        let (first, second) = (START + 0x3c0, START + 0x3c0 + 0xe000);
        let block = |chunk: u64, bytes: u64| LibcBlock {
            addr: chunk + 16,
            bytes: bytes - 8,
        };
        assert_eq!(big, [block(first, 0x8000), block(second, 0x2_0000)]);
        // No block of libc's is known there.
        assert_eq!(look(&words, &[START, START + BYTES]), []);
    }

    #[test]
    fn what_stands_before_the_first_chunk_is_in_use() {
        let words = heap(START + 0x1000, &[(0x800, true), (0x800, false)]);
        let expected = [(0, 0x1000), (chunk_class(0x800), 0x800)];
        assert_eq!(look(&words, &[START + 0x1010]), expected);
    }

    #[test]
    fn what_does_not_reach_the_end_is_not_told() {
        let words = heap(START, &[(0x800, true)]);
        let grown = (2 * BYTES) | 1;
        for (at, word) in [
            (1, 0x801),
            (1, 0x11),
            (1, 0x803),
            (1, 0),
            (257, 0x7f_0000_1231),
            (257, grown),
        ] {
            let mut broken = words.clone();
            *broken.get_mut(at).unwrap() = word;
            let is_whole = word == 0x801 || word == grown;
            assert_eq!(
                look(&broken, &[START + 16]).is_empty(),
                !is_whole,
                "{at} {word:#x}"
            );
        }
    }

    /// Whether a heap of chunks of a page each, so many, is too much, and bytes in use of it.
    fn look_at_pages(pages: u64) -> (bool, u64) {
        let region = Region {
            start: START,
            end: START + pages * PAGE as u64,
            ..Region::default()
        };
        let mut page = [0; PAGE];
        page[8..16].copy_from_slice(&(PAGE as u64 | PREVIOUS_IN_USE).to_le_bytes());
        let read = |places: &[ProcAddr]| Ok(vec![Some(page); places.len()]);
        let counted = in_use(&[region], &[START + 16], read).unwrap();
        let bytes = counted.chunks.iter().map(|chunks| chunks.bytes);
        (counted.was_too_much, bytes.sum())
    }

    #[test]
    fn what_is_too_much_is_said_and_not_told() {
        let most = MOST_BYTES / PAGE as u64;
        // The top is free.
        assert_eq!(look_at_pages(most), (false, MOST_BYTES - PAGE as u64));
        assert_eq!(look_at_pages(most + 1), (true, 0));
    }

    proptest! {
        #[test]
        fn whatever_stands_there_no_more_is_told_than_there_is(
            words in prop::collection::vec(prop_oneof![Just(0x31), Just(0x1001), any::<u64>()], 512),
            block in any::<u16>(),
        ) {
            let words = words.repeat(64);
            let found = look(&words, &[START + u64::from(block)]);
            prop_assert!(found.iter().map(|(_, bytes)| bytes).sum::<u64>() <= BYTES);
            let big = count(&words, &[START + u64::from(block)]).big;
            prop_assert!(big.iter().all(|block| block.addr < START + BYTES && block.bytes > BIG_CHUNK / 2));
        }
    }
}
