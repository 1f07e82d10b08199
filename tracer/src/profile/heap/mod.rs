//! Who holds the heap of one process, from what is rare: acquisitions of pools, page faults, and readings of the pools.
//!
//! Small blocks are not traced one by one. A pool belongs to the stack that made the heap take it; how much of it is
//! still in use is read from its header now and then (an *audit*). Figures are as of the last audit, and they are estimates:
//! each comes with the number of acquisitions, or of faults, that it rests on. Invariant: every byte that an audit finds
//! stands under exactly one stack or one special row, so that the rows add up to the process's anonymous memory.

mod big;
mod census;
mod faults;
mod growth;
mod holders;
mod mapped;
mod phases;
mod pools;
mod refills;
mod regions;
mod rooms;
mod sizes;
mod unseen;
mod untouched;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use self::{
    faults::Faults,
    mapped::Mapped,
    phases::Phases,
    pools::{ALIGNMENT, Pools, Use},
    refills::Refills,
    regions::Shares,
    rooms::Rooms,
};
pub(super) use self::{growth::Growth, holders::Holders};
use super::{
    apply::SamplingWindow,
    live::{AGE_UNIT_NS, Block, LargeBlock, TallyIndex},
};
use crate::{
    ingest::{HeapAudit, LibcBlock, Survey, event::Fault},
    python::SIZE_CLASSES,
    units::MonotonicNs,
};

/// Memory that no tally of the process's own stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Special {
    /// In use before tracing began, or acquired where no probe stood.
    Before,
    /// In pools whose used blocks grew without an acquisition, and nothing tells by whom.
    Refilled,
    /// Held by the interpreter's allocator and not in use.
    Free,
    /// Resident, and nothing is known of it.
    Unknown,
}

impl Special {
    pub(super) const ALL: [Self; 4] = [Self::Before, Self::Refilled, Self::Free, Self::Unknown];
}

/// What an audit says that one stack, or nobody, holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Estimate {
    pub(super) bytes: u64,
    /// Blocks in pools, or pages.
    pub(super) count: u64,
    /// Acquisitions and faults that it rests on.
    pub(super) samples: u64,
    /// What of its large blocks is allocated and not resident, bytes; beside `bytes`.
    pub(super) untouched: u64,
}

/// Whose an estimate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    Tally(TallyIndex),
    Special(Special),
}

/// What a stack does with large blocks, as far as that was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LargeUse {
    /// It allocates none.
    #[default]
    None,
    /// It keeps some.
    Keeps {
        /// Bytes that it was seen to allocate in small chunks,
        small: u64,
        /// ... and in those of [`crate::ingest::BIG_CHUNK`] and more.
        big: u64,
    },
    /// It soon frees what it allocates.
    Drops,
}

/// What of large blocks an audit tells.
#[derive(Debug)]
pub(super) struct Changes {
    /// When it began.
    pub(super) began: MonotonicNs,
    /// Where blocks are gone that were there before.
    pub(super) gone: Vec<u64>,
    /// Mappings that are blocks, and whose they are; of those of whom that is not told the size has changed.
    pub(super) mapped: Vec<(LibcBlock, Option<Block>)>,
}

/// All estimates of one audit.
pub(super) type Estimates = FxHashMap<Holder, Estimate>;

/// What the last audit found, for the whole process. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct HeapSummary {
    /// Audits that were taken in.
    pub audits: u64,
    /// When the last one began.
    pub last: MonotonicNs,
    /// Anonymous resident memory, as the kernel counts it.
    pub anonymous: u64,
    /// Blocks in use in pools.
    pub pool_blocks: u64,
    /// What they occupy.
    pub pools_in_use: u64,
    /// The rest of those pools, and of the arenas around them.
    pub pools_free: u64,
    /// Blocks of libc's malloc that are resident.
    pub large: u64,
    /// Of large blocks, what is allocated and not resident: never touched, or given back. Beside `anonymous`, not in it, and in
    /// nobody's live bytes.
    pub untouched: u64,
    /// What is estimated of such blocks that were not seen, because they were traced a part of the time: resident, and not in
    /// `large`.
    pub large_unseen: u64,
    /// Other resident memory whose first touch was seen.
    pub touched: u64,
    /// From before tracing began.
    pub before: u64,
    /// Of that, blocks in pools.
    pub before_in_pools: u64,
    /// In refilled pools whose filler is not known.
    pub refilled: u64,
    /// Resident memory of which nothing is known.
    pub unknown: u64,
    /// Whether all pools that could be found were read.
    pub complete: bool,
}

