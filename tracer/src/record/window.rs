//! When to look at every allocation for a moment: where pools were filled again or heaps grew, and not more often than it may cost.
//!
//! Pure: it says when a window is due and how long it is to be; `owner` opens and closes it. Invariant: two windows are at
//! least [`LEAST_REST`] apart, however much is filled again, or [`LEAST_REST_UNBOUNDED`].

use std::time::Duration;

use rustc_hash::FxHashMap;

use super::pool_changes::Grown;
use crate::{
    ingest::event::Hits,
    units::{BootNs, MonotonicNs, Pid},
};

/// Between the end of one window and the start of the next: putting hundreds of probes in place costs more than the window,
const LEAST_REST: Duration = Duration::from_secs(5);
/// ... which is fine where nobody wants a bound to the cost: what stays in a cache for a second is known for a few seconds only.
const LEAST_REST_UNBOUNDED: Duration = Duration::from_secs(2);
/// Blocks that were filled again and are worth a window, and others: of those acquisitions tell, but not whether who acquires a
/// pool keeps anything in it.
pub(super) const WORTH: u64 = 1000;
const WORTH_OF_FIRST: u64 = 10_000;
/// Lengths. What a program makes and drops in a loop is known for that if the loop comes round in half a window.
pub(super) const SHORTEST: Duration = Duration::from_millis(5);
const FIRST: Duration = Duration::from_millis(320);
const LONGEST: Duration = Duration::from_millis(640);
/// A window does not go on for less.
const LEAST_MORE: Duration = Duration::from_millis(2);
/// Allocations of the sample that make a window long enough, and those that make it too long.
const FEW: u64 = 1000;
const MANY: u64 = 15_000;

/// The windows of a recording.
#[derive(Debug)]
pub(super) struct Windows {
    rest: Duration,
    length: Duration,
    open: Option<Open>,
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

/// A window that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Open {
    from: MonotonicNs,
    /// How long it should be, and what it may cost any process.
    length: Duration,
    room: Duration,
}

/// A window that is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) from: MonotonicNs,
    /// Whether it was shorter than it should have been.
    pub(super) was_cut: bool,
    /// What was spent before it, and in it, by those that were hit.
    pub(super) spent: Vec<((Pid, BootNs), [Spent; 2])>,
}

impl Windows {
    /// `max_overhead`: the bound to what the recording may cost, if there is one.
    pub(super) fn new(max_overhead: Option<f64>) -> Self {
        Self {
            rest: max_overhead.map_or(LEAST_REST_UNBOUNDED, |_| LEAST_REST),
            length: FIRST,
            open: None,
            closed: None,
            before: None,
        }
    }

    /// Whether one is due. `grown`: since the last one.
    pub(super) fn is_due(&self, now: MonotonicNs, grown: Grown) -> bool {
        let rest = u64::try_from(self.rest.as_nanos()).unwrap_or(u64::MAX);
        let rested = self
            .closed
            .is_none_or(|closed| now.0.saturating_sub(closed.0) >= rest);
        let is_worth = grown.refilled >= WORTH || grown.first >= WORTH_OF_FIRST;
        is_worth && rested && self.open.is_none()
    }

