//! When to look at every allocation for a moment: where pools were filled again or heaps grew, and not more often than it may cost.
//!
//! Pure: it says when a window is due and how long it is to be; `owner` opens and closes it. Invariant: two windows are at
//! least [`LEAST_REST`] apart, however much is filled again.

use std::time::Duration;

use rustc_hash::FxHashMap;

use super::pool_changes::Grown;
use crate::{
    ingest::event::Hits,
    units::{BootNs, MonotonicNs, Pid},
};

/// Between the end of one window and the start of the next: putting hundreds of probes in place costs more than the window.
const LEAST_REST: Duration = Duration::from_secs(5);
/// Blocks that were filled again and are worth a window, and others: of those acquisitions tell, but not whether who acquires a
/// pool keeps anything in it.
pub(super) const WORTH: u64 = 1000;
const WORTH_OF_FIRST: u64 = 10_000;
/// Lengths. What a program makes and drops in a loop is known for that if the loop comes round in half a window.
pub(super) const SHORTEST: Duration = Duration::from_millis(5);
const FIRST: Duration = Duration::from_millis(320);
const LONGEST: Duration = Duration::from_millis(640);
/// Allocations of the sample that make a window long enough, and those that make it too long.
const FEW: u64 = 1000;
const MANY: u64 = 15_000;

/// The windows of a recording.
#[derive(Debug)]
pub(super) struct Windows {
    length: Duration,
    /// When the open one was opened, and whether the budget allows no more.
    open: Option<MonotonicNs>,
    is_cut: bool,
    closed: Option<MonotonicNs>,
    /// What each process was hit before, and what it had used.
    before: Option<FxHashMap<(Pid, BootNs), Spent>>,
}

/// Hits of small blocks, and the processor time of a process so far, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) hits: Hits,
    pub(super) used: u64,
}

/// The same, by process.
pub(super) type SpentBy = Vec<((Pid, BootNs), Spent)>;

/// A window that is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) from: MonotonicNs,
    /// Whether it was shorter than it should have been.
    pub(super) was_cut: bool,
    /// What was spent before it, and in it, by those that were hit.
    pub(super) spent: Vec<((Pid, BootNs), [Spent; 2])>,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            length: FIRST,
            open: None,
            is_cut: false,
            closed: None,
            before: None,
        }
    }
}

impl Windows {
    /// Whether one is due. `grown`: since the last one.
    pub(super) fn is_due(&self, now: MonotonicNs, grown: Grown) -> bool {
        let rest = u64::try_from(LEAST_REST.as_nanos()).unwrap_or(u64::MAX);
        let rested = self
            .closed
            .is_none_or(|closed| now.0.saturating_sub(closed.0) >= rest);
        let is_worth = grown.refilled >= WORTH || grown.first >= WORTH_OF_FIRST;
        is_worth && rested && self.open.is_none()
    }

    /// How long the last one should have been.
    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// How long the next one is to be: longer if in the last one few allocations were seen, shorter if many were.
    pub(super) fn next_length(&mut self, seen: u64) -> Duration {
        if self.closed.is_some() {
            if seen < FEW {
                self.length = (self.length * 2).min(LONGEST);
            } else if seen > MANY {
                self.length = (self.length / 2).max(SHORTEST);
            }
        }
        self.length
    }

    /// All its probes are in place; what there was before, if that could be read. `is_cut`: for less time than there should be.
    pub(super) fn opened(&mut self, now: MonotonicNs, is_cut: bool, spent: Option<SpentBy>) {
        (self.open, self.is_cut) = (Some(now), is_cut);
        self.before = spent.map(|spent| spent.into_iter().collect());
    }

    /// Whether one is.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// It is closed; what there is by now. Nobody is known to have been hit if that is not known for both.
    pub(super) fn closed(&mut self, now: MonotonicNs, spent: Option<SpentBy>) -> Option<Closed> {
        let from = self.open.take()?;
        self.closed = Some(now);
        let both = self.before.take().zip(spent);
        let more = both.into_iter().flat_map(|(before, spent)| {
            // Of one that came in between it is not known what it had used.
            spent.into_iter().filter_map(move |(process, spent)| {
                let before = *before.get(&process)?;
                let inside = Spent {
                    hits: spent.hits.since(before.hits),
                    used: spent.used.saturating_sub(before.used),
                };
                Some((process, [before, inside]))
            })
        });
        let spent = more.filter(|(_, [_, inside])| inside.hits.count > 0).collect();
        Some(Closed {
            from,
            was_cut: self.is_cut,
            spent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_due_where_something_was_filled_again_and_it_has_rested() {
        let second = |second: u64| MonotonicNs(second * 1_000_000_000);
        let spent = |count| Spent {
            hits: Hits {
                count,
                ..Hits::default()
            },
            used: count * 100,
        };
        let process = (Pid(1), BootNs(1));
        let hits = |count| Some(vec![(process, spent(count))]);
        let grown = |refilled, first| Grown { refilled, first };
        let mut windows = Windows::default();
        assert!(!windows.is_due(second(1), grown(WORTH - 1, WORTH_OF_FIRST - 1)));
        assert!(windows.is_due(second(1), grown(WORTH, 0)));
        assert!(windows.is_due(second(1), grown(0, WORTH_OF_FIRST)));
        assert_eq!(windows.next_length(0), FIRST);
        windows.opened(second(1), true, hits(7));
        assert!(!windows.is_due(second(9), grown(WORTH, 0)));
        let closed = windows.closed(second(10), hits(10));
        let from = second(1);
        let inside = vec![(process, [spent(7), spent(3)])];
        assert_eq!(
            closed,
            Some(Closed {
                from,
                was_cut: true,
                spent: inside
            })
        );
        assert!(!windows.is_due(second(12), grown(WORTH, 0)));
        assert!(windows.is_due(second(15), grown(WORTH, 0)));
        assert_eq!(windows.closed(second(31), hits(10)), None);
        for (before, after) in [(None, hits(10)), (hits(7), None)] {
            windows.opened(from, false, before);
            let closed = windows.closed(second(40), after);
            assert_eq!(
                closed,
                Some(Closed {
                    from,
                    was_cut: false,
                    spent: Vec::new()
                })
            );
        }
    }

    #[test]
    fn a_window_is_as_long_as_it_takes_to_see_enough() {
        let mut windows = Windows::default();
        windows.opened(MonotonicNs(1), false, None);
        windows.closed(MonotonicNs(2), None);
        assert_eq!(windows.next_length(FEW - 1), FIRST * 2);
        assert_eq!(windows.next_length(FEW), FIRST * 2);
        assert_eq!(windows.next_length(MANY + 1), FIRST);
        (0..20).for_each(|_| assert!(windows.next_length(0) <= LONGEST));
        assert_eq!(windows.next_length(0), LONGEST);
        (0..20).for_each(|_| assert!(windows.next_length(u64::MAX) >= SHORTEST));
        assert_eq!(windows.next_length(FEW), SHORTEST);
    }
}
