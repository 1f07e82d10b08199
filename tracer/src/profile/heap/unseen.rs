//! Large blocks that were not seen, as those stand for them that were: how much of it memory has room for.
//!
//! What is estimated is held within what the kernel says. libc's heaps have their chunks side by side, so that those of one
//! region are of that region; blocks that are mappings of their own can be anywhere. Invariant: a region gives away no more
//! than it has.

use rustc_hash::FxHashMap;

use super::{Estimates, Holder, add};
use crate::profile::live::{LargeBlock, TallyIndex};

/// Requests from this size on are mappings of their own, as long as none of that size was freed.
/// <https://sourceware.org/glibc/manual/2.36/html_node/Malloc-Tunable-Parameters.html>
const MAPPED: u64 = 128 << 10;

/// What blocks of one tally stand for.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    bytes: f64,
    count: f64,
    samples: u64,
}

impl Part {
    fn add(&mut self, bytes: u64, unseen: f64) {
        self.bytes += bytes as f64 * unseen;
        self.count += unseen;
        self.samples += 1;
    }

    fn give(&self, tally: TallyIndex, share: f64, estimates: &mut Estimates) {
        let (bytes, count) = (whole(self.bytes * share), whole(self.count * share));
        add(estimates, Holder::Tally(tally), bytes, count, self.samples);
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    /// By index of the region.
    chunks: FxHashMap<usize, FxHashMap<TallyIndex, Part>>,
    mapped: FxHashMap<TallyIndex, Part>,
}

impl Unseen {
    /// A block in a region stands for so many others.
    pub(super) fn add(&mut self, region: usize, block: &LargeBlock, unseen: f64) {
        if unseen <= 0.0 {
            return;
        }
        let parts = if block.bytes < MAPPED {
            self.chunks.entry(region).or_default()
        } else {
            &mut self.mapped
        };
        parts.entry(block.tally).or_default().add(block.bytes, unseen);
    }

    /// Takes from what is left of each region what they stand for, as far as it goes; how much that is.
    pub(super) fn share_out(&self, left: &mut [u64], estimates: &mut Estimates) -> u64 {
        let before: u64 = left.iter().sum();
        for (&region, parts) in &self.chunks {
            if let Some(left) = left.get_mut(region) {
                take(parts, std::slice::from_mut(left), estimates);
            }
        }
        take(&self.mapped, left, estimates);
        before - left.iter().sum::<u64>()
    }
}

/// Takes what some stand for from regions, from each in proportion.
fn take(parts: &FxHashMap<TallyIndex, Part>, left: &mut [u64], estimates: &mut Estimates) {
    let wanted: f64 = parts.values().map(|part| part.bytes).sum();
    let all = left.iter().sum::<u64>() as f64;
    if wanted <= 0.0 || all <= 0.0 {
        return;
    }
    let given = wanted.min(all);
    for (&tally, part) in parts {
        part.give(tally, given / wanted, estimates);
    }
    for left in left {
        *left -= whole(*left as f64 * given / all).min(*left);
    }
}

/// A number of bytes or blocks that was computed with; never negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the conversion saturates"
)]
fn whole(value: f64) -> u64 {
    value.round().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Blocks: region, bytes, tally, and for how many each stands. Expected: what is left, and what the tallies have.
    #[track_caller]
    fn check(
        blocks: &[(usize, u64, TallyIndex, f64)],
        mut left: [u64; 2],
        expected: [u64; 2],
        tallies: [u64; 2],
    ) {
        let (mut unseen, mut estimates) = (Unseen::default(), Estimates::default());
        for &(region, bytes, tally, stands_for) in blocks {
            let block = LargeBlock {
                addr: 0,
                bytes,
                tally,
                born: None,
            };
            unseen.add(region, &block, stands_for);
        }
        let before: u64 = left.iter().sum();
        let given = unseen.share_out(&mut left, &mut estimates);
        assert_eq!(left, expected);
        assert_eq!(given, before - left.iter().sum::<u64>());
        let of = |tally| {
            estimates
                .get(&Holder::Tally(tally))
                .map_or(0, |estimate| estimate.bytes)
        };
        assert_eq!([of(0), of(1)], tallies);
        assert_eq!(of(0) + of(1), given);
    }

    #[test]
    fn a_chunk_stands_for_others_of_its_region() {
        check(&[(0, 1000, 0, 10.0)], [50_000, 0], [40_000, 0], [10_000, 0]);
        check(
            &[(0, 1000, 0, 30.0), (0, 500, 1, 20.0)],
            [20_000, 9],
            [0, 9],
            [15_000, 5000],
        );
        check(&[(1, 1000, 0, 30.0)], [20_000, 9], [20_000, 0], [9, 0]);
        check(&[(7, 1000, 0, 30.0)], [20_000, 9], [20_000, 9], [0, 0]);
        check(&[(0, 1000, 0, 0.0)], [20_000, 9], [20_000, 9], [0, 0]);
    }

    #[test]
    fn a_mapping_stands_for_others_anywhere() {
        check(
            &[(0, MIB, 0, 3.0)],
            [4 * MIB, 2 * MIB],
            [2 * MIB, MIB],
            [3 * MIB, 0],
        );
        check(
            &[(0, MIB, 0, 30.0), (1, MIB, 1, 10.0)],
            [0, 4 * MIB],
            [0, 0],
            [3 * MIB, MIB],
        );
    }
}