    /// What the next one is to have room for at least: a long one now and then tells more than many in which nothing has time to go.
    pub(super) fn least_room(&self) -> Duration {
        self.closed.map_or(SHORTEST, |_| self.length)
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

    /// All its probes are in place; what there was before, if that could be read. It is to be so long, as far as it costs no process more
    /// than `room`.
    pub(super) fn opened(
        &mut self,
        from: MonotonicNs,
        length: Duration,
        room: Duration,
        spent: Option<SpentBy>,
    ) {
        self.open = Some(Open { from, length, room });
        self.before = spent.map(|spent| spent.into_iter().collect());
    }

    /// How much longer the open one can go on, if in the worst case it costs as much as it lasts. `cost`: of hits.
    pub(super) fn more(
        &self,
        now: MonotonicNs,
        spent: &SpentBy,
        cost: impl Fn(Hits) -> Duration,
    ) -> Option<Duration> {
        let Open { from, length, room } = self.open?;
        let before = self.before.as_ref()?;
        let left = length.checked_sub(Duration::from_nanos(now.0.saturating_sub(from.0)))?;
        let costs = spent.iter().map(|(process, spent)| {
            let before = before.get(process).copied().unwrap_or_default();
            cost(spent.hits.since(before.hits))
        });
        let more = left.min(room.checked_sub(costs.max().unwrap_or_default())?);
        (more >= LEAST_MORE).then_some(more)
    }

    /// Whether one is.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// It is closed; what there is by now. Nobody is known to have been hit if that is not known for both.
    pub(super) fn closed(&mut self, now: MonotonicNs, spent: Option<SpentBy>) -> Option<Closed> {
        let Open { from, length, .. } = self.open.take()?;
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
            was_cut: Duration::from_nanos(now.0.saturating_sub(from.0)) + LEAST_MORE < length,
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
        let mut windows = Windows::new(Some(2.0));
        assert!(!windows.is_due(second(1), grown(WORTH - 1, WORTH_OF_FIRST - 1)));
        assert!(windows.is_due(second(1), grown(WORTH, 0)));
        assert!(windows.is_due(second(1), grown(0, WORTH_OF_FIRST)));
        assert_eq!(windows.next_length(0), FIRST);
        let ms = Duration::from_millis;
        windows.opened(second(1), ms(10_000), Duration::MAX, hits(7));
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
            windows.opened(from, ms(39_000), Duration::MAX, before);
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
    fn a_window_goes_on_while_it_is_paid_for() {
        let at = |ms: u64| MonotonicNs(ms * 1_000_000);
        let spent = |counts: [u64; 2]| {
            let of = |pid, count| {
                let hits = Hits {
                    count,
                    ..Hits::default()
                };
                ((Pid(pid), BootNs(1)), Spent { hits, used: 0 })
            };
            vec![of(1, counts[0]), of(2, counts[1])]
        };
        let ms = Duration::from_millis;
        let mut windows = Windows::new(Some(2.0));
        let more = |windows: &Windows, now: u64, counts| {
            windows.more(at(now), &spent(counts), |hits| ms(hits.count))
        };
        assert_eq!(more(&windows, 1000, [0, 0]), None);
        windows.opened(at(1000), ms(320), ms(40), Some(spent([100, 7])));
        assert_eq!(more(&windows, 1040, [110, 12]), Some(ms(30)));
        assert_eq!(more(&windows, 1070, [116, 27]), Some(ms(20)));
        assert_eq!(more(&windows, 1300, [116, 27]), Some(ms(20)));
        assert_eq!(more(&windows, 1310, [116, 27]), Some(ms(10)));
        assert_eq!(more(&windows, 1319, [116, 27]), None);
        assert_eq!(more(&windows, 1100, [139, 27]), None);
        assert_eq!(more(&windows, 1100, [900, 27]), None);
        assert_eq!(more(&windows, 1400, [116, 27]), None);
        let was_cut = |windows: &mut Windows, now| windows.closed(at(now), None).map(|closed| closed.was_cut);
        assert_eq!(was_cut(&mut windows, 1319), Some(false));
        windows.opened(at(2000), ms(320), ms(40), None);
        assert_eq!(more(&windows, 2010, [0, 0]), None);
        assert_eq!(was_cut(&mut windows, 2300), Some(true));
    }

    #[test]
    fn without_a_bound_they_come_sooner() {
        let grown = Grown {
            refilled: WORTH,
            first: 0,
        };
        let second = |second: u64| MonotonicNs(second * 1_000_000_000);
        for (max_overhead, least) in [(Some(2.0), 5), (None, 2)] {
            let mut windows = Windows::new(max_overhead);
            windows.opened(second(1), FIRST, Duration::MAX, None);
            windows.closed(second(10), None);
            assert!(!windows.is_due(second(10 + least - 1), grown));
            assert!(windows.is_due(second(10 + least), grown));
        }
    }

    #[test]
    fn a_window_is_as_long_as_it_takes_to_see_enough() {
        let mut windows = Windows::new(Some(2.0));
        assert_eq!(windows.least_room(), SHORTEST);
        windows.opened(MonotonicNs(1), FIRST, Duration::MAX, None);
        windows.closed(MonotonicNs(2), None);
        assert_eq!(windows.least_room(), FIRST);
        assert_eq!(windows.next_length(FEW - 1), FIRST * 2);
        assert_eq!(windows.next_length(FEW), FIRST * 2);
        assert_eq!(windows.next_length(MANY + 1), FIRST);
        (0..20).for_each(|_| assert!(windows.next_length(0) <= LONGEST));
        assert_eq!(windows.next_length(0), LONGEST);
        (0..20).for_each(|_| assert!(windows.next_length(u64::MAX) >= SHORTEST));
        assert_eq!(windows.next_length(FEW), SHORTEST);
    }
}
