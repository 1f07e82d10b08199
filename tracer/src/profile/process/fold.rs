//! What is left of a process that is gone, added to what is left of others.
//!
//! Apart from `process`, which is about one that runs. Invariant: every sum over processes stays what it was; only the
//! marks and names of the single processes are no longer told.

use super::{Held, ProcessState, StackTally};
use crate::{
    mode::Mode,
    profile::{End, ProcessInfo, StackId},
    units::Pid,
};

/// What a process costs besides its tallies, in tallies.
const OWN_COST: usize = 64;

impl ProcessState {
    /// Nothing yet.
    pub(in crate::profile) fn folded(mode: Mode) -> Self {
        let info = ProcessInfo {
            end: End::Exit,
            ..ProcessInfo::unseen(Pid(0))
        };
        Self::new(info, mode)
    }

    /// How much memory it takes, in tallies.
    pub(in crate::profile) fn cost(&self) -> usize {
        self.tallies.len() + OWN_COST
    }

    /// Takes what is left of another.
    pub(in crate::profile) fn absorb(&mut self, gone: &Self) {
        let scale = gone.scale();
        for tally in &gone.tallies {
            let at_peak = tally.held.at_peak(&gone.high_water);
            if let Some(own) = self.folded_tally(tally.stack) {
                own.allocated = plus(own.allocated, tally.allocated_in_all(scale));
                own.temporary = plus(own.temporary, tally.temporary);
                own.held.absorb(tally.held.now(), at_peak);
                own.at_audit = plus(own.at_audit, tally.at_audit);
                own.at_peak = plus(own.at_peak, tally.at_peak);
            }
        }
        if let Some(counters) = gone.counters {
            let sum = self.counters.get_or_insert_default();
            *sum = sum.combine(&counters, u64::saturating_add);
        }
        self.delivered = self.delivered.plus(gone.delivered);
        self.unmatched_frees = self.unmatched_frees.saturating_add(gone.unmatched_frees);
        self.stale_blocks = self.stale_blocks.saturating_add(gone.stale_blocks);
        self.symbolizer.add_problems(gone.symbolizer.problems());
        for image in &gone.info.images {
            if !self.info.images.contains(image) {
                self.info.images.push(*image);
            }
        }
        let (own, other) = (&mut self.info, &gone.info);
        // Known, so that it is not taken for one whose start was lost.
        own.parent = own.parent.or(other.parent);
        own.first_seen = match (own.first_seen, other.first_seen) {
            (Some(own), Some(other)) => Some(own.min(other)),
            (own, other) => own.or(other),
        };
        own.last_seen = own.last_seen.max(other.last_seen);
    }

    fn folded_tally(&mut self, stack: Option<StackId>) -> Option<&mut StackTally> {
        let known = match stack {
            Some(stack) => self.ids.of_stack(stack).map(|index| index as usize),
            None => self.tallies.iter().position(|tally| tally.stack.is_none()),
        };
        let index = known.unwrap_or(self.tallies.len());
        if known.is_none() {
            self.tallies.push(StackTally {
                stack,
                ..StackTally::default()
            });
            if let (Some(stack), Ok(index)) = (stack, u32::try_from(index)) {
                self.ids.set_stack(stack, index);
            }
        }
        self.tallies.get_mut(index)
    }
}

fn plus(a: Held, b: Held) -> Held {
    Held {
        bytes: a.bytes.saturating_add(b.bytes),
        count: a.count.saturating_add(b.count),
    }
}
