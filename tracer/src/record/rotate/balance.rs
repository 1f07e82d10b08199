//! The counters of a process as each file is to have them: from the file's own beginning.
//!
//! The kernel side counts from the process's first hit, and its counters are ahead of the records that wait in the ring.
//! So where one file ends and the next begins, what was produced is what the files so far hold and what was lost until
//! then. Invariant: in every file delivered + lost = produced, and the files' sums are the kernel side's own counters.

use tracer_ebpf::reason::Reason;

use crate::{ingest::event::Counters, profile::Operations};

/// The counts of one process.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// Operations in all files so far.
    pub(super) delivered: Operations,
    /// What the files before this one account for.
    base: Counters,
    /// The newest counters of the kernel side.
    newest: Counters,
}

impl Balance {
    /// The kernel side's counters, as this file is to have them.
    pub(super) fn since(&self, counters: &Counters) -> Counters {
        counters.combine(&self.base, u64::saturating_sub)
    }

    /// Takes the kernel side's counters; gives them as this file is to have them.
    pub(super) fn take(&mut self, counters: &Counters) -> Counters {
        self.newest = *counters;
        self.since(counters)
    }

    /// The file ends: what it accounts for.
    pub(super) fn close(&mut self) -> Counters {
        let lost = |reason: Reason| self.newest.losses.get(reason as usize).copied().unwrap_or(0);
        let now = Counters {
            allocs: self.delivered.allocs.saturating_add(lost(Reason::RingFullAlloc)),
            frees: self.delivered.frees.saturating_add(lost(Reason::RingFullFree)),
            reallocs: self
                .delivered
                .reallocs
                .saturating_add(lost(Reason::RingFullRealloc)),
            faults: self.delivered.faults.saturating_add(lost(Reason::RingFullFault)),
            ..self.newest
        };
        let of_file = now.combine(&self.base, u64::saturating_sub);
        self.base = now;
        of_file
    }
}

/// Each minus the other's, never below 0.
pub(super) fn losses_minus<const N: usize>(losses: &[u64; N], base: &[u64; N]) -> [u64; N] {
    let mut left = *losses;
    for (left, base) in left.iter_mut().zip(base) {
        *left = left.saturating_sub(*base);
    }
    left
}
