//! How long a group of sites was not traced in the life of a process, and what its figures are to be multiplied with.

use crate::units::MonotonicNs;

/// No figure is taken for more than so many times itself: what was looked at for a moment says little about an hour.
const MOST: f64 = 100.0;

/// Gaps of one group in one process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Untraced {
    /// Nanoseconds in gaps that have ended.
    total: u64,
    /// Since when one is open.
    since: Option<u64>,
}

impl Untraced {
    pub(super) fn begin(&mut self, from: MonotonicNs) {
        self.since.get_or_insert(from.0);
    }

    pub(super) fn end(&mut self, to: MonotonicNs) {
        if let Some(since) = self.since.take() {
            self.total = self.total.saturating_add(to.0.saturating_sub(since));
        }
    }

    /// What happened in a life from `first` to `last`, as a multiple of what was seen: as if it had gone on in the gaps as it
    /// did between them.
    pub(super) fn scale(&self, first: MonotonicNs, last: MonotonicNs) -> f64 {
        let open = self.since.map_or(0, |since| last.0.saturating_sub(since));
        let untraced = self.total.saturating_add(open) as f64;
        let life = last.0.saturating_sub(first.0) as f64;
        if untraced == 0.0 {
            return 1.0;
        }
        (life / (life - untraced).max(life / MOST)).clamp(1.0, MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(gaps: &[(u64, u64)], open: Option<u64>, expected: f64) {
        let mut untraced = Untraced::default();
        for &(from, to) in gaps {
            untraced.begin(MonotonicNs(from));
            untraced.end(MonotonicNs(to));
        }
        if let Some(from) = open {
            untraced.begin(MonotonicNs(from));
        }
        let scale = untraced.scale(MonotonicNs(1000), MonotonicNs(2000));
        assert!((scale - expected).abs() < 1e-9, "{scale} and not {expected}");
    }

    #[test]
    fn what_was_seen_stands_for_the_gaps_too() {
        check(&[], None, 1.0);
        check(&[(1000, 1500)], None, 2.0);
        check(&[(1000, 1500), (1600, 1850)], None, 4.0);
        check(&[(1000, 1500)], Some(1750), 4.0);
        check(&[], Some(1001), MOST);
        check(&[(1000, 9000)], None, MOST);
    }
}
