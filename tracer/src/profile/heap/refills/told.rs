//! What windows before the newest one told of one size class.
//!
//! A program that does something else between two windows leaves blocks that neither knows: those of the first are gone, replaced by
//! others of the same stacks, and in the second these allocate little or nothing. What the newest window does not explain is whose it was
//! by the window before in which each was seen, as far as there has been that much all the time, for as long as a window stands for what
//! comes after it. Pure. Invariant: nobody has more by this than that window told of him, and all together no more than there is.

use rustc_hash::FxHashMap;

use super::share::{Shares, blocks, ratio};
use crate::profile::live::TallyIndex;

/// Less is nothing.
const LEAST: f64 = 0.5;

/// What a window told of one stack: blocks, and how long the process had worked when the window was over.
#[derive(Clone, Copy, Debug)]
struct Claim {
    blocks: f64,
    told: f64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// By the last reading, of those that the newest window saw.
    newest: FxHashMap<TallyIndex, f64>,
    before: FxHashMap<TallyIndex, Claim>,
}

impl Told {
    /// There is a newer window than the one that was over at `end`, in work. If no reading came since, nothing was told of that.
    pub(super) fn open(&mut self, end: f64) {
        for (tally, blocks) in self.newest.drain() {
            self.before.insert(tally, Claim { blocks, told: end });
        }
    }

    /// Adds what was told before to what is `known` of so many blocks, as far as they are more. `seen`: whether the newest window saw
    /// a stack; what is older than `since`, in work, is forgotten.
    pub(super) fn complete(
        &mut self,
        known: &mut Shares,
        all: f64,
        since: f64,
        seen: impl Fn(TallyIndex) -> bool,
    ) {
        let of_newest = known.iter().filter(|(tally, _)| seen(**tally));
        self.newest = of_newest.map(|(&tally, known)| (tally, known.blocks)).collect();
        self.before.retain(|_, claim| claim.told >= since);
        let least = ratio(all, self.before.values().map(|claim| claim.blocks).sum()).min(1.0);
        self.before.retain(|_, claim| {
            claim.blocks *= least;
            claim.blocks >= LEAST
        });
        let missing = |(&tally, claim): (&TallyIndex, &Claim)| {
            let has = known.get(&tally).map_or(0.0, |known| known.blocks);
            (tally, (claim.blocks - has).max(0.0))
        };
        let missing: Vec<(TallyIndex, f64)> = self.before.iter().map(missing).collect();
        let sum = missing.iter().map(|(_, missing)| missing).sum();
        let part = ratio(all - blocks(known), sum).min(1.0);
        for (tally, missing) in missing {
            if missing * part >= LEAST {
                known.entry(tally).or_default().blocks += missing * part;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::heap::refills::share::{Known, whole};

    const CACHE: TallyIndex = 1;
    const OTHER: TallyIndex = 2;

    fn shares(of: &[(TallyIndex, f64)]) -> Shares {
        let known = |&(tally, blocks)| (tally, Known { blocks, samples: 1 });
        of.iter().map(known).collect()
    }

    /// What is said of so many blocks, of which the newest window saw some.
    fn said(
        told: &mut Told,
        [cache, other]: [f64; 2],
        seen: &[TallyIndex],
        all: f64,
        since: f64,
    ) -> [u64; 2] {
        let mut known = shares(&[(CACHE, cache), (OTHER, other)]);
        told.complete(&mut known, all, since, |tally| seen.contains(&tally));
        [CACHE, OTHER].map(|tally| whole(known[&tally].blocks))
    }

    /// A window that was over at 10 told of a cache.
    fn of_a_cache() -> Told {
        let mut told = Told::default();
        let of_window = said(&mut told, [100.0, 7.0], &[CACHE], 110.0, 0.0);
        assert_eq!(of_window, [100, 7]);
        told.open(10.0);
        told
    }

    #[test]
    fn what_the_newest_window_does_not_explain_is_whose_it_was() {
        let mut told = of_a_cache();
        let mut check = |known, all, expected| {
            assert_eq!(said(&mut told, known, &[OTHER], all, 10.0), expected);
        };
        check([0.0, 20.0], 130.0, [100, 20]);
        check([0.0, 80.0], 130.0, [50, 80]);
        // What he still has is not counted twice.
        check([60.0, 20.0], 130.0, [100, 20]);
    }

    #[test]
    fn each_window_tells_anew_of_whom_it_sees() {
        let mut told = of_a_cache();
        assert_eq!(said(&mut told, [30.0, 0.0], &[CACHE], 130.0, 10.0), [100, 0]);
        told.open(15.0);
        assert_eq!(said(&mut told, [0.0, 0.0], &[], 130.0, 10.0), [30, 0]);
    }

    #[test]
    fn windows_without_a_reading_between_them_take_nothing_away() {
        let mut told = of_a_cache();
        told.open(13.0);
        assert_eq!(said(&mut told, [0.0, 20.0], &[OTHER], 130.0, 10.0), [100, 20]);
    }

    #[test]
    fn a_window_of_long_ago_tells_nothing_however_many_came_since() {
        let mut told = of_a_cache();
        for end in [12.0, 14.0] {
            assert_eq!(said(&mut told, [0.0, 20.0], &[OTHER], 130.0, 10.0), [100, 20]);
            told.open(end);
        }
        assert_eq!(said(&mut told, [0.0, 0.0], &[], 130.0, 10.5), [0, 20]);
        assert_eq!(said(&mut told, [0.0, 0.0], &[], 130.0, 14.5), [0, 0]);
        assert_eq!((told.newest.len(), told.before.len()), (0, 0));
    }

    #[test]
    fn what_was_less_meanwhile_is_no_longer_known() {
        let mut told = of_a_cache();
        assert_eq!(said(&mut told, [0.0, 0.0], &[], 30.0, 10.0), [30, 0]);
        assert_eq!(said(&mut told, [0.0, 0.0], &[], 130.0, 10.0), [30, 0]);
        assert_eq!(said(&mut told, [0.0, 0.0], &[], 0.0, 10.0), [0, 0]);
        assert!(told.before.is_empty());
    }
}
