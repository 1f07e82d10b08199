//! A block of libc's malloc, and what is known of those of glibc's: which are mappings of their own, and which can be in the room for
//! a mapping of which an event tells.
//!
//! The recorder looks whether they are there, a profile whose they are. Invariant: no bytes make anything here overflow.
//! <https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.c>

use tracer_ebpf::limits::LEAST_MAPPING;

use super::event::{Fault, FaultKind};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// What glibc has in a chunk beside the block.
pub(crate) const OVERHEAD: u64 = 8;
/// What a mapping begins with, before the block.
const HEAD: u64 = 16;
/// What the size that a mapping's head tells is short of the mapping: nothing up to glibc 2.42, and the head itself since.
const UNTOLD: [u64; 2] = [0, HEAD];
/// Where the kernel aligns a mapping (6.7 to 6.12: all from this size on), it finds room for so much more.
const ALIGNED_TO: u64 = 2 << 20;

/// A block of libc's malloc. The usable bytes of one that is a mapping of its own are what its head tells without the head; since
/// glibc 2.43 it has eight more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LibcBlock {
    /// Its address.
    pub addr: u64,
    /// Usable bytes.
    pub bytes: u64,
}

impl LibcBlock {
    /// Whether it can be a mapping of its own, by where it begins and ends.
    pub fn is_mapping(self) -> bool {
        let told = self.bytes.saturating_add(HEAD);
        self.addr % PAGE == HEAD
            && told >= LEAST_MAPPING - HEAD
            && UNTOLD
                .iter()
                .any(|untold| told.saturating_add(*untold).is_multiple_of(PAGE))
    }

    /// The largest one that a mapping in this room can be for, if it begins there.
    fn largest(start: u64, end: u64) -> Option<Self> {
        let bytes = end.checked_sub(start)?.checked_sub(HEAD)?;
        let addr = start.checked_add(HEAD)?;
        (bytes >= LEAST_MAPPING - HEAD).then_some(Self { addr, bytes })
    }
}

impl Fault {
    /// The blocks that a mapping can be for of which this tells; each as large as it can be.
    pub fn blocks(&self) -> impl Iterator<Item = LibcBlock> + use<> {
        let room = u64::from(self.weight) * PAGE;
        let start = self.addr.0;
        let end = start.saturating_add(room);
        // Room that begins where it would be aligned to is used from the next such place on.
        let aligned = start
            .checked_add(1)
            .and_then(|next| next.checked_next_multiple_of(ALIGNED_TO));
        let aligned = aligned.filter(|_| room >= 2 * ALIGNED_TO);
        let starts = [Some(start), aligned];
        let is_mapping = self.kind == FaultKind::Mapping;
        let starts = starts.into_iter().flatten().filter(move |_| is_mapping);
        starts.filter_map(move |start| LibcBlock::largest(start, end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn blocks(addr: u64, pages: u32, kind: FaultKind) -> Vec<(u64, u64)> {
        let event = Fault::of_test(kind, addr, pages, 1);
        event.blocks().map(|block| (block.addr, block.bytes)).collect()
    }

    #[test]
    fn a_mapping_begins_where_its_room_does_or_is_aligned_in_it() {
        let start = 5 * MIB + 0x3000;
        assert_eq!(
            blocks(start, 64, FaultKind::Mapping),
            [(start + 16, 64 * 4096 - 16)]
        );
        assert_eq!(
            blocks(start, 1025, FaultKind::Mapping),
            [
                (start + 16, 1025 * 4096 - 16),
                (6 * MIB + 16, 3 * MIB + 0x4000 - 16)
            ]
        );
        assert_eq!(
            blocks(6 * MIB, 1536, FaultKind::Mapping),
            [(6 * MIB + 16, 6 * MIB - 16), (8 * MIB + 16, 4 * MIB - 16)]
        );
        assert_eq!(blocks(start, 31, FaultKind::Mapping), []);
        assert_eq!(blocks(start, 64, FaultKind::Touch), []);
    }

    #[test]
    fn such_a_block_begins_and_ends_with_a_page() {
        let plausible = |addr, bytes| LibcBlock { addr, bytes }.is_mapping();
        assert!(plausible(0x1010, 0x1_fff0 + 0x1000));
        // Since glibc 2.43.
        assert!(plausible(0x1010, 0x1_ffe0 + 0x1000));
        assert!(!plausible(0x1020, 0x2_0ff0));
        assert!(!plausible(0x1010, 0x2_0ff8));
        assert!(!plausible(0x1010, 0xfff0));
    }

    proptest! {
        #[test]
        fn any_room_is_looked_at_without_a_panic(addr in any::<u64>(), pages in any::<u32>()) {
            for (block, bytes) in blocks(addr, pages, FaultKind::Mapping) {
                prop_assert!(block > addr && bytes <= u64::from(pages) * PAGE);
            }
        }
    }
}
