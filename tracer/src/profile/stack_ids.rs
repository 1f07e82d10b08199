//! Which tally each stack id of a process stands for, in bounded memory.
//!
//! The kernel side gives all stacks new ids whenever a code object dies, so the ids of a process that makes code grow
//! without end while its stacks do not. Two generations are kept: an id that was used while the newer one filled up is
//! in it. Invariant: what is forgotten was not used for as long as [`GENERATION`] other ids came; should it come again
//! it is an unknown stack, which is counted.

use rustc_hash::FxHashMap;

use super::{live::TallyIndex, stacks::StackId};

/// Ids of a generation. The kernel side itself remembers fewer for a process.
const GENERATION: usize = 1 << 18;

/// The ids of one process.
#[derive(Debug, Default)]
pub(super) struct StackIds {
    newer: FxHashMap<u64, TallyIndex>,
    older: FxHashMap<u64, TallyIndex>,
    by_stack: FxHashMap<StackId, TallyIndex>,
}

impl StackIds {
    /// The tally that an id stands for.
    pub(super) fn get(&mut self, id: u64) -> Option<TallyIndex> {
        if let Some(&index) = self.newer.get(&id) {
            return Some(index);
        }
        let index = self.older.remove(&id)?;
        self.insert(id, index);
        Some(index)
    }

    /// From now on the id stands for this tally.
    pub(super) fn insert(&mut self, id: u64, index: TallyIndex) {
        if self.newer.len() >= GENERATION {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(id, index);
    }

    /// The tally of a stack that had another id before.
    pub(super) fn of_stack(&self, stack: StackId) -> Option<TallyIndex> {
        self.by_stack.get(&stack).copied()
    }

    /// This is the tally of that stack, unless it has one.
    pub(super) fn set_stack(&mut self, stack: StackId, index: TallyIndex) {
        self.by_stack.entry(stack).or_insert(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_use_stay_and_others_are_forgotten() {
        let mut ids = StackIds::default();
        ids.insert(0, 1);
        ids.insert(1, 2);
        for id in 2..3 * GENERATION as u64 {
            ids.insert(id, 3);
            if id % 1000 == 0 {
                assert_eq!(ids.get(0), Some(1));
            }
        }
        assert_eq!(ids.get(0), Some(1));
        assert_eq!(ids.get(1), None);
        assert!(ids.newer.len() + ids.older.len() <= 2 * GENERATION);
    }
}
