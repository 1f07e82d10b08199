//! Who frees soon what he allocates: next to nothing of much is left when a window's blocks are looked at.
//!
//! Apart from the windows, of which only the counts matter here. Such a stack acquires pools, as many as it allocates blocks, and
//! holds nothing in them. What is in use at the first look need not be what was seen: in a window that is shorter than a program's
//! loop most blocks are handed out again between its end and that look, which is not told. At the second look what is in them by
//! then is another object.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Key, young::Window};
use crate::units::MonotonicNs;

/// Allocations in a window from which on it tells who drops all, and of how many one may be left then: some rounds of many. Who makes a
/// temporary of the size of what he keeps has half of them left.
const TELLING: u64 = 32;
const DROPPED: f64 = 4.0;
/// The second look is no later than this behind a window's end, nanoseconds: what is kept for seconds is not dropped soon.
const SOON: u64 = 5_000_000_000;

/// Blocks of each class and stack.
pub(super) type Counts = FxHashMap<Key, u64>;
/// How many samples stand for.
pub(super) type Weights = FxHashMap<Key, f64>;

/// Of one stack and class.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Allocated in the window.
    all: u64,
    /// In use at the last look that counts,
    left: f64,
    /// ... and what those that are looked at on stood for then.
    weight: f64,
}

/// Those of one window.
#[derive(Debug)]
pub(super) struct Droppers {
    /// Since when it says so.
    from: u64,
    window: Window,
    /// Looks at its blocks so far.
    looks: u32,
    seen: FxHashMap<Key, Seen>,
    of: FxHashSet<Key>,
}

impl Droppers {
    /// A window, which stands for the time since `from`. `seen`: allocated in it; `left`: of those, in use at the first look.
    pub(super) fn new(
        from: u64,
        window: Window,
        seen: impl Iterator<Item = (Key, u64)>,
        left: &Counts,
    ) -> Self {
        let seen = seen.filter(|&(_, all)| all >= TELLING).map(|(key, all)| {
            let left = left.get(&key).copied().unwrap_or(0) as f64;
            let weight = 0.0;
            (key, Seen { all, left, weight })
        });
        let mut droppers = Self {
            from,
            window,
            looks: 0,
            seen: seen.collect(),
            of: FxHashSet::default(),
        };
        droppers.judge();
        droppers
    }

    /// The window, if a look at blocks that were allocated between two times counts for it.
    pub(super) fn wants(&self, first: u64, last: u64) -> Option<Window> {
        (self.looks < 2 && first <= self.window.from && self.window.to <= last).then_some(self.window)
    }

    /// Its blocks were looked at: what those stand for that are left.
    pub(super) fn looked_at(&mut self, time: MonotonicNs, weights: &Weights) {
        self.looks += 1;
        let is_second = self.looks == 2;
        if is_second && time.0.saturating_sub(self.window.to) > SOON {
            return;
        }
        for (key, seen) in &mut self.seen {
            let weight = weights.get(key).copied().unwrap_or_default();
            if is_second && seen.weight > 0.0 {
                seen.left *= (weight / seen.weight).min(1.0);
            }
            seen.weight = weight;
        }
        self.judge();
    }

    fn judge(&mut self) {
        let of = self
            .seen
            .iter()
            .filter(|(_, seen)| seen.left * DROPPED < seen.all as f64);
        self.of = of.map(|(key, _)| *key).collect();
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

    fn droppers(seen: u64, left: u64) -> Droppers {
        let seen = [(KEY, seen)].into_iter();
        let window = Window {
            from: 12,
            to: 14,
            since: 10,
            one_in: 1,
            begin: 0.0,
            work: 2.0,
            period: 2.0,
        };
        Droppers::new(10, window, seen, &Counts::from_iter([(KEY, left)]))
    }

    #[track_caller]
    fn check(droppers: &Droppers, expected: bool) {
        assert_eq!(droppers.has(KEY), expected);
        assert!(!droppers.has((4, 0)) && !droppers.has((3, 1)));
        assert!(droppers.speak_of(MonotonicNs(10)) && !droppers.speak_of(MonotonicNs(9)));
    }

    #[test]
    fn who_has_nothing_left_of_much_drops_all() {
        check(&droppers(60, 14), true);
        check(&droppers(60, 15), false);
        check(&droppers(32, 0), true);
        check(&droppers(31, 0), false);
    }

    #[test]
    fn the_second_look_tells_what_was_handed_out_again_before_the_first() {
        let weights = |weight| Weights::from_iter([(KEY, weight)]);
        let check_looks = |time: u64, looks: &[f64], expected: bool| {
            let mut droppers = droppers(60, 40);
            assert!(droppers.wants(13, 99).is_none() && droppers.wants(12, 13).is_none());
            for &weight in looks {
                assert!(droppers.wants(12, 14).is_some());
                droppers.looked_at(MonotonicNs(time), &weights(weight));
            }
            assert_eq!(droppers.wants(0, 99).is_none(), looks.len() >= 2);
            check(&droppers, expected);
        };
        check_looks(20, &[40.0], false);
        check_looks(20, &[40.0, 16.0], false);
        check_looks(20, &[40.0, 14.0], true);
        check_looks(20, &[10.0, 0.0], true);
        check_looks(20, &[10.0, 90.0], false);
        // None of them is looked at on.
        check_looks(20, &[0.0, 0.0], false);
        check_looks(SOON + 15, &[40.0, 0.0], false);
    }
}
