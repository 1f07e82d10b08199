//! Who acquires pools of which size class, as far as acquisitions were traced: they are a sample of those that were not.
//!
//! Pure.

use rustc_hash::FxHashMap;

use crate::profile::live::TallyIndex;

/// From so many acquisitions on they are a sample,
const TELLING: u64 = 4;
/// ... unless they are so old that all of them count for no more than this.
const FADED: f64 = 1.0 / 64.0;

/// Of one class.
#[derive(Debug, Default)]
struct Class {
    seen: u64,
    /// The older count for less.
    weights: FxHashMap<TallyIndex, f64>,
}

/// By class.
#[derive(Debug, Default)]
pub(super) struct Acquirers(FxHashMap<u8, Class>);

impl Acquirers {
    pub(super) fn seen(&mut self, class: u8, tally: TallyIndex) {
        let class = self.0.entry(class).or_default();
        class.seen += 1;
        *class.weights.entry(tally).or_default() += 1.0;
    }

    /// Whether a stack was ever seen to acquire such a pool; `None` if it was never seen to acquire any.
    pub(super) fn has(&self, class: u8, tally: TallyIndex) -> Option<bool> {
        let has = |class: &Class| class.weights.contains_key(&tally);
        let is_known = self.0.values().any(has);
        is_known.then(|| self.0.get(&class).is_some_and(has))
    }

    /// Gives pools, with their classes, to those who acquire such, in their shares.
    pub(super) fn share_out(&self, mut pools: Vec<(u8, u64)>) -> Vec<(u64, TallyIndex)> {
        pools.sort_unstable();
        let mut given = Vec::with_capacity(pools.len());
        for of_class in pools.chunk_by(|(one, _), (other, _)| one == other) {
            let class = of_class.first().and_then(|(class, _)| self.0.get(class));
            let Some(class) = class.filter(|class| class.seen >= TELLING) else {
                continue;
            };
            let mut weights: Vec<(TallyIndex, f64)> = class
                .weights
                .iter()
                .map(|(&tally, &weight)| (tally, weight))
                .collect();
            weights.sort_unstable_by_key(|&(tally, _)| tally);
            let all: f64 = weights.iter().map(|(_, weight)| weight).sum();
            if all < FADED {
                continue;
            }
            let step = all / of_class.len() as f64;
            let (mut weights, mut end, mut at) = (weights.into_iter(), 0.0, step / 2.0);
            let mut current = None;
            for &(_, pool) in of_class {
                while end <= at
                    && let Some((tally, weight)) = weights.next()
                {
                    current = Some(tally);
                    end += weight;
                }
                given.extend(current.map(|tally| (pool, tally)));
                at += step;
            }
        }
        given
    }

    /// What comes from here on counts twice as much as what was before.
    pub(super) fn age(&mut self) {
        let weights = self.0.values_mut().flat_map(|class| class.weights.values_mut());
        weights.for_each(|weight| *weight /= 2.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquirers(counts: &[(u8, TallyIndex, u64)]) -> Acquirers {
        let mut acquirers = Acquirers::default();
        for &(class, tally, count) in counts {
            (0..count).for_each(|_| acquirers.seen(class, tally));
        }
        acquirers
    }

    /// So many pools of each of two classes, and how many of them two stacks are given.
    #[track_caller]
    fn check(acquirers: &Acquirers, pools: [u64; 2], expected: [u64; 2]) {
        let pools = [(3, pools[0]), (4, pools[1])];
        let pools = pools
            .into_iter()
            .flat_map(|(class, count)| (0..count).map(move |pool| (class, pool)));
        let given = acquirers.share_out(pools.collect());
        let of = |tally| given.iter().filter(|(_, of)| *of == tally).count() as u64;
        assert_eq!([of(0), of(1)], expected);
    }

    #[test]
    fn pools_are_given_in_the_shares_in_which_others_were_acquired() {
        let mut acquirers = acquirers(&[(3, 0, 3), (3, 1, 1), (4, 1, 4), (5, 0, 9)]);
        check(&acquirers, [100, 0], [75, 25]);
        check(&acquirers, [100, 10], [75, 35]);
        check(&acquirers, [1, 0], [1, 0]);
        check(&acquirers, [0, 0], [0, 0]);
        acquirers.age();
        check(&acquirers, [100, 0], [75, 25]);
        acquirers.seen(3, 1);
        acquirers.seen(3, 1);
        check(&acquirers, [100, 0], [37, 63]);
        let has = |tally| [3, 4, 6].map(|class| acquirers.has(class, tally));
        assert_eq!(has(0), [Some(true), Some(false), Some(false)]);
        assert_eq!(has(1), [Some(true), Some(true), Some(false)]);
        assert_eq!(has(2), [None; 3]);
    }

    #[test]
    fn a_few_acquisitions_are_no_sample() {
        check(&acquirers(&[(3, 0, 2), (3, 1, 1)]), [100, 5], [0, 0]);
        let mut acquirers = acquirers(&[(3, 0, 4)]);
        check(&acquirers, [100, 5], [100, 0]);
        (0..8).for_each(|_| acquirers.age());
        check(&acquirers, [100, 5], [100, 0]);
        acquirers.age();
        check(&acquirers, [100, 5], [0, 0]);
        assert_eq!(
            (acquirers.has(3, 0), acquirers.has(4, 0)),
            (Some(true), Some(false))
        );
    }
}
