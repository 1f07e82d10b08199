//! Who frees soon what he allocates: next to nothing of much is left when a window's blocks are looked at for the first time.
//!
//! Apart from the windows, of which only the counts matter here. Such a stack acquires pools, as many as it allocates blocks, and
//! holds nothing in them.

use rustc_hash::{FxHashMap, FxHashSet};

use super::Key;
use crate::units::MonotonicNs;

/// Allocations in a window from which on it tells who drops all, and of how many one may be left then: some rounds of many. Who makes a
/// temporary of the size of what he keeps has half of them left.
const TELLING: u64 = 32;
const DROPPED: u64 = 4;

/// Blocks of each class and stack.
pub(super) type Counts = FxHashMap<Key, u64>;

/// Those of the window that was looked at last, and the time that it stands for.
#[derive(Debug, Default)]
pub(super) struct Droppers {
    from: u64,
    to: u64,
    of: FxHashSet<Key>,
}

impl Droppers {
    /// `seen`: allocated in a window; `left`: of those, in use at the first look.
    pub(super) fn new(from: u64, to: u64, seen: &Counts, left: &Counts) -> Self {
        let left = |key: &Key| left.get(key).copied().unwrap_or(0);
        let droppers = seen
            .iter()
            .filter(|&(key, &seen)| seen >= TELLING && left(key) * DROPPED < seen);
        Self {
            from,
            to,
            of: droppers.map(|(key, _)| *key).collect(),
        }
    }

    /// Whether a stack is one, of a class at a time.
    pub(super) fn has(&self, key: Key, time: MonotonicNs) -> bool {
        (self.from..=self.to).contains(&time.0) && self.of.contains(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seen: u64, left: u64, expected: bool) {
        let counts = |blocks| Counts::from_iter([((3, 0), blocks)]);
        let droppers = Droppers::new(10, 20, &counts(seen), &counts(left));
        assert_eq!(droppers.has((3, 0), MonotonicNs(15)), expected);
        assert!(!droppers.has((3, 0), MonotonicNs(9)) && !droppers.has((3, 0), MonotonicNs(21)));
        assert!(!droppers.has((4, 0), MonotonicNs(15)) && !droppers.has((3, 1), MonotonicNs(15)));
    }

    #[test]
    fn who_has_nothing_left_of_much_drops_all() {
        check(60, 14, true);
        check(60, 15, false);
        check(32, 0, true);
        check(31, 0, false);
    }
}
