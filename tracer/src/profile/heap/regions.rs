//! Resident memory outside of blocks: what is left of each region once pools and large blocks are taken away, shared out to
//! those who touched its pages first.
//!
//! The kernel says how much of a region is resident; the faults only say in which shares. Pages that were touched first for a large
//! block are libc's free memory once such blocks are freed. Invariant: what a region is shared out to adds up to what the kernel
//! says.

mod huge;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Estimates, Holder, LargeUse, Special, add,
    big::{Big, Evidence, PageTouch},
    census::{Census, class_of},
    faults::{Faults, Touch},
    sizes::Sizes,
    unseen::{ENOUGH, Left, Place, Unseen},
    untouched,
};
use crate::{
    ingest::{BIG_CHUNK, Chunks, LibcBlock, PAGE, Region},
    profile::live::{LargeBlock, TallyIndex},
    units::MonotonicNs,
};

/// Pools in an arena: 64 of 4 KiB each up to 3.9, 64 of 16 KiB since. (3.15 with huge pages has twice as many; what is
/// free there is then told as not attributed.) The kernel shows arenas, and what else was mapped beside them, as one region.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L210-L234>
const ARENA_POOLS: u64 = 64;

/// One region while it is shared out.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    region: Region,
    pools: u64,
    large: u64,
}

/// All regions of one audit.
#[derive(Debug)]
pub(super) struct Shares {
    /// By address.
    regions: Vec<Share>,
    pools_in_use: u64,
    large: u64,
    /// By region; those outside of all regions, where nothing is resident, come last.
    blocks: Vec<(usize, LargeBlock)>,
    untouched: u64,
    /// Those that were not seen, and what is in use without an owner where that was counted.
    unseen: Unseen,
    census: Census,
    /// Large chunks in use there, by address.
    big: Vec<LibcBlock>,
    large_unseen: u64,
    touched: u64,
    /// The last pool that was counted, as one can come twice.
    last_pool: Option<u64>,
    /// By region and index: the addresses between which pools of an arena are in use.
    arenas: FxHashMap<(u64, u32), (u64, u64)>,
    arena_bytes: u64,
}

impl Shares {
    pub(super) fn new(regions: &[Region], chunks: &[Chunks], big: Vec<LibcBlock>) -> Self {
        let mut regions: Vec<Share> = regions
            .iter()
            .map(|&region| Share {
                region,
                ..Share::default()
            })
            .collect();
        regions.sort_unstable_by_key(|share| share.region.start);
        Self {
            regions,
            pools_in_use: 0,
            large: 0,
            blocks: Vec::new(),
            untouched: 0,
            unseen: Unseen::default(),
            census: Census::new(chunks),
            big,
            large_unseen: 0,
            touched: 0,
            last_pool: None,
            arenas: FxHashMap::default(),
            arena_bytes: 0,
        }
    }

    /// Which region an address is in.
    fn index(&self, address: u64) -> Option<usize> {
        let behind = self
            .regions
            .partition_point(|share| share.region.start <= address);
        let index = behind.checked_sub(1)?;
        (address < self.regions.get(index)?.region.end).then_some(index)
    }

    fn at(&mut self, address: u64) -> Option<(usize, &mut Share)> {
        let index = self.index(address)?;
        Some((index, self.regions.get_mut(index)?))
    }

    /// A part of a pool is in use. The parts of a pool come one after the other.
    pub(super) fn pool(&mut self, address: u64, arena: u32, bytes: u64, pool_bytes: u64) {
        self.pools_in_use += bytes;
        self.arena_bytes = ARENA_POOLS * pool_bytes;
        if self.last_pool.replace(address) != Some(address)
            && let Some((_, share)) = self.at(address)
        {
            share.pools += pool_bytes;
            let (place, end) = (share.region.start, address.saturating_add(pool_bytes));
            let (first, last) = self.arenas.entry((place, arena)).or_insert((address, end));
            (*first, *last) = ((*first).min(address), (*last).max(end));
        }
    }

    /// A large block is live, and stands for so many that were not seen. It can lie in several regions, one behind the other: advice to
    /// the kernel, which numpy gives about its arrays, parts a mapping.
    pub(super) fn large(&mut self, block: &LargeBlock, unseen: f64) {
        if let Some((region, share)) = self.at(block.addr) {
            let start = share.region.start;
            self.census.take(start, block.bytes);
            self.unseen.add(region, self.census.has(start), block, unseen);
        }
        let end = block.addr.saturating_add(block.bytes);
        let mut addr = block.addr;
        while addr < end {
            let next = self.regions.partition_point(|share| share.region.start <= addr);
            let here = self.index(addr);
            let until = match here.and_then(|index| self.regions.get_mut(index)) {
                Some(share) => {
                    let until = share.region.end.min(end);
                    share.large = share.large.saturating_add(until - addr);
                    until
                }
                // Nothing of it is resident up to the next one.
                None => self
                    .regions
                    .get(next)
                    .map_or(end, |share| share.region.start.min(end)),
            };
            let part = LargeBlock {
                addr,
                bytes: until - addr,
                ..*block
            };
            self.blocks.push((here.unwrap_or(usize::MAX), part));
            addr = until;
        }
    }

