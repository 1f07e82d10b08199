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
const WORTH: u64 = 1000;
const WORTH_OF_FIRST: u64 = 10_000;
/// Lengths. What a program makes and drops in a loop is known for that if the loop comes round in half a window.
pub(super) const SHORTEST: Duration = Duration::from_millis(20);
const FIRST: Duration = Duration::from_millis(320);
const LONGEST: Duration = Duration::from_millis(640);
/// Allocations of the sample that make a window long enough, and those that make it too long.
const FEW: u64 = 1000;
const MANY: u64 = 15_000;

/// The windows of a recording.
#[derive(Debug)]
pub(super) struct Windows {
    length: Duration,
    /// When the open one was opened.
    open: Option<MonotonicNs>,
    closed: Option<MonotonicNs>,
    /// What each process was hit before.
    before: FxHashMap<(Pid, BootNs), Hits>,
}

/// Hits of small blocks, by process.
pub(super) type HitsOf = Vec<((Pid, BootNs), Hits)>;

/// A window that is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) from: MonotonicNs,
    /// Those in it.
    pub(super) hits: HitsOf,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            length: FIRST,
            open: None,
            closed: None,
            before: FxHashMap::default(),
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

    /// All its probes are in place; what there was before.
    pub(super) fn opened(&mut self, now: MonotonicNs, hits: HitsOf) {
        self.open = Some(now);
        self.before = hits.into_iter().collect();
    }

    /// Whether one is.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// It is closed; what there is by now.
    pub(super) fn closed(&mut self, now: MonotonicNs, hits: HitsOf) -> Option<Closed> {
        let from = self.open.take()?;
        self.closed = Some(now);
        let before = std::mem::take(&mut self.before);
        let more = hits.into_iter().map(|(process, hits)| {
            let before = before.get(&process).copied().unwrap_or_default();
            (process, hits.since(before))
        });
        let hits = more.filter(|(_, hits)| hits.count > 0).collect();
        Some(Closed { from, hits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_due_where_something_was_filled_again_and_it_has_rested() {
        let second = |second: u64| MonotonicNs(second * 1_000_000_000);
        let hits = |count| {
            let hits = Hits {
                count,
                ..Hits::default()
            };
            vec![((Pid(1), BootNs(1)), hits)]
        };
        let grown = |refilled, first| Grown { refilled, first };
        let mut windows = Windows::default();
        assert!(!windows.is_due(second(1), grown(WORTH - 1, WORTH_OF_FIRST - 1)));
        assert!(windows.is_due(second(1), grown(WORTH, 0)));
        assert!(windows.is_due(second(1), grown(0, WORTH_OF_FIRST)));
        assert_eq!(windows.next_length(0), FIRST);
        windows.opened(second(1), hits(7));
        assert!(!windows.is_due(second(9), grown(WORTH, 0)));
        let closed = windows.closed(second(10), hits(10));
        let from = second(1);
        assert_eq!(closed, Some(Closed { from, hits: hits(3) }));
        assert!(!windows.is_due(second(12), grown(WORTH, 0)));
        assert!(windows.is_due(second(15), grown(WORTH, 0)));
        assert_eq!(windows.closed(second(31), hits(10)), None);
    }

    #[test]
    fn a_window_is_as_long_as_it_takes_to_see_enough() {
        let mut windows = Windows::default();
        windows.opened(MonotonicNs(1), Vec::new());
        windows.closed(MonotonicNs(2), Vec::new());
        assert_eq!(windows.next_length(FEW - 1), FIRST * 2);
        assert_eq!(windows.next_length(FEW), FIRST * 2);
        assert_eq!(windows.next_length(MANY + 1), FIRST);
        (0..20).for_each(|_| assert!(windows.next_length(0) <= LONGEST));
        assert_eq!(windows.next_length(0), LONGEST);
        (0..20).for_each(|_| assert!(windows.next_length(u64::MAX) >= SHORTEST));
        assert_eq!(windows.next_length(FEW), SHORTEST);
    }
}
