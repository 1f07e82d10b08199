//! What a reading of one process looks at of libc's malloc.
//!
//! Apart from `reading`, which reads pools. Here the three that look at chunks come together: `mapped` finds blocks of which only mappings
//! told, `large` those that are gone, `chunks` what is in use.

use std::io;

use super::{
    chunks::{self, Counted, Page},
    large::{Origin, Unseen},
    reading::{Known, settled},
};
use crate::{
    discover::read_each,
    ingest::{LibcBlock, Region},
    units::{MonotonicNs, Pid, ProcAddr},
};

/// What a reading finds of libc's malloc.
#[derive(Debug, Default)]
pub(super) struct Libc {
    pub(super) gone: Vec<u64>,
    pub(super) mapped: Vec<LibcBlock>,
    pub(super) counted: Counted,
}

/// Reads what of the large blocks is still there, which mappings are blocks, and after a gap what is in use of libc's heaps.
pub(super) fn read_libc(
    pid: Pid,
    known: &mut Known,
    regions: &[Region],
    began: MonotonicNs,
    room: &mut usize,
) -> io::Result<Libc> {
    let settled = settled(began);
    let is_mapped = |block: LibcBlock| is_covered(regions, block);
    let mut made = known
        .mapped
        .take_blocks(settled, |places| words(pid, places), is_mapped)?;
    made.retain(|&(block, time)| {
        let addr = ProcAddr(block.addr);
        known.large.add(addr, block.bytes, time, Origin::Mapping, room)
    });
    known.large.learn(settled, |places| words(pid, places))?;
    let unseen = if known.gaps.large {
        Unseen::All
    } else {
        Unseen::Mappings
    };
    let changed = known
        .large
        .take_gone(settled, unseen, is_mapped, |places| words(pid, places))?;
    known.had_large_gap |= known.gaps.large;
    let mut libc = Libc {
        mapped: made.into_iter().map(|(block, _)| block).collect(),
        ..Libc::default()
    };
    // It can go between the two looks.
    libc.mapped.retain(|block| !changed.gone.contains(&block.addr));
    libc.mapped.extend(changed.resized);
    libc.gone = changed.gone;
    if known.had_large_gap {
        libc.counted = chunks::in_use(regions, &known.large.places(), |places| pages(pid, places))?;
        let was_too_much = u64::from(libc.counted.was_too_much);
        known.left_uncounted.at_least(was_too_much, began);
    }
    Ok(libc)
}

/// Whether there is memory for all of a block, in regions one behind the other, as advice to the kernel parts a mapping. They are in order.
fn is_covered(regions: &[Region], block: LibcBlock) -> bool {
    let end = block.addr.saturating_add(block.bytes);
    let behind = regions.partition_point(|region| region.start <= block.addr);
    let mut covered = block.addr;
    for region in regions.get(behind.saturating_sub(1)..).unwrap_or_default() {
        if region.start > covered || region.end <= covered {
            break;
        }
        covered = region.end;
    }
    covered >= end
}

/// The word at each of the addresses, where there is one.
fn words(pid: Pid, places: &[ProcAddr]) -> io::Result<Vec<Option<u64>>> {
    let mut words = Vec::with_capacity(places.len());
    read_each(pid, places, &mut words)?;
    let word = |bytes: Option<[u8; 8]>| bytes.map(u64::from_le_bytes);
    Ok(words.into_iter().map(word).collect())
}

/// The pages at the addresses, where there are some.
fn pages(pid: Pid, places: &[ProcAddr]) -> io::Result<Vec<Option<Page>>> {
    let mut pages = Vec::with_capacity(places.len());
    read_each(pid, places, &mut pages)?;
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_can_be_in_regions_one_behind_the_other() {
        let regions = [(0x1000, 0x2000), (0x2000, 0x8000), (0x9000, 0xa000)].map(|(start, end)| Region {
            start,
            end,
            ..Region::default()
        });
        let check = |addr, bytes| is_covered(&regions, LibcBlock { addr, bytes });
        assert!(check(0x1010, 0xff0) && check(0x1010, 0x6ff0) && check(0x3000, 0x5000));
        assert!(!check(0x1010, 0x7000), "there is nothing behind");
        assert!(!check(0x8010, 0x10) && !check(0x10, 0x10) && !check(0x9010, u64::MAX));
    }
}