    /// Shares out what is left.
    ///
    /// Where large blocks are, who touched a page first need not be who holds what is in it: of those of whom `uses` says that they
    /// drop what they allocate it is not.
    pub(super) fn settle(
        &mut self,
        faults: &mut Faults,
        since_start: bool,
        uses: impl Fn(TallyIndex) -> LargeUse,
        estimates: &mut Estimates,
    ) {
        let mut pages: Vec<(u64, Touch)> = faults
            .pages
            .iter()
            .map(|(&page, touch)| (page * PAGE, touch.of_pages()))
            .collect();
        pages.sort_unstable_by_key(|&(page, _)| page);
        let mut rest = pages.as_mut_slice();
        for share in &self.regions {
            let first = rest.partition_point(|&(page, _)| page < share.region.start);
            let end = rest.partition_point(|&(page, _)| page < share.region.end);
            let (here, later) = rest.split_at_mut(end.max(first));
            huge::widen(&share.region, here.get_mut(first..).unwrap_or_default());
            rest = later;
        }
        self.settle_untouched(&pages, estimates);
        let big = self.whose_big(&pages, &faults.sizes, &uses);
        self.mark_big(&mut pages);
        let mut left = self.settle_known(faults, since_start, estimates);
        let mut outside: FxHashMap<TallyIndex, u64> = FxHashMap::default();
        for (_, touch) in pages.iter().filter(|(_, touch)| !touch.for_block) {
            let sum: &mut u64 = outside.entry(touch.tally).or_default();
            *sum = sum.saturating_add(touch.bytes);
        }
        let fills = |tally| match uses(tally) {
            LargeUse::None => big.may_fill(tally, outside.get(&tally).copied().unwrap_or_default()),
            LargeUse::Drops => false,
            LargeUse::Keeps { small, big: large } => big.fills(tally, small, large),
        };
        let places: Vec<Place> = (0..self.regions.len())
            .map(|index| self.place(index, &pages, fills))
            .collect();
        let mut without_owner = Left {
            bytes: &mut left,
            places: &places,
            census: &self.census,
            big: &big,
        };
        self.large_unseen = self.unseen.share_out(&mut without_owner, estimates);
        self.settle_touched(&pages, &left, fills, &uses, estimates);
    }

    /// Whose large chunks are of which no block is known. The pages are in order.
    fn whose_big(&self, pages: &[(u64, Touch)], sizes: &Sizes, uses: impl Fn(TallyIndex) -> LargeUse) -> Big {
        let touches: Vec<PageTouch> = pages
            .iter()
            .map(|&(page, touch)| PageTouch {
                page,
                bytes: touch.bytes,
                tally: touch.tally,
                drops: uses(touch.tally) == LargeUse::Drops,
                for_block: touch.for_block,
            })
            .collect();
        let known: FxHashSet<u64> = self.blocks.iter().map(|(_, block)| block.addr).collect();
        let evidence = Evidence {
            known: &known,
            touches: &touches,
            sizes,
        };
        Big::new(&self.big, evidence, |chunk| {
            let index = self.index(chunk.addr)?;
            let start = self.regions.get(index)?.region.start;
            Some((start, self.unseen.has(index, class_of(chunk.bytes))))
        })
    }

    /// What was touched inside of large blocks and chunks is theirs, and tells of nothing else. The pages are in order.
    fn mark_big(&self, pages: &mut [(u64, Touch)]) {
        let blocks = self.blocks.iter().map(|(_, block)| (block.addr, block.bytes));
        let chunks = self.big.iter().map(|chunk| (chunk.addr, chunk.bytes));
        for (addr, bytes) in blocks.chain(chunks).filter(|(_, bytes)| *bytes >= BIG_CHUNK) {
            let from = pages.partition_point(|&(page, _)| page <= addr / PAGE * PAGE);
            let inside = pages.get_mut(from..).unwrap_or_default().iter_mut();
            for (_, touch) in inside.take_while(|(page, _)| *page < addr.saturating_add(bytes)) {
                touch.for_block = true;
            }
        }
    }

