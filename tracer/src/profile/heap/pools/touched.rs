//! Who fills pools of which nobody saw the acquisition: who touched memory first in them, or near them.
//!
//! A heap that grows faster than the budget lets look at gets its pools in a gap, but they lie in memory that is new, where page
//! faults tell of a part of the pages (`regions`). Pools beside each other were acquired one after the other, and the blocks of one
//! pool are of one size class: the nearest touch in a pool of the same class tells whose it is. Pure. Invariant: a touch tells of
//! no more memory than it may stand for, as there can be more that was used before.

use rustc_hash::FxHashMap;

use crate::{ingest::PAGE, profile::live::TallyIndex};

/// A touch stands for so many pages that are of its class on average; it is believed for so many times as many.
const MOST: u64 = 4;
/// So many times those that are left look for the nearest one.
const ROUNDS: usize = 8;

/// A page, who touched it first, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::profile::heap) struct Touched {
    pub(in crate::profile::heap) addr: u64,
    pub(in crate::profile::heap) tally: TallyIndex,
    /// How many pages it stands for.
    pub(in crate::profile::heap) pages: u32,
    pub(in crate::profile::heap) time: u64,
}

/// Touches by size class, in order of addresses, and of how many bytes each may tell still.
#[derive(Debug, Default)]
pub(super) struct ByPage(FxHashMap<u8, Vec<(Touched, u64)>>);

impl ByPage {
    pub(super) fn new(touches: impl Iterator<Item = (u8, Touched)>) -> Self {
        let mut by_class: FxHashMap<u8, Vec<(Touched, u64)>> = FxHashMap::default();
        for (class, touch) in touches {
            let most = u64::from(touch.pages) * PAGE * MOST;
            by_class.entry(class).or_default().push((touch, most));
        }
        for touches in by_class.values_mut() {
            touches.sort_unstable_by_key(|(touch, _)| touch.addr);
        }
        Self(by_class)
    }

    /// Which touch tells of each of these pools, with their size classes: the nearest one of the class, and of each those that are
    /// nearest to it, no more than it stands for. Pools of which none is left then are told of by the nearest one that has told of less:
    /// how many of the touches are told changes with what they cost, so that here and there they are few.
    pub(super) fn of_pools(mut self, pools: &[(u8, u64)], pool_bytes: u64) -> Vec<(u64, Touched)> {
        let mut of_pools = Vec::with_capacity(pools.len());
        let mut open = pools.to_vec();
        for _ in 0..ROUNDS {
            open = self.of_nearest(&open, pool_bytes, &mut of_pools);
            if open.is_empty() {
                break;
            }
        }
        of_pools
    }

    /// One round of it, in which touches come to stand for less; the pools of which none told.
    fn of_nearest(
        &mut self,
        pools: &[(u8, u64)],
        pool_bytes: u64,
        told: &mut Vec<(u64, Touched)>,
    ) -> Vec<(u8, u64)> {
        let mut found: Vec<(u64, u64, (u8, usize))> = Vec::with_capacity(pools.len());
        for &(class, pool) in pools {
            if let Some((distance, index)) = self.nearest(class, pool, pool_bytes) {
                found.push((distance, pool, (class, index)));
            }
        }
        found.sort_unstable();
        let mut open = Vec::new();
        for (_, pool, (class, index)) in found {
            let touch = self.0.get_mut(&class).and_then(|touches| touches.get_mut(index));
            match touch.filter(|(_, left)| *left > 0) {
                Some((touch, left)) => {
                    *left = left.saturating_sub(pool_bytes);
                    told.push((pool, *touch));
                }
                None => open.push((class, pool)),
            }
        }
        for touches in self.0.values_mut() {
            touches.retain(|(_, left)| *left > 0);
        }
        open
    }

    /// How far the nearest touch of a class is from a pool, and which it is.
    fn nearest(&self, class: u8, pool: u64, pool_bytes: u64) -> Option<(u64, usize)> {
        let touches = self.0.get(&class)?;
        let end = pool.saturating_add(pool_bytes);
        let behind = touches.partition_point(|(touch, _)| touch.addr < pool);
        let both = [behind.checked_sub(1), Some(behind)].into_iter().flatten();
        let distances = both.filter_map(|index| {
            let (touch, _) = touches.get(index)?;
            let before = pool.saturating_sub(touch.addr);
            Some((
                before.max(touch.addr.saturating_add(1).saturating_sub(end)),
                index,
            ))
        });
        distances.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: u64 = 4 * PAGE;

    /// Touches: page, pages that it stands for. Expected: pools of which a touch tells, and that touch's page.
    #[track_caller]
    fn check(touches: &[(u64, u32)], pools: &[u64], expected: &[(u64, u64)]) {
        let touches = touches.iter().rev().map(|&(page, pages)| Touched {
            addr: page * PAGE,
            tally: 7,
            pages,
            time: 5,
        });
        let of_class = |class| {
            let pools: Vec<(u8, u64)> = pools.iter().map(|pool| (class, pool * POOL)).collect();
            let all = ByPage::new(touches.clone().map(|touch| (3, touch)));
            let mut found = all.of_pools(&pools, POOL);
            found.sort_unstable_by_key(|&(pool, _)| pool);
            found
        };
        let found: Vec<(u64, u64)> = of_class(3)
            .iter()
            .map(|(pool, touch)| (pool / POOL, touch.addr / PAGE))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(of_class(4), []);
    }

    #[test]
    fn a_pool_is_of_who_touched_it_or_what_is_nearest() {
        check(&[(41, 4), (43, 4), (44, 4)], &[10], &[(10, 41)]);
        check(&[(39, 4), (46, 4)], &[10], &[(10, 39)]);
        check(&[(36, 4), (44, 4)], &[10], &[(10, 44)]);
        check(&[(4, 4), (400, 4)], &[10, 90], &[(10, 4), (90, 400)]);
        check(&[], &[10], &[]);
    }

    #[test]
    fn a_touch_tells_of_no_more_than_it_stands_for() {
        check(&[(40, 1)], &[7, 10, 12, 14], &[(10, 40)]);
        check(&[(40, 2)], &[7, 10, 12, 14], &[(10, 40), (12, 40)]);
        check(
            &[(40, 2), (80, 1)],
            &[10, 12, 13, 30],
            &[(10, 40), (12, 40), (30, 80)],
        );
    }

    #[test]
    fn of_a_pool_whose_nearest_touch_has_told_enough_the_next_one_tells() {
        check(
            &[(40, 1), (80, 2), (800, 1)],
            &[10, 11, 12, 13, 14, 15],
            &[(10, 40), (13, 800), (14, 80), (15, 80)],
        );
    }

    #[test]
    fn any_address_and_any_weight_can_be_told() {
        let last = u64::MAX / POOL;
        let touches = [(0, u32::MAX), (u64::MAX / PAGE, 1)];
        check(&touches, &[0, last], &[(0, 0), (last, u64::MAX / PAGE)]);
    }
}
