//! Where functions begin and end, from the call frame information that stripped files keep.
//!
//! `PT_GNU_EH_FRAME` names a sorted table of all entries:
//! <https://refspecs.linuxfoundation.org/LSB_5.0.0/LSB-Core-generic/LSB-Core-generic/ehframechpt.html>. A function
//! that the compiler split has an entry for each part. Invariant: ranges do not overlap and are never empty.

use std::ops::Range;

use gimli::{
    BaseAddresses, EhFrame, EhFrameHdr, EhFrameOffset, EndianSlice, LittleEndian, Pointer, UnwindSection as _,
};

use super::Elf;
use crate::units::VirtAddr;

/// Entries read; the largest interpreters have some 20,000.
const MAX_ENTRIES: usize = 1 << 20;

/// The parts of functions, by address.
#[derive(Debug, Default)]
pub struct FunctionTable {
    /// First and last address (exclusive).
    ranges: Vec<(u64, u64)>,
}

impl FunctionTable {
    fn new(mut ranges: Vec<(u64, u64)>) -> Self {
        ranges.sort_unstable();
        ranges.dedup_by_key(|(start, _)| *start);
        let mut next = u64::MAX;
        for (start, end) in ranges.iter_mut().rev() {
            *end = (*end).min(next);
            next = *start;
        }
        ranges.retain(|(start, end)| start < end);
        Self { ranges }
    }

    /// The part of a function that `address` is in.
    pub fn at(&self, address: VirtAddr) -> Option<Range<u64>> {
        let after = self.ranges.partition_point(|(start, _)| *start <= address.get());
        let (start, end) = *self.ranges.get(after.checked_sub(1)?)?;
        (address.get() < end).then_some(start..end)
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// All ranges, by address: first and last address (exclusive).
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }
}

impl Elf<'_> {
    /// The functions of the file; empty if it has no call frame information or that is damaged.
    pub fn functions(&self) -> FunctionTable {
        self.read_functions().unwrap_or_default()
    }

    fn read_functions(&self) -> Option<FunctionTable> {
        let header_at = self.frame_header?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(header_at.get());
        let header = EhFrameHdr::new(self.bytes_from(header_at)?, LittleEndian)
            .parse(&bases, 8)
            .ok()?;
        let Pointer::Direct(frames_at) = header.eh_frame_ptr() else {
            return None;
        };
        let bases = bases.set_eh_frame(frames_at);
        let frames: EhFrame<EndianSlice<'_, LittleEndian>> =
            EhFrame::new(self.bytes_from(VirtAddr(frames_at))?, LittleEndian);
        let table = header.table()?;
        let mut entries = table.iter(&bases);
        let mut ranges = Vec::new();
        while let Ok(Some((_, entry))) = entries.next()
            && ranges.len() < MAX_ENTRIES
        {
            let Pointer::Direct(entry) = entry else { continue };
            let offset = entry
                .checked_sub(frames_at)
                .and_then(|offset| usize::try_from(offset).ok());
            let Some(offset) = offset else { continue };
            let entry = frames.fde_from_offset(&bases, EhFrameOffset(offset), EhFrame::cie_from_offset);
            if let Ok(entry) = entry {
                let start = entry.initial_address();
                ranges.push((start, start.saturating_add(entry.len())));
            }
        }
        Some(FunctionTable::new(ranges))
    }
}