    /// What is known of a region whose chunks were counted. The pages are in order.
    fn place(&self, index: usize, pages: &[(u64, Touch)], fills: impl Fn(TallyIndex) -> bool) -> Place {
        let Region { start, end, .. } = self
            .regions
            .get(index)
            .map(|share| share.region)
            .unwrap_or_default();
        let mut place = Place {
            start,
            ..Place::default()
        };
        if !self.census.has(start) {
            return place;
        }
        let first = pages.partition_point(|&(page, _)| page < start);
        let inside = pages.get(first..).unwrap_or_default().iter();
        for (_, touch) in inside.take_while(|(page, _)| *page < end) {
            if touch.for_block || !fills(touch.tally) {
                continue;
            }
            let sum = if self.unseen.samples(index, touch.tally) > 0 {
                &mut place.touched
            } else {
                &mut place.touched_by_others
            };
            *sum = sum.saturating_add(touch.bytes);
        }
        place
    }

    /// Of which large blocks a part is not resident. Nothing is known of that if no region could be read.
    fn settle_untouched(&mut self, pages: &[(u64, Touch)], estimates: &mut Estimates) {
        if self.regions.is_empty() {
            return;
        }
        self.blocks
            .sort_unstable_by_key(|&(region, block)| (region, block.addr));
        for of_region in self.blocks.chunk_by(|(one, _), (other, _)| one == other) {
            let region = of_region
                .first()
                .and_then(|&(region, _)| self.regions.get(region));
            let resident = region.map_or(0, |share| share.region.anonymous.saturating_sub(share.pools));
            let allocated = of_region
                .iter()
                .fold(0_u64, |sum, (_, block)| sum.saturating_add(block.bytes));
            let missing = allocated.saturating_sub(resident);
            if missing == 0 {
                continue;
            }
            let blocks: Vec<untouched::Block> = of_region
                .iter()
                .map(|(_, block)| untouched::Block {
                    tally: block.tally,
                    bytes: block.bytes,
                    touched: touched(pages, block),
                })
                .collect();
            for (tally, bytes) in untouched::share_out(&blocks, missing) {
                let estimate = estimates.entry(Holder::Tally(tally)).or_default();
                estimate.untouched = estimate.untouched.saturating_add(bytes);
                self.untouched = self.untouched.saturating_add(bytes);
            }
        }
    }

    /// Takes from each region what is known to be in it; what is left of each.
    fn settle_known(
        &mut self,
        faults: &mut Faults,
        since_start: bool,
        estimates: &mut Estimates,
    ) -> Vec<u64> {
        let mut first: FxHashMap<u64, u64> = FxHashMap::default();
        let mut pool_space = 0_u64;
        let mut all = Vec::with_capacity(self.regions.len());
        for share in &self.regions {
            let Region { start, anonymous, .. } = share.region;
            pool_space += share.pools.min(anonymous);
            let left = anonymous.saturating_sub(share.pools);
            let large = share.large.min(left);
            self.large += large;
            let left = left - large;
            let count = self.arenas.keys().filter(|(region, _)| *region == start).count() as u64;
            let free = (count * self.arena_bytes).saturating_sub(share.pools).min(left);
            let in_use = self.census.in_use(start).unwrap_or(left);
            let free = free.max(left.saturating_sub(in_use));
            add(estimates, Holder::Special(Special::Free), free, 0, 0);
            let left = left - free;
            let before = match &faults.before {
                Some(before) => before.get(&start).copied().unwrap_or(0).min(left),
                None if since_start => 0,
                None => left,
            };
            if faults.before.is_none() && before > 0 {
                first.insert(start, before);
            }
            add(
                estimates,
                Holder::Special(Special::Before),
                before,
                before / PAGE,
                0,
            );
            all.push(left - before);
        }
        faults.before.get_or_insert(first);
        let slack = pool_space.saturating_sub(self.pools_in_use);
        add(estimates, Holder::Special(Special::Free), slack, 0, 0);
        all
    }

    /// Shares what is left of each region out to those who touched it.
    fn settle_touched(
        &mut self,
        pages: &[(u64, Touch)],
        left: &[u64],
        fills: impl Fn(TallyIndex) -> bool,
        uses: impl Fn(TallyIndex) -> LargeUse,
        estimates: &mut Estimates,
    ) {
        let mut rest = pages;
        let arenas = self.arenas();
        for (index, (share, &left)) in self.regions.iter().zip(left).enumerate() {
            let Region { start, end, .. } = share.region;
            let skip = rest.partition_point(|&(page, ..)| page < start);
            rest = rest.get(skip..).unwrap_or_default();
            let inside = rest.partition_point(|&(page, ..)| page < end);
            let (here, later) = rest.split_at_checked(inside).unwrap_or((rest, &[]));
            rest = later;
            let is_counted = self.census.has(start);
            let here: Vec<Touch> = here
                .iter()
                .filter(|&&(page, _)| !is_within(&arenas, page))
                .map(|&(_, touch)| touch)
                // What is left there is in use, and not by those of whom it is known what they hold; and it is in small chunks.
                .filter(|touch| {
                    !is_counted
                        || !touch.for_block
                            && self.unseen.samples(index, touch.tally) < ENOUGH
                            && fills(touch.tally)
                })
                .collect();
            let holds = |tally| share.large == 0 || uses(tally) != LargeUse::Drops;
            self.touched += share_out(&here, share.large, left, holds, estimates);
        }
    }

