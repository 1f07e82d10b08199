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

/// Puts what was `found`, in no order, in the place of `known`, which is in order of addresses; what is different.
/// `unseen`: acquisitions were not traced for a time since.
pub(super) fn pool_changes(
    known: &mut Vec<PoolState>,
    found: Vec<(ProcAddr, Pool)>,
    unseen: bool,
) -> Changes {
    let mut now: Vec<PoolState> = found
        .into_iter()
        .map(|(address, pool)| PoolState::new(address, pool))
        .collect();
    now.sort_unstable_by_key(|pool| pool.address);
    now.dedup_by_key(|pool| pool.address);
    let mut changes = Vec::new();
    let (mut refilled, mut grown) = (0, 0);
    let mut before = known.iter().peekable();
    for pool in &now {
        while let Some(gone) = before.next_if(|old| old.address < pool.address) {
            changes.push(PoolState { used: 0, ..*gone });
        }
        let old = before.next_if(|old| old.address == pool.address);
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
    }
    changes.extend(before.map(|gone| PoolState { used: 0, ..*gone }));
    *known = now;
    Changes {
        pools: changes,
        grown: Grown {
            refilled,
            first: grown.saturating_sub(refilled),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn changes_applied_in_order_give_the_last_reading(
            readings in prop::collection::vec(prop::collection::btree_map(0_u64..20, 1_u32..4, 0..12), 1..6)
        ) {
            let mut known = Vec::new();
            let mut applied: BTreeMap<u64, PoolState> = BTreeMap::new();
            for reading in readings {
                let found = reading
                    .iter()
                    .rev()
                    .map(|(&at, &used)| (ProcAddr(at), Pool { class: 3, used, carved: 9, arena: 0 }))
                    .collect();
                for change in pool_changes(&mut known, found, false).pools {
                    let before = applied.remove(&change.address);
                    prop_assert_ne!(before, Some(change));
                    if change.used > 0 {
                        applied.insert(change.address, change);
                    }
                }
                let now: BTreeMap<u64, u32> =
                    applied.iter().map(|(&at, pool)| (at, u32::from(pool.used))).collect();
                prop_assert_eq!(now, reading);
            }
        }
    }
}