/// The heap of one process.
#[derive(Debug, Default)]
pub(super) struct Heap {
    pools: Pools,
    refills: Refills,
    /// When large blocks were traced.
    phases: Phases,
    mapped: Mapped,
    rooms: Rooms,
    faults: Faults,
    waiting: VecDeque<HeapAudit>,
    /// The first event later than this comes behind an audit.
    next: Option<u64>,
    summary: HeapSummary,
}

impl Heap {
    /// A pool was acquired for the block at `addr`.
    pub(super) fn acquired(&mut self, addr: u64, class: usize, tally: TallyIndex, time: MonotonicNs) {
        self.pools.acquired(addr, class, tally, time);
    }

    /// A block was allocated in a sampling window.
    pub(super) fn sampled(&mut self, addr: u64, class: usize, tally: TallyIndex, time: MonotonicNs) {
        self.refills.sampled(addr, class, tally, time);
    }

    /// Acquisitions of pools are not traced from `from` on, or were not up to `to`.
    pub(super) fn pool_gap(&mut self, from: MonotonicNs, to: Option<MonotonicNs>) {
        self.pools.gap(from, to);
    }

    /// Large blocks are not traced from `from` on, or were not up to `to`, but for those that are mappings of their own.
    pub(super) fn large_gap(&mut self, from: MonotonicNs, to: Option<MonotonicNs>) {
        match to {
            None => self.phases.end(from),
            Some(to) => self.phases.begin(to),
        }
    }

    /// Every allocation was looked at in this time.
    pub(super) fn window(&mut self, window: SamplingWindow) {
        self.refills.closed(window);
    }

    /// Blocks that were allocated in such a time were looked at. It speaks of what stands before it in the capture, so it is taken in at
    /// once.
    pub(super) fn survey(&mut self, survey: &Survey) {
        self.refills.surveyed(survey);
    }

    /// A block that is in no pool was allocated.
    pub(super) fn large_allocated(&mut self, block: LibcBlock, tally: TallyIndex) {
        self.mapped.forget(block.addr);
        self.faults.allocated(block, tally);
    }

    /// A block that is in no pool was freed.
    pub(super) fn large_freed(&mut self, addr: u64) {
        self.mapped.forget(addr);
    }

    /// A page was touched.
    pub(super) fn touched(&mut self, fault: &Fault, tally: TallyIndex) {
        self.faults.touched(fault.addr.0, fault.weight, tally, fault.time);
    }

    /// A mapping was made, which can be a block of libc's malloc.
    pub(super) fn mapping(&mut self, event: &Fault, tally: TallyIndex) {
        self.mapped.add(event, tally);
        self.rooms.add(event, tally);
    }

    /// A mapping was made. Of blocks other events tell.
    pub(super) fn room(&mut self, event: &Fault, tally: TallyIndex) {
        self.rooms.add(event, tally);
    }

    /// An audit; it is taken in when all events before its end are.
    pub(super) fn add(&mut self, audit: HeapAudit) {
        self.waiting.push_back(audit);
        self.next = self.waiting.front().map(|audit| audit.ended.0);
    }

    /// Whether an event of this time comes behind an audit that waits.
    #[inline]
    pub(super) fn is_due(&self, time: MonotonicNs) -> bool {
        self.next.is_some_and(|next| time.0 > next)
    }

    /// Takes from the first audit that ended before `time` which large blocks are gone, and which there are of which only mappings
    /// told.
    pub(super) fn take_changes(&mut self, time: MonotonicNs) -> Option<Changes> {
        let due = self.is_due(time);
        let audit = self.waiting.front_mut().filter(|_| due)?;
        Some(Changes {
            began: audit.began,
            gone: std::mem::take(&mut audit.gone),
            mapped: self.mapped.take(audit.began, &std::mem::take(&mut audit.mapped)),
        })
    }