    /// Forgets pages that are mapped no more, or whose arena tells more. The regions were read from `began` on: what was touched
    /// later can be in one that was mapped later.
    pub(super) fn forget_unmapped(&self, faults: &mut Faults, began: MonotonicNs) {
        let arenas = self.arenas();
        faults.pages.retain(|page, touch| {
            let address = page * PAGE;
            touch.time >= began || self.index(address).is_some() && !is_within(&arenas, address)
        });
    }

    /// Where arenas are, in order.
    fn arenas(&self) -> Vec<(u64, u64)> {
        let mut arenas: Vec<(u64, u64)> = self.arenas.values().copied().collect();
        arenas.sort_unstable();
        arenas
    }

    pub(super) fn anonymous(&self) -> u64 {
        self.regions.iter().map(|share| share.region.anonymous).sum()
    }

    pub(super) fn pools_in_use(&self) -> u64 {
        self.pools_in_use
    }

    pub(super) fn large_resident(&self) -> u64 {
        self.large
    }

    pub(super) fn untouched(&self) -> u64 {
        self.untouched
    }

    pub(super) fn large_unseen(&self) -> u64 {
        self.large_unseen
    }

    pub(super) fn touched(&self) -> u64 {
        self.touched
    }
}

/// How much of a block was touched since it was mapped, as far as that was seen. The pages are in order.
fn touched(pages: &[(u64, Touch)], block: &LargeBlock) -> u64 {
    let (first, end) = (block.addr, block.addr.saturating_add(block.bytes));
    let from = pages.partition_point(|&(page, _)| page < first / PAGE * PAGE);
    let pages = pages.get(from..).unwrap_or_default().iter();
    let inside = pages.take_while(|&&(page, _)| page < end);
    inside.map(|(_, touch)| touch.bytes).fold(0, u64::saturating_add)
}

/// Whether an address is in one of these ranges, which are in order and do not overlap.
fn is_within(ranges: &[(u64, u64)], address: u64) -> bool {
    let behind = ranges.partition_point(|&(first, _)| first <= address);
    let last = behind.checked_sub(1).and_then(|index| ranges.get(index));
    last.is_some_and(|&(_, end)| address < end)
}

/// Shares `left` bytes of a region out to its faults; what they do not account for is not known, nor whose it is if it is not held by
/// who touched it. What was touched for large blocks is free, but for the `large` bytes that are not. Bytes that stand under somebody
/// now.
fn share_out(
    faults: &[Touch],
    large: u64,
    left: u64,
    holds: impl Fn(TallyIndex) -> bool,
    estimates: &mut Estimates,
) -> u64 {
    // What else lies in a huge page that was touched for a block is not known.
    let weight = |touch: &Touch| {
        if touch.for_block {
            u64::from(touch.weight) * PAGE
        } else {
            touch.bytes
        }
    };
    let (for_blocks, others): (Vec<&Touch>, Vec<&Touch>) = faults.iter().partition(|touch| touch.for_block);
    let sum = |touches: &[&Touch]| {
        touches
            .iter()
            .map(|touch| weight(touch))
            .fold(0, u64::saturating_add)
    };
    let freed = sum(&for_blocks).saturating_sub(large);
    let seen = freed.saturating_add(sum(&others));
    let shared = seen.min(left);
    // In 128 bits: both factors can be as large as an address space.
    let part = |bytes: u64| {
        let part = u128::from(bytes) * u128::from(shared) / u128::from(seen.max(1));
        u64::try_from(part).unwrap_or(shared)
    };
    add(estimates, Holder::Special(Special::Free), part(freed), 0, 0);
    let mut given = 0_u64;
    for touch in others.into_iter().filter(|touch| holds(touch.tally)) {
        let part = part(weight(touch));
        given += part;
        add(
            estimates,
            Holder::Tally(touch.tally),
            part,
            part.div_ceil(PAGE),
            1,
        );
    }
    let unknown = left - given.saturating_add(part(freed)).min(left);
    add(
        estimates,
        Holder::Special(Special::Unknown),
        unknown,
        unknown.div_ceil(PAGE),
        0,
    );
    given
}

#[cfg(test)]
mod tests;
