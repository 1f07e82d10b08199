//! Load bias: how far an image stands from its link-time addresses.
//!
//! The same formula holds for executables, position independent or not, and for shared libraries.

use super::maps::Range;
use crate::units::{FileOffset, VirtAddr};

/// A `PT_LOAD` program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSegment {
    /// `p_vaddr`.
    pub address: VirtAddr,
    /// `p_offset`.
    pub offset: FileOffset,
    /// `p_filesz`, bytes.
    pub file_size: u64,
    /// Whether `p_flags` has `PF_X`.
    pub exec: bool,
}

/// Run-time address minus link-time address (wrapping), from an executable mapping and the executable segment
/// that it shows; `None` if no segment matches. A loader maps whole pages, so a mapping begins at or before
/// its segment and may have been split by `mprotect`.
pub fn bias(mappings: &[Range], segments: &[LoadSegment]) -> Option<u64> {
    mappings
        .iter()
        .filter(|mapping| mapping.exec)
        .find_map(|mapping| {
            let first = mapping.file_offset.get();
            let last = first.checked_add(mapping.end.get().checked_sub(mapping.start.get())?)?;
            let segment = segments.iter().find(|segment| {
                let offset = segment.offset.get();
                segment.exec
                    && segment.file_size > 0
                    && offset < last
                    && first < offset.saturating_add(segment.file_size)
            })?;
            let address = segment
                .address
                .get()
                .wrapping_add(first.wrapping_sub(segment.offset.get()));
            Some(mapping.start.get().wrapping_sub(address))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ProcAddr;

    fn range(start: u64, end: u64, offset: u64, exec: bool) -> Range {
        Range {
            start: ProcAddr(start),
            end: ProcAddr(end),
            file_offset: FileOffset(offset),
            exec,
        }
    }

    fn segment(address: u64, offset: u64, size: u64, exec: bool) -> LoadSegment {
        LoadSegment {
            address: VirtAddr(address),
            offset: FileOffset(offset),
            file_size: size,
            exec,
        }
    }

    #[test]
    fn an_executable_at_a_fixed_place_has_none() {
        let segments = [
            segment(0x40_0000, 0, 0x500, false),
            segment(0x42_0000, 0x2_0000, 0x3000, true),
        ];
        let maps = [
            range(0x40_0000, 0x40_1000, 0, false),
            range(0x42_0000, 0x42_3000, 0x2_0000, true),
        ];
        assert_eq!(bias(&maps, &segments), Some(0));
    }

    #[test]
    fn a_segment_that_begins_within_a_page_is_mapped_from_the_page_on() {
        let segments = [segment(0x2740, 0x1740, 0x3000, true)];
        let maps = [range(0x7f00_0000_1000, 0x7f00_0000_5000, 0x1000, true)];
        assert_eq!(bias(&maps, &segments), Some(0x7f00_0000_1000 - 0x2000));
    }

    #[test]
    fn a_mapping_split_in_two_gives_the_same() {
        let segments = [segment(0x1000, 0x1000, 0x4000, true)];
        let maps = [
            range(0x5000, 0x6000, 0x1000, false),
            range(0x6000, 0x9000, 0x2000, true),
        ];
        assert_eq!(bias(&maps, &segments), Some(0x4000));
    }

    #[test]
    fn nothing_that_matches_is_none() {
        let maps = [range(0x5000, 0x6000, 0x1000, true)];
        assert_eq!(bias(&maps, &[segment(0, 0, 0x1000, true)]), None);
        assert_eq!(bias(&maps, &[segment(0x1000, 0x1000, 0x1000, false)]), None);
        assert_eq!(bias(&maps, &[segment(0, u64::MAX, u64::MAX, true)]), None);
        assert_eq!(bias(&[range(9, 1, 0, true)], &[segment(0, 0, 1, true)]), None);
        assert_eq!(bias(&[], &[]), None);
    }
}
