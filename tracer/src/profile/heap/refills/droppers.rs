//! Who frees soon what he allocates: next to nothing of much is left when a window is over.
//!
//! Such a stack acquires pools, as many as it allocates blocks, and holds nothing in them. What is in use at a later look does not tell
//! who is one: in a loop most blocks are handed out again between the window's end and that look, and a cache has turned over by then. So
//! the window itself tells, as far as blocks are handed out again in it: how many would be left if nothing but its end cut their lives
//! short. Who keeps each block for a time, as a cache does, is none. Pure.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{sample::Key, young::Window};
use crate::units::MonotonicNs;

/// Allocations in a window from which on it tells who drops all, and of how many one may be left then: some rounds of many. Who makes a
/// temporary of the size of what he keeps has half of them left.
const TELLING: u64 = 32;
const DROPPED: f64 = 4.0;
/// So many must have been there for a time, and so many of a hundred must not have been cut short before it, or it is not known
/// how many are left after it.
const FEW: usize = 8;
const UNCUT: usize = 25;
/// So many of a part of a window stand for the rest.
const FEW_EARLY: u64 = 4;

/// What one stack allocated of one class in a window, nanoseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct InWindow {
    /// After which time those were handed out again that were,
    ended: Vec<u64>,
    /// ... and how long the others had been there when it was over.
    stayed: Vec<u64>,
    /// Allocated in its first part.
    early: u64,
}

impl InWindow {
    /// One that was allocated in a window at `born`, and handed out again at `until`. By the clock.
    pub(super) fn add(&mut self, window: &Window, born: u64, until: Option<u64>) {
        match until {
            Some(until) => self.ended.push(until.saturating_sub(born)),
            None => self.stayed.push(window.to.saturating_sub(born)),
        }
        self.early += u64::from(window.is_early(born));
    }

    pub(super) fn all(&self) -> u64 {
        (self.ended.len() + self.stayed.len()) as u64
    }

    /// How many one stands for that was allocated in the first part, if that tells.
    pub(super) fn weight_of_early(&self) -> Option<f64> {
        (self.early >= FEW_EARLY).then(|| self.all() as f64 / self.early as f64)
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
        let (mut left, all) = (1.0, ended.len() + stayed.len());
        for (index, length) in ended.iter().enumerate() {
            let gone = stayed.partition_point(|stayed| stayed < length);
            let there = ended.len() - index + stayed.len() - gone;
            if there < FEW || (all - gone) * 100 < all * UNCUT {
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
    /// A window, which stands for the time since `from`. `seen`: allocated in it.
    pub(super) fn new(from: u64, seen: &FxHashMap<Key, InWindow>) -> Self {
        let drops = |seen: &InWindow| seen.all() >= TELLING && seen.left() * DROPPED < 1.0;
        let of = seen.iter().filter(|(_, seen)| drops(seen));
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
    const WINDOW: Window = Window {
        from: 0,
        to: 1000,
        since: 0,
        one_in: 1,
        begin: 0.0,
        work: 1000.0,
        period: 1000.0,
    };

    /// When each was allocated, and for how long it was there.
    fn in_window(lives: impl Iterator<Item = (u64, u64)>) -> InWindow {
        let mut in_window = InWindow::default();
        for (born, length) in lives {
            let until = Some(born + length).filter(|&until| until < WINDOW.to);
            in_window.add(&WINDOW, born, until);
        }
        in_window
    }

    #[track_caller]
    fn check(seen: InWindow, expected: bool) {
        let droppers = Droppers::new(10, &FxHashMap::from_iter([(KEY, seen)]));
        assert_eq!(droppers.has(KEY), expected);
        assert!(!droppers.has((4, 0)) && !droppers.has((3, 1)));
        assert!(droppers.speak_of(MonotonicNs(10)) && !droppers.speak_of(MonotonicNs(9)));
    }

    #[test]
    fn who_has_nothing_left_of_much_drops_all() {
        let dropped = |count: u64| in_window((0..count).map(|born| (born * 10, 50)));
        check(dropped(32), true);
        check(dropped(31), false);
    }

    #[test]
    fn the_window_tells_how_soon_they_go_however_many_it_cut_short() {
        let of_length = |length: u64| in_window((0..100).map(|born| (born * 10, length)));
        check(of_length(50), true);
        check(of_length(700), true);
        // Hardly any was there for as long, or none.
        check(of_length(800), false);
        check(of_length(2000), false);
    }

    #[test]
    fn what_few_did_at_first_is_not_what_many_do_at_the_end() {
        let soon_gone = (0..40).map(|born| (born, 100));
        let kept = (0..1000).map(|block| (910 + block % 90, 2000));
        check(in_window(soon_gone.chain(kept)), false);
    }

    #[test]
    fn who_keeps_every_other_one_does_not_drop_all() {
        let one_in =
            |kept: u64| in_window((0..100).map(|born| (born * 10, 3 + born % kept / (kept - 1) * 2000)));
        check(one_in(2), false);
        check(one_in(3), false);
        check(one_in(5), true);
    }

    #[test]
    fn the_first_part_stands_for_all_if_there_is_enough_of_it() {
        let weight = |blocks: &[u64]| in_window(blocks.iter().map(|&born| (born, 2000))).weight_of_early();
        assert_eq!(weight(&[1, 2, 3, 333, 334, 900]), Some(1.5));
        assert_eq!(weight(&[1, 2, 3, 334, 334, 900]), None);
    }
}
