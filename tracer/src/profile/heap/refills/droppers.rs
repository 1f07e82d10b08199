//! Who frees soon what he allocates: next to nothing of much is left when a window is over, or when its blocks are looked at.
//!
//! Such a stack acquires pools, as many as it allocates blocks, and holds nothing in them. What is in use at the first look need not
//! be what was seen: in a loop most blocks are handed out again between the window's end and that look, which is not told.
//! So the window itself tells, as far as blocks are handed out again in it: how many would be left if nothing but its end cut their
//! lives short. Who keeps each block for a time, as a cache does, is none. Pure.

use rustc_hash::{FxHashMap, FxHashSet};

use super::sample::{Counts, Key};
use crate::units::MonotonicNs;

/// Allocations in a window from which on it tells who drops all, and of how many one may be left then: some rounds of many. Who makes a
/// temporary of the size of what he keeps has half of them left.
const TELLING: u64 = 32;
const DROPPED: f64 = 4.0;
/// So many must have been there for a time, or it is not known how many are left after it.
const FEW: usize = 8;

/// What one stack allocated of one class in a window, nanoseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct InWindow {
    /// After which time those were handed out again that were,
    ended: Vec<u64>,
    /// ... and how long the others had been there when it was over.
    stayed: Vec<u64>,
}

impl InWindow {
    /// One that was allocated at `born`, and handed out again at `until`, in a window up to `to`. By the clock.
    pub(super) fn add(&mut self, born: u64, until: Option<u64>, to: u64) {
        match until {
            Some(until) => self.ended.push(until.saturating_sub(born)),
            None => self.stayed.push(to.saturating_sub(born)),
        }
    }

    pub(super) fn all(&self) -> u64 {
        (self.ended.len() + self.stayed.len()) as u64
    }

    /// Which part of them is left after the longest time of which that is known. The product-limit estimate, see E. L. Kaplan and
    /// P. Meier, <https://doi.org/10.1080/01621459.1958.10501452>.
    fn left(&self) -> f64 {
        let sorted = |lengths: &[u64]| {
            let mut lengths = lengths.to_vec();
            lengths.sort_unstable();
            lengths
        };
        let (ended, stayed) = (sorted(&self.ended), sorted(&self.stayed));
        let mut left = 1.0;
        for (index, length) in ended.iter().enumerate() {
            let gone = stayed.partition_point(|stayed| stayed < length);
            let there = ended.len() - index + stayed.len() - gone;
            if there < FEW {
                break;
            }
            left *= 1.0 - 1.0 / there as f64;
        }
        left
    }
}

/// Those of one window.
#[derive(Debug)]
pub(super) struct Droppers {
    /// Since when it says so.
    from: u64,
    of: FxHashSet<Key>,
}

impl Droppers {
    /// A window, which stands for the time since `from`. `seen`: allocated in it; `left`: of those, in use at the first look.
    pub(super) fn new(from: u64, seen: &FxHashMap<Key, InWindow>, left: &Counts) -> Self {
        let drops = |key: &Key, seen: &InWindow| {
            let left = left.get(key).copied().unwrap_or(0) as f64 / seen.all() as f64;
            seen.all() >= TELLING && left.min(seen.left()) * DROPPED < 1.0
        };
        let of = seen.iter().filter(|(key, seen)| drops(key, seen));
        Self {
            from,
            of: of.map(|(key, _)| *key).collect(),
        }
    }

    /// Whether the window tells of this time, unless a later one does.
    pub(super) fn speak_of(&self, time: MonotonicNs) -> bool {
        time.0 >= self.from
    }

    /// Whether a stack is one, of a class.
    pub(super) fn has(&self, key: Key) -> bool {
        self.of.contains(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (3, 0);

    /// In a window of a thousand.
    fn in_window(lives: impl Iterator<Item = (u64, u64)>) -> InWindow {
        let mut in_window = InWindow::default();
        for (born, length) in lives {
            let until = Some(born + length).filter(|&until| until < 1000);
            in_window.add(born, until, 1000);
        }
        in_window
    }

    #[track_caller]
    fn check(seen: InWindow, left: u64, expected: bool) {
        let droppers = Droppers::new(
            10,
            &FxHashMap::from_iter([(KEY, seen)]),
            &Counts::from_iter([(KEY, left)]),
        );
        assert_eq!(droppers.has(KEY), expected);
        assert!(!droppers.has((4, 0)) && !droppers.has((3, 1)));
        assert!(droppers.speak_of(MonotonicNs(10)) && !droppers.speak_of(MonotonicNs(9)));
    }

    #[test]
    fn who_has_nothing_left_of_much_drops_all() {
        let all = |count: u64| in_window((0..count).map(|born| (born, 2000)));
        check(all(60), 14, true);
        check(all(60), 15, false);
        check(all(32), 0, true);
        check(all(31), 0, false);
    }

    #[test]
    fn the_window_tells_how_soon_they_go_however_many_it_cut_short() {
        let of_length = |length: u64| in_window((0..100).map(|born| (born * 10, length)));
        check(of_length(50), 100, true);
        check(of_length(700), 100, true);
        // A few were there for as long, or none.
        check(of_length(960), 100, false);
        check(of_length(2000), 100, false);
    }

    #[test]
    fn who_keeps_every_other_one_does_not_drop_all() {
        let one_in =
            |kept: u64| in_window((0..100).map(|born| (born * 10, 3 + born % kept / (kept - 1) * 2000)));
        check(one_in(2), 100, false);
        check(one_in(3), 100, false);
        check(one_in(5), 100, true);
    }
}
