//! When to look at every allocation for a moment: where pools were filled again, and not more often than it may cost.
//!
//! Pure: it says when a window is due and how long it is to be; `owner` opens and closes it. Invariant: two windows are at
//! least [`LEAST_REST`] apart, however much is filled again.

use std::time::Duration;

use crate::units::MonotonicNs;

/// Between the end of one window and the start of the next: putting hundreds of probes in place costs more than the window.
const LEAST_REST: Duration = Duration::from_secs(5);
/// Blocks that were filled again and are worth a window.
const WORTH: u64 = 1000;
/// Lengths.
pub(super) const SHORTEST: Duration = Duration::from_millis(5);
const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(320);
/// Allocations that make a window long enough, and those that make it too long.
const FEW: u64 = 300;
const MANY: u64 = 5000;

/// The windows of a recording.
#[derive(Debug)]
pub(super) struct Windows {
    length: Duration,
    /// When the open one was opened.
    open: Option<MonotonicNs>,
    closed: Option<MonotonicNs>,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            length: FIRST,
            open: None,
            closed: None,
        }
    }
}

impl Windows {
    /// Whether one is due. `refilled`: blocks that were filled again since the last one.
    pub(super) fn is_due(&self, now: MonotonicNs, refilled: u64) -> bool {
        let rest = u64::try_from(LEAST_REST.as_nanos()).unwrap_or(u64::MAX);
        let rested = self
            .closed
            .is_none_or(|closed| now.0.saturating_sub(closed.0) >= rest);
        refilled >= WORTH && rested && self.open.is_none()
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

    /// All its probes are in place.
    pub(super) fn opened(&mut self, now: MonotonicNs) {
        self.open = Some(now);
    }

    /// Whether one is.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// It is closed; when it was opened.
    pub(super) fn closed(&mut self, now: MonotonicNs) -> Option<MonotonicNs> {
        let opened = self.open.take()?;
        self.closed = Some(now);
        Some(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_due_where_something_was_filled_again_and_it_has_rested() {
        let second = |second: u64| MonotonicNs(second * 1_000_000_000);
        let mut windows = Windows::default();
        assert!(!windows.is_due(second(1), WORTH - 1));
        assert!(windows.is_due(second(1), WORTH));
        assert_eq!(windows.next_length(0), FIRST);
        windows.opened(second(1));
        assert!(!windows.is_due(second(9), WORTH));
        assert_eq!(windows.closed(second(10)), Some(second(1)));
        assert!(!windows.is_due(second(12), WORTH));
        assert!(windows.is_due(second(15), WORTH));
        assert_eq!(windows.closed(second(31)), None);
    }

    #[test]
    fn a_window_is_as_long_as_it_takes_to_see_enough() {
        let mut windows = Windows::default();
        windows.opened(MonotonicNs(1));
        windows.closed(MonotonicNs(2));
        assert_eq!(windows.next_length(FEW - 1), FIRST * 2);
        assert_eq!(windows.next_length(FEW), FIRST * 2);
        assert_eq!(windows.next_length(MANY + 1), FIRST);
        (0..20).for_each(|_| assert!(windows.next_length(0) <= LONGEST));
        assert_eq!(windows.next_length(0), LONGEST);
        (0..20).for_each(|_| assert!(windows.next_length(u64::MAX) >= SHORTEST));
        assert_eq!(windows.next_length(FEW), SHORTEST);
    }
}
