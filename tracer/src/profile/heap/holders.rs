//! The heap's estimates as the tallies of a process: set anew at each audit, with the high-water mark of both together.
//!
//! Apart from the heap itself, which knows no tallies. Invariant: between two audits the estimates do not change; what is
//! exact (large blocks) does.

use super::{Changes, Estimate, Growth, Heap, HeapSummary, Holder, Special};
use crate::{
    ingest::{
        HeapAudit, LibcBlock, Survey,
        event::{Alloc, Fault, FaultKind},
    },
    profile::{
        apply::SamplingWindow,
        audit::class_of,
        high_water::HighWater,
        live::{LiveSet, TallyIndex},
        process::StackTally,
        stacks::StackTable,
    },
    symbolize::FrameTable,
    units::MonotonicNs,
};

/// The heap of one process, and whose it is.
#[derive(Debug, Default)]
pub(in crate::profile) struct Holders {
    heap: Heap,
    /// The tallies of what nobody is known for, once there is something.
    special: [Option<TallyIndex>; Special::ALL.len()],
    /// Sum of all estimates, less what of large blocks is not resident.
    estimated: i64,
    /// The most that was held at an audit, bytes.
    peak: u64,
    growth: Growth,
}

impl Holders {
    pub(in crate::profile) fn acquired(&mut self, event: &Alloc, size: u64, tally: TallyIndex) {
        if let Some(class) = class_of(size) {
            self.heap.acquired(event.addr.0, class, tally, event.time);
        }
    }

    pub(in crate::profile) fn sampled(&mut self, event: &Alloc, size: u64, tally: TallyIndex) {
        if let Some(class) = class_of(size) {
            self.heap.sampled(event.addr.0, class, tally, event.time);
        }
    }

    pub(in crate::profile) fn large_allocated(&mut self, block: LibcBlock, tally: TallyIndex) {
        self.heap.large_allocated(block, tally);
    }

    pub(in crate::profile) fn large_freed(&mut self, addr: u64) {
        self.heap.large_freed(addr);
    }

    pub(in crate::profile) fn pool_gap(&mut self, from: MonotonicNs, to: Option<MonotonicNs>) {
        self.heap.pool_gap(from, to);
    }

    pub(in crate::profile) fn large_gap(&mut self, from: MonotonicNs, to: Option<MonotonicNs>) {
        self.heap.large_gap(from, to);
    }

    pub(in crate::profile) fn window(&mut self, window: SamplingWindow) {
        self.heap.window(window);
    }

    pub(in crate::profile) fn survey(&mut self, survey: &Survey) {
        self.heap.survey(survey);
    }

    pub(in crate::profile) fn touched(&mut self, event: &Fault, tally: TallyIndex) {
        match event.kind {
            FaultKind::Touch => self.heap.touched(event, tally),
            FaultKind::Mapping => self.heap.mapping(event, tally),
            FaultKind::Room => self.heap.room(event, tally),
        }
    }

    pub(in crate::profile) fn add(&mut self, audit: HeapAudit) {
        self.heap.add(audit);
    }

    #[inline]
    pub(in crate::profile) fn is_due(&self, time: MonotonicNs) -> bool {
        self.heap.is_due(time)
    }

    pub(in crate::profile) fn summary(&self) -> Option<HeapSummary> {
        self.heap.summary()
    }

    /// The process is gone: what it held last stays in its tallies, and is no longer held by anybody.
    pub(in crate::profile) fn end(&mut self, all: &mut HighWater) {
        self.set_estimated(0, all);
        self.heap.end();
    }

    /// What the next audit which ended before `time` tells of large blocks.
    pub(in crate::profile) fn take_changes(&mut self, time: MonotonicNs) -> Option<Changes> {
        self.heap.take_changes(time)
    }

    /// Takes one audit in that ended before `time`; whether there was one.
    pub(in crate::profile) fn take(
        &mut self,
        time: MonotonicNs,
        live: &LiveSet,
        tallies: &mut Vec<StackTally>,
        stacks: &mut StackTable,
        all: &mut HighWater,
    ) -> bool {
        let of = |tally: TallyIndex| tallies.get(tally as usize).map(StackTally::large_use);
        let uses = |tally| of(tally).unwrap_or_default();
        let taken = self.heap.take(time, |now| live.large_blocks(now), uses);
        let Some(estimates) = taken else {
            return false;
        };
        for tally in &mut *tallies {
            tally.estimated = Estimate::default();
        }
        let mut sum = 0_i64;
        for (holder, estimate) in estimates {
            let index = match holder {
                Holder::Tally(index) => index,
                Holder::Special(special) => self.special(special, tallies, stacks),
            };
            if let Some(tally) = tallies.get_mut(index as usize) {
                tally.estimated = estimate;
                sum = sum
                    .saturating_add_unsigned(estimate.bytes)
                    .saturating_sub_unsigned(estimate.untouched);
            }
        }
        self.set_estimated(sum, all);
        self.mark(tallies);
        if let Some(summary) = self.heap.summary() {
            self.growth
                .add(summary.last, tallies.iter().map(|tally| tally.at_audit.bytes));
        }
        true
    }

    /// What each tally held over time.
    pub(in crate::profile) fn growth(&self) -> &Growth {
        &self.growth
    }

    /// Notes what all hold, and whether it is more than ever.
    fn mark(&mut self, tallies: &mut [StackTally]) {
        let mut sum = 0_u64;
        for tally in &mut *tallies {
            tally.at_audit = tally.held_in_all();
            sum = sum.saturating_add(tally.at_audit.bytes);
        }
        if sum > self.peak {
            self.peak = sum;
            for tally in tallies {
                tally.at_peak = tally.at_audit;
            }
        }
    }

    fn set_estimated(&mut self, sum: i64, all: &mut HighWater) {
        let change = sum.abs_diff(self.estimated);
        if sum > self.estimated {
            all.grow(change);
        } else {
            all.shrink(change);
        }
        self.estimated = sum;
    }

    fn special(
        &mut self,
        special: Special,
        tallies: &mut Vec<StackTally>,
        stacks: &mut StackTable,
    ) -> TallyIndex {
        let (place, frame) = match special {
            Special::Before => (0, FrameTable::BEFORE),
            Special::Refilled => (1, FrameTable::REFILLED),
            Special::Free => (2, FrameTable::FREE),
            Special::Unknown => (3, FrameTable::NOT_ATTRIBUTED),
        };
        let known = self.special.get(place).copied().flatten();
        known.unwrap_or_else(|| {
            let index = TallyIndex::try_from(tallies.len()).unwrap_or(TallyIndex::MAX);
            tallies.push(StackTally {
                stack: Some(stacks.intern(&[frame]).unwrap_or(stacks.overflow())),
                ..StackTally::default()
            });
            if let Some(known) = self.special.get_mut(place) {
                *known = Some(index);
            }
            index
        })
    }
}
