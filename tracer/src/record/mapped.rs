//! Mappings that a process made while the sites of large blocks were silent, and which of them are blocks of glibc's malloc.
//!
//! Apart from `large`, which looks whether blocks that are known are still there. A mapping can be anything: an arena of the
//! interpreter's, the stack of a thread, memory that an extension asked the kernel for. One that glibc made for a block says so in its
//! second word. Invariant: of one process a bounded number is remembered, until the next reading; page faults tell of the others.

use std::io;

use rustc_hash::FxHashMap;

use super::large::{Head, head_of};
use crate::{
    ingest::{LibcBlock, event::Fault},
    units::{MonotonicNs, ProcAddr},
};

/// Mappings remembered of one process, some 24 bytes each: as many as are told of in 16 seconds of nothing else, and readings are ten apart.
const MOST: usize = 1 << 14;

/// The mappings of one process that were not looked at yet.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    /// By the address of a block that one can be for.
    made: FxHashMap<u64, Made>,
}

/// A mapping.
#[derive(Clone, Copy, Debug)]
struct Made {
    /// The most bytes that the block has, unless it has grown where it is since.
    most: u64,
    time: MonotonicNs,
    /// A reading found something else there than a block of at most so many bytes.
    waits: bool,
}

impl Mapped {
    /// One was made.
    pub(super) fn add(&mut self, event: &Fault) {
        for block in event.blocks() {
            if self.made.len() < MOST || self.made.contains_key(&block.addr) {
                let made = Made {
                    most: block.bytes,
                    time: event.time,
                    waits: false,
                };
                self.made.insert(block.addr, made);
            }
        }
    }

    /// An event has told of the block there.
    pub(super) fn forget(&mut self, addr: ProcAddr) {
        self.made.remove(&addr.get());
    }

    /// Takes those out that are blocks, and when they were made. `read` gives the word at each of the addresses, where there is one;
    /// `is_mapped` says whether there is memory for all of a block. What was made before `began` and is none is forgotten; a block that has
    /// grown since that memory was read waits for the next time.
    pub(super) fn take_blocks(
        &mut self,
        began: MonotonicNs,
        read: impl FnOnce(&[ProcAddr]) -> io::Result<Vec<Option<u64>>>,
        is_mapped: impl Fn(LibcBlock) -> bool,
    ) -> io::Result<Vec<(LibcBlock, MonotonicNs)>> {
        let mut all: Vec<(u64, Made)> = self.made.drain().collect();
        all.sort_unstable_by_key(|&(addr, _)| addr);
        let words = read(&all.iter().map(|&(addr, _)| head_of(addr)).collect::<Vec<_>>())?;
        let mut blocks = Vec::new();
        for ((addr, made), word) in all.into_iter().zip(words) {
            // The head of one that was made a moment ago may not stand there yet.
            let is_new = made.time >= began;
            let (found, waits) = match Head::of(word, addr, 0) {
                Head::Mapping(bytes) => (Some(LibcBlock { addr, bytes }), !made.waits),
                _ => (None, false),
            };
            let found = found.filter(|block| block.bytes <= made.most || is_mapped(*block));
            if let Some(block) = found {
                blocks.push((block, made.time));
            } else if is_new || waits {
                let waits = made.waits || waits && !is_new;
                self.made.insert(addr, Made { waits, ..made });
            }
        }
        Ok(blocks)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::ingest::event::FaultKind;

    fn fault(addr: u64, pages: u32, time: u64) -> Fault {
        Fault::of_test(FaultKind::Mapping, addr, pages, time)
    }

    /// Looks, where these words stand, at 9; addresses and bytes of blocks.
    fn look(mapped: &mut Mapped, words: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let word = |place: &ProcAddr| words.iter().find(|(at, _)| *at == place.get());
        let read = |places: &[ProcAddr]| {
            Ok(places
                .iter()
                .map(|place| word(place).map(|(_, word)| *word))
                .collect())
        };
        let is_mapped = |block: LibcBlock| block.bytes < 0xa_0000;
        let blocks = mapped.take_blocks(MonotonicNs(9), read, is_mapped).unwrap();
        blocks
            .iter()
            .map(|(block, _)| (block.addr, block.bytes))
            .collect()
    }

    #[test]
    fn what_glibc_made_for_a_block_says_so() {
        let mut mapped = Mapped::default();
        for (addr, time) in [
            (0x10_0000, 1),
            (0x20_0000, 1),
            (0x30_0000, 1),
            (0x40_0000, 9),
            (0x50_0000, 1),
            (0x60_0000, 1),
            (0x70_0000, 1),
            (0x80_0000, 1),
        ] {
            mapped.add(&fault(addr, 64, time));
        }
        mapped.forget(ProcAddr(0x50_0010));
        let words = [
            (0x10_0008, 0x4_0002),
            // No pages, a chunk that is none of its own, and no size.
            (0x20_0008, 0x4_0102),
            (0x30_0008, 0x4_0001),
            (0x50_0008, 0x4_0002),
            (0x60_0008, 0x3_8012),
            // They have another size since.
            (0x70_0008, 0x3_0002),
            (0x80_0008, 0x9_0002),
        ];
        let found = [
            (0x10_0010, 0x3_fff0),
            (0x70_0010, 0x2_fff0),
            (0x80_0010, 0x8_fff0),
        ];
        assert_eq!(look(&mut mapped, &words), found);
        // It grew after the memory map was read; or it is none, which waits once.
        mapped.add(&fault(0x90_0000, 64, 1));
        let grown = [(0x90_0008, 0xb_0002)];
        assert_eq!(look(&mut mapped, &grown), []);
        assert_eq!(mapped.made.len(), 2);
        assert_eq!(look(&mut mapped, &grown), []);
        // One that is new may have no head yet; what was looked at is not looked at again.
        assert_eq!(mapped.made.keys().collect::<Vec<_>>(), [&0x40_0010]);
        assert_eq!(
            look(&mut mapped, &[(0x40_0008, 0x4_0002)]),
            [(0x40_0010, 0x3_fff0)]
        );
    }

    #[test]
    fn where_the_kernel_aligns_it_it_is_found() {
        let mut mapped = Mapped::default();
        // Three MiB and a page, and the room to align them.
        mapped.add(&fault(0x7f00_0012_3000, 768 + 1 + 512, 1));
        assert_eq!(
            look(&mut mapped, &[(0x7f00_0020_0008, 0x30_1002)]),
            [(0x7f00_0020_0010, 0x30_0ff0)]
        );
    }

    #[test]
    fn a_bounded_number_is_remembered() {
        let mut mapped = Mapped::default();
        for index in 0..MOST as u64 + 5 {
            mapped.add(&fault(index << 20, 64, 1));
        }
        assert_eq!(mapped.made.len(), MOST);
    }
}
