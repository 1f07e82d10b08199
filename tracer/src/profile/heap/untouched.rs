//! Large blocks that are not resident as a whole: whose the part is that is not.
//!
//! The kernel says how much of a region is resident, and not which block that is. What is missing is taken from the blocks of
//! a region where no page was seen touched. Invariant: what is taken from each block is no more than it has, and the sum no
//! more than what is missing.

use crate::profile::live::TallyIndex;

/// A large block, or all of one stack in one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) tally: TallyIndex,
    pub(super) bytes: u64,
    /// As far as page faults tell.
    pub(super) touched: u64,
}

/// How much of each block is not resident if of all of them `missing` bytes are.
pub(super) fn share_out(blocks: &[Block], missing: u64) -> impl Iterator<Item = (TallyIndex, u64)> {
    let untouched = |block: &Block| block.bytes.saturating_sub(block.touched);
    let touched = |block: &Block| block.bytes.min(block.touched);
    let sum = |part: &dyn Fn(&Block) -> u64| blocks.iter().map(|block| u128::from(part(block))).sum::<u128>();
    let (all_untouched, all_touched) = (sum(&untouched), sum(&touched));
    let of_untouched = u128::from(missing).min(all_untouched);
    // What was touched and is not resident was given back.
    let of_touched = (u128::from(missing) - of_untouched).min(all_touched);
    blocks.iter().map(move |block| {
        let part = |bytes: u64, of: u128, all: u128| u128::from(bytes) * of / all.max(1);
        let bytes = part(untouched(block), of_untouched, all_untouched)
            + part(touched(block), of_touched, all_touched);
        (block.tally, u64::try_from(bytes).unwrap_or(block.bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(blocks: &[(u64, u64)], missing: u64, expected: &[u64]) {
        let blocks: Vec<Block> = blocks
            .iter()
            .map(|&(bytes, touched)| Block {
                tally: 0,
                bytes,
                touched,
            })
            .collect();
        let found: Vec<u64> = share_out(&blocks, missing).map(|(_, bytes)| bytes).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_missing_is_missing_where_nothing_was_touched() {
        check(&[(100, 100), (100, 0)], 60, &[0, 60]);
        check(&[(100, 80), (300, 220)], 50, &[10, 40]);
        check(&[(100, 0), (300, 0)], 40, &[10, 30]);
        // More than that was given back after it was touched.
        check(&[(100, 50), (150, 150)], 100, &[62, 37]);
        // More faults than pages.
        check(&[(100, 900), (100, 0)], 100, &[0, 100]);
    }

    #[test]
    fn no_block_loses_more_than_it_has() {
        check(&[(100, 50), (50, 50)], 1000, &[100, 50]);
        check(
            &[(u64::MAX, 7), (u64::MAX, 0)],
            u64::MAX,
            &[u64::MAX / 2 - 2, u64::MAX / 2 + 2],
        );
        check(&[], 10, &[]);
        check(&[(0, 0)], 10, &[0]);
    }
}
