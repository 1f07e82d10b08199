//! What changed in a process's pools since they were last told: most pools of a large heap stay as they are.
//!
//! Apart from `reading`, which reads; here is only compared. Invariant: the changes of all readings so far, applied in their
//! order, give the pools of the last one.

use crate::{ingest::PoolState, python::Pool, units::ProcAddr};

/// What changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Pools that are not as they were.
    pub(super) pools: Vec<PoolState>,
    pub(super) grown: Grown,
    /// Pools for which there was no room.
    pub(super) refused: u64,
}

/// Blocks that came into use, as far as readings tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Grown {
    /// In space that had been used before (by an acquisition of the same class, or by a refill), or in pools that were
    /// acquired while nobody looked.
    pub(super) refilled: u64,
    /// Elsewhere.
    pub(super) first: u64,
}

/// Puts what was `found`, in no order, in the place of `known`, which is in order of addresses; what is different. What stands where
/// nobody looked is as it was. `room`: so many more are remembered at most. `unseen`: acquisitions were not traced for a time since.
pub(super) fn pool_changes(
    known: &mut Vec<PoolState>,
    found: Vec<(ProcAddr, Pool)>,
    was_read: impl Fn(ProcAddr) -> bool,
    mut room: usize,
    unseen: bool,
) -> Changes {
    let mut now: Vec<PoolState> = found
        .into_iter()
        .map(|(address, pool)| PoolState::new(address, pool))
        .collect();
    now.extend(known.iter().filter(|old| !was_read(ProcAddr(old.address))));
    now.sort_unstable_by_key(|pool| pool.address);
    now.dedup_by_key(|pool| pool.address);
    let mut changes = Vec::new();
    let (mut refilled, mut grown, mut refused) = (0, 0, 0);
    let mut before = known.iter().peekable();
    now.retain(|pool| {
        while let Some(gone) = before.next_if(|old| old.address < pool.address) {
            changes.push(PoolState { used: 0, ..*gone });
        }
        let old = before.next_if(|old| old.address == pool.address);
        if old.is_none() && room == 0 {
            refused += 1;
            return false;
        }
        room -= usize::from(old.is_none());
        if old != Some(pool) {
            changes.push(*pool);
        }
        let used = old.map_or(0, |old| old.used);
        grown += u64::from(pool.used.saturating_sub(used));
        if old.is_none() && unseen {
            refilled += u64::from(pool.used);
        }
        if let Some(old) = old.filter(|old| old.class == pool.class) {
            let fresh = pool.carved.saturating_sub(old.carved).saturating_add(1);
            refilled += u64::from(pool.used.saturating_sub(old.used).saturating_sub(fresh));
        }
        true
    });
    changes.extend(before.map(|gone| PoolState { used: 0, ..*gone }));
    *known = now;
    Changes {
        pools: changes,
        grown: Grown {
            refilled,
            first: grown.saturating_sub(refilled),
        },
        refused,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Pools with so many blocks at these addresses.
    fn pools(all: &[(u64, u32)]) -> Vec<(ProcAddr, Pool)> {
        let pool = |used| Pool {
            class: 3,
            used,
            carved: 9,
            arena: 0,
        };
        all.iter().map(|&(at, used)| (ProcAddr(at), pool(used))).collect()
    }

    #[test]
    fn where_there_is_no_room_pools_are_counted_and_those_known_stay() {
        let mut known = Vec::new();
        let mut check = |found: &[(u64, u32)], room, expected: (usize, u64), blocks: u64| {
            let changes = pool_changes(&mut known, pools(found), |_| true, room, false);
            assert_eq!((changes.pools.len(), changes.refused), expected);
            assert_eq!(changes.grown.first + changes.grown.refilled, blocks);
        };
        check(&[(1, 2), (3, 2), (5, 2)], 2, (2, 1), 4);
        check(&[(0, 7), (1, 3), (3, 2), (5, 2)], 0, (1, 2), 1);
        check(&[(0, 7), (3, 2)], 0, (1, 1), 0);
        check(&[(0, 7), (3, 2)], 1, (1, 0), 7);
    }

    proptest! {
        #[test]
        fn changes_applied_in_order_give_the_last_reading(
            readings in prop::collection::vec(
                (prop::collection::btree_map(0_u64..20, 1_u32..4, 0..12), any::<u32>()), 1..6,
            )
        ) {
            let mut known = Vec::new();
            let mut applied: BTreeMap<u64, PoolState> = BTreeMap::new();
            let mut expected: BTreeMap<u64, u32> = BTreeMap::new();
            for (reading, unread) in readings {
                // Nobody looked at some places: nothing is found there, and what was there is still.
                let was_read = |at: u64| unread >> at & 1 == 0;
                expected.retain(|&at, _| !was_read(at));
                expected.extend(reading.iter().filter(|(at, _)| was_read(**at)));
                let found: Vec<(u64, u32)> = reading
                    .iter()
                    .rev()
                    .map(|(&at, &used)| (at, used))
                    .filter(|&(at, _)| was_read(at))
                    .collect();
                let was_read = |at: ProcAddr| was_read(at.get());
                for change in pool_changes(&mut known, pools(&found), was_read, 20, false).pools {
                    let before = applied.remove(&change.address);
                    prop_assert_ne!(before, Some(change));
                    if change.used > 0 {
                        applied.insert(change.address, change);
                    }
                }
                let now: BTreeMap<u64, u32> =
                    applied.iter().map(|(&at, pool)| (at, u32::from(pool.used))).collect();
                prop_assert_eq!(&now, &expected);
            }
        }
    }
}
