//! What was told of one size class before its newest window.
//!
//! A program that does something else between two windows leaves blocks that neither knows: those of the first are gone, replaced by
//! others of the same stacks, and at the second nobody allocates such. What the newest window does not explain is still what it was,
//! as far as there has been that much all the time. Pure. Invariant: nobody has more by this than was told of him, and all together
//! no more than there is.

use rustc_hash::FxHashMap;

use super::{Shares, blocks, ratio};
use crate::profile::live::TallyIndex;

/// Blocks, by stack.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// By the last reading.
    last: FxHashMap<TallyIndex, f64>,
    /// By the last one before the newest window, or as much of it as there has been since.
    before: FxHashMap<TallyIndex, f64>,
}

impl Told {
    /// There is a new window. `holds`: it comes soon enough after the one before.
    pub(super) fn open(&mut self, holds: bool) {
        let last = std::mem::take(&mut self.last);
        self.before = if holds { last } else { FxHashMap::default() };
    }

    /// Adds what was told before to what is known of so many blocks, as far as they are more.
    pub(super) fn complete(&mut self, known: &mut Shares, all: f64) {
        let least = ratio(all, self.before.values().sum()).min(1.0);
        for before in self.before.values_mut() {
            *before *= least;
        }
        let missing = |(&tally, &before): (&TallyIndex, &f64)| {
            let has = known.get(&tally).map_or(0.0, |known| known.blocks);
            (tally, (before - has).max(0.0))
        };
        let missing: Vec<(TallyIndex, f64)> = self.before.iter().map(missing).collect();
        let part = ratio(
            all - blocks(known),
            missing.iter().map(|(_, missing)| missing).sum(),
        );
        for (tally, missing) in missing {
            known.entry(tally).or_default().blocks += missing * part.min(1.0);
        }
        self.last = known
            .iter()
            .map(|(&tally, known)| (tally, known.blocks))
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::heap::refills::{Known, whole};

    const CACHE: TallyIndex = 1;
    const OTHER: TallyIndex = 2;

    fn shares(of: &[(TallyIndex, f64)]) -> Shares {
        let known = |&(tally, blocks)| (tally, Known { blocks, samples: 1 });
        of.iter().map(known).collect()
    }

    /// What is said of so many blocks.
    fn said(told: &mut Told, known: &[(TallyIndex, f64)], all: f64) -> [u64; 2] {
        let mut known = shares(known);
        told.complete(&mut known, all);
        [CACHE, OTHER].map(|tally| known.get(&tally).map_or(0, |known| whole(known.blocks)))
    }

    /// A window told of a cache.
    fn of_a_cache(holds: bool) -> Told {
        let mut told = Told::default();
        assert_eq!(said(&mut told, &[(CACHE, 100.0)], 110.0), [100, 0]);
        told.open(holds);
        told
    }

    #[test]
    fn what_the_newest_window_does_not_explain_is_what_it_was() {
        let mut told = of_a_cache(true);
        assert_eq!(said(&mut told, &[(OTHER, 20.0)], 130.0), [100, 20]);
        assert_eq!(said(&mut told, &[(OTHER, 80.0)], 130.0), [50, 80]);
        // What it still has is not counted twice.
        assert_eq!(said(&mut told, &[(CACHE, 60.0), (OTHER, 20.0)], 130.0), [100, 20]);
        told.open(true);
        assert_eq!(said(&mut told, &[], 130.0), [100, 20]);
    }

    #[test]
    fn what_was_less_meanwhile_is_no_longer_known() {
        let mut told = of_a_cache(true);
        assert_eq!(said(&mut told, &[], 30.0), [30, 0]);
        assert_eq!(said(&mut told, &[], 130.0), [30, 0]);
    }

    #[test]
    fn a_window_of_long_ago_tells_nothing() {
        assert_eq!(said(&mut of_a_cache(false), &[], 130.0), [0, 0]);
    }
}