    /// Takes the first audit in that ended before `time`; what everybody holds according to it. `large` gives the blocks that
    /// are live then, and in no pool; `uses` says what a stack does with these.
    pub(super) fn take<Blocks: Iterator<Item = LargeBlock>>(
        &mut self,
        time: MonotonicNs,
        large: impl FnOnce(MonotonicNs) -> Blocks,
        uses: impl Fn(TallyIndex) -> LargeUse,
    ) -> Option<Estimates> {
        if !self.is_due(time) {
            return None;
        }
        let mut audit = self.waiting.pop_front()?;
        self.phases.look(audit.began);
        self.next = self.waiting.front().map(|audit| audit.ended.0);
        self.faults
            .forget(std::mem::take(&mut audit.given_back), audit.began);
        self.rooms
            .take(audit.began, &audit.regions, &audit.came, &mut self.faults);
        self.pools.audit(&audit);
        self.pools.claim(&audit, || self.faults.all());
        self.pools
            .disown(|class, tally, time| self.refills.drops(class, tally, time));
        let mut estimates = Estimates::default();
        let mut shares = Shares::new(&audit.regions, &audit.chunks, std::mem::take(&mut audit.big));
        let mut pool_blocks = 0;
        let mut refilled = [0; SIZE_CLASSES];
        for Use {
            address,
            class,
            arena,
            holder,
            blocks,
            bytes,
            samples,
        } in self.pools.uses()
        {
            pool_blocks += blocks;
            shares.pool(address, arena, bytes, u64::from(audit.pool_bytes));
            if holder != Holder::Special(Special::Refilled) {
                add(&mut estimates, holder, bytes, blocks, samples);
            } else if let Some(sum) = refilled.get_mut(class) {
                *sum += blocks;
            }
        }
        self.share_refilled(&audit, &refilled, &mut estimates);
        for block in large(audit.began) {
            let place = LibcBlock {
                addr: block.addr,
                bytes: block.bytes,
            };
            let unseen = |born| self.phases.unseen(born, AGE_UNIT_NS, audit.began);
            let born = block.born.filter(|_| !place.is_mapping());
            shares.large(&block, born.map_or(0.0, unseen));
        }
        let before_in_pools = estimates
            .get(&Holder::Special(Special::Before))
            .map_or(0, |estimate| estimate.bytes);
        let is_partial = self.phases.is_partial();
        shares.settle(
            &mut self.faults,
            audit.since_start,
            |tally| {
                if is_partial {
                    uses(tally)
                } else {
                    LargeUse::default()
                }
            },
            &mut estimates,
        );
        shares.forget_unmapped(&mut self.faults, audit.began);
        let of = |holder: Special| {
            let estimate = estimates.get(&Holder::Special(holder));
            estimate.map_or(0, |estimate| estimate.bytes)
        };
        self.summary = HeapSummary {
            audits: self.summary.audits + 1,
            last: audit.began,
            anonymous: shares.anonymous(),
            pool_blocks,
            pools_in_use: shares.pools_in_use(),
            pools_free: of(Special::Free),
            large: shares.large_resident(),
            untouched: shares.untouched(),
            large_unseen: shares.large_unseen(),
            touched: shares.touched(),
            before: of(Special::Before),
            before_in_pools,
            refilled: of(Special::Refilled),
            unknown: of(Special::Unknown),
            complete: audit.complete,
        };
        Some(estimates)
    }

    /// Shares out what is in use in refilled pools, by class: to those of whom windows tell, and what is left of pools that
    /// who drops all acquired to those who keep what they acquired.
    fn share_refilled(
        &mut self,
        audit: &HeapAudit,
        refilled: &[u64; SIZE_CLASSES],
        estimates: &mut Estimates,
    ) {
        let disowned = self.pools.disowned();
        let filled = |addr, class| self.pools.filled(addr, class, audit.pool_bytes);
        for share in self.refills.share(audit.began, refilled, filled) {
            let size = (share.class as u64 + 1) * ALIGNMENT;
            let mut left = share.blocks;
            let mut give = |holder, blocks: u64, samples| {
                left -= blocks;
                add(estimates, holder, blocks * size, blocks, samples);
            };
            if let Some(tally) = share.tally {
                give(Holder::Tally(tally), share.blocks, share.samples);
                continue;
            }
            let of_class = u8::try_from(share.class)
                .ok()
                .and_then(|class| disowned.get(&class));
            if let Some((blocks, keepers)) = of_class {
                let blocks = share.blocks.min(*blocks);
                let all: u64 = keepers.values().sum();
                for (&tally, &own) in keepers {
                    give(Holder::Tally(tally), blocks * own / all.max(1), 0);
                }
            }
            add(
                estimates,
                Holder::Special(Special::Refilled),
                left * size,
                left,
                0,
            );
        }
    }

    /// Forgets everything but what the last audit found.
    pub(super) fn end(&mut self) {
        *self = Self {
            summary: self.summary,
            ..Self::default()
        };
    }

    /// What the last audit found.
    pub(super) fn summary(&self) -> Option<HeapSummary> {
        (self.summary.audits > 0).then_some(self.summary)
    }
}

fn add(estimates: &mut Estimates, holder: Holder, bytes: u64, count: u64, samples: u64) {
    if bytes == 0 {
        return;
    }
    let estimate = estimates.entry(holder).or_default();
    estimate.bytes = estimate.bytes.saturating_add(bytes);
    estimate.count = estimate.count.saturating_add(count);
    estimate.samples = estimate.samples.saturating_add(samples);
}
