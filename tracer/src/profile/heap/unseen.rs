//! Large blocks that were not seen, as those stand for them that were: how much of it memory has room for.
//!
//! What is estimated is held within what the kernel says. libc's heaps have their chunks side by side, so that those of one
//! region are of that region; blocks that are mappings of their own can be anywhere. Where a reading tells how much is in use by chunks
//! of which size, those of a size are of that size. Invariant: a region gives away no more than it has, nor a size.

use rustc_hash::FxHashMap;

use super::{
    Estimates, Holder, add,
    census::{Census, class_of},
};
use crate::profile::live::{LargeBlock, TallyIndex};

/// Requests from this size on are mappings of their own, as long as none of that size was freed.
/// <https://sourceware.org/glibc/manual/2.36/html_node/Malloc-Tunable-Parameters.html>
const MAPPED: u64 = 128 << 10;

/// Chunks of one class are of those that were seen to keep such, if so many blocks tell.
pub(super) const ENOUGH: u64 = 3;
/// So few blocks tell no more than who touched the memory first, and more tell more.
const FEW: f64 = 10.0;

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

type Parts = FxHashMap<TallyIndex, Part>;

/// What of the regions has no owner yet.
pub(super) struct Left<'a> {
    /// By index of the region.
    pub(super) bytes: &'a mut [u64],
    /// The regions.
    pub(super) places: &'a [Place],
    pub(super) census: &'a Census,
}

/// A region.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) start: u64,
    /// Bytes that stacks touched first of which blocks tell, and others: of what is in use there a part is theirs.
    pub(super) touched: u64,
    pub(super) touched_by_others: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    /// By index of the region and class of the chunk, as far as those are counted there.
    chunks: FxHashMap<(usize, Option<u8>), Parts>,
    mapped: Parts,
}

impl Unseen {
    /// A block in a region stands for so many others.
    pub(super) fn add(&mut self, region: usize, is_counted: bool, block: &LargeBlock, unseen: f64) {
        if unseen <= 0.0 {
            return;
        }
        let parts = if is_counted {
            let class = class_of(block.bytes);
            self.chunks.entry((region, Some(class))).or_default()
        } else if block.bytes < MAPPED {
            self.chunks.entry((region, None)).or_default()
        } else {
            &mut self.mapped
        };
        parts.entry(block.tally).or_default().add(block.bytes, unseen);
    }

    /// From how many blocks it is known what a stack holds in a region that is counted.
    pub(super) fn samples(&self, region: usize, tally: TallyIndex) -> u64 {
        let of_region = self
            .chunks
            .iter()
            .filter(|((of, class), _)| *of == region && class.is_some());
        let samples = of_region.filter_map(|(_, parts)| Some(parts.get(&tally)?.samples));
        samples.sum()
    }

    /// Takes from what is left of each region what they stand for, as far as it goes; how much that is.
    pub(super) fn share_out(&self, left: &mut Left<'_>, estimates: &mut Estimates) -> u64 {
        let before: u64 = left.bytes.iter().sum();
        let mut elsewhere: Vec<&mut u64> = Vec::new();
        for (index, (bytes, place)) in left.bytes.iter_mut().zip(left.places).enumerate() {
            if left.census.has(place.start) {
                self.share_out_counted(index, place, left.census, bytes, estimates);
                continue;
            }
            if let Some(parts) = self.chunks.get(&(index, None)) {
                take(parts, wanted(parts), &mut [bytes], estimates);
            }
            elsewhere.push(bytes);
        }
        take(&self.mapped, wanted(&self.mapped), &mut elsewhere, estimates);
        before - left.bytes.iter().sum::<u64>()
    }

    /// The same for a region whose chunks are counted: what is in use of a size, is of those who were seen to keep such, but for what
    /// others touched.
    fn share_out_counted(
        &self,
        region: usize,
        place: &Place,
        census: &Census,
        left: &mut u64,
        estimates: &mut Estimates,
    ) {
        let mut classes: Vec<(&Parts, f64, f64)> = Vec::new();
        let (mut given, mut more, mut all_samples) = (0.0, 0.0, 0);
        for (&(_, class), parts) in self.chunks.iter().filter(|((of, _), _)| *of == region) {
            let in_use = class.map_or(0, |class| census.in_class(place.start, class)) as f64;
            let wanted = wanted(parts).min(in_use);
            let samples: u64 = parts.values().map(|part| part.samples).sum();
            let rest = if samples >= ENOUGH { in_use - wanted } else { 0.0 };
            (given, more, all_samples) = (given + wanted, more + rest, all_samples + samples);
            classes.push((parts, wanted, rest));
        }
        let all = census.in_use(place.start).unwrap_or_default() as f64;
        // Sizes of which nobody is known to keep any are of others. What else those touched is theirs, or was freed since.
        let others = (place.touched_by_others as f64 - (all - given - more)).max(0.0);
        let doubt = (FEW / all_samples.max(1) as f64).min(1.0);
        let known = given + place.touched as f64 * doubt;
        let part = known / (known + others * doubt).max(1.0);
        for (parts, wanted, rest) in classes {
            take(parts, wanted + rest * part, &mut [&mut *left], estimates);
        }
    }
}

/// What some stand for, bytes.
fn wanted(parts: &Parts) -> f64 {
    parts.values().map(|part| part.bytes).sum()
}

/// Takes `most` bytes for some of them from regions, from each in proportion.
fn take(parts: &Parts, most: f64, left: &mut [&mut u64], estimates: &mut Estimates) {
    let wanted = wanted(parts);
    let all = left.iter().map(|left| **left).sum::<u64>() as f64;
    if wanted <= 0.0 || all <= 0.0 {
        return;
    }
    let given = most.min(all);
    for (&tally, part) in parts {
        part.give(tally, given / wanted, estimates);
    }
    for left in left {
        **left -= whole(**left as f64 * given / all).min(**left);
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
    use crate::ingest::Chunks;

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
            unseen.add(region, false, &block, stands_for);
        }
        let before: u64 = left.iter().sum();
        let mut without_owner = Left {
            bytes: &mut left,
            places: &[Place::default(); 2],
            census: &Census::default(),
        };
        let given = unseen.share_out(&mut without_owner, &mut estimates);
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

    /// Blocks of a region of 100 KB: bytes, tally, and for how many each stands; and what is in use of up to 128 KiB, and what
    /// others touched. Expected: what is left, and what the tallies have.
    #[track_caller]
    fn check_counted(
        blocks: &[(u64, TallyIndex, f64)],
        in_use: u64,
        touched_by_others: u64,
        expected: (u64, [u64; 2]),
    ) {
        let (mut unseen, mut estimates) = (Unseen::default(), Estimates::default());
        for &(bytes, tally, stands_for) in blocks {
            let block = LargeBlock {
                addr: 0,
                bytes,
                tally,
                born: None,
            };
            unseen.add(0, true, &block, stands_for);
        }
        let census = Census::new(&[(1000, in_use), (MIB, 30_000)].map(|(block, bytes)| Chunks {
            region: 1,
            class: class_of(block),
            bytes,
        }));
        let place = Place {
            start: 1,
            touched: touched_by_others / 6,
            touched_by_others,
        };
        let mut left = [100_000];
        unseen.share_out(
            &mut Left {
                bytes: &mut left,
                places: &[place],
                census: &census,
            },
            &mut estimates,
        );
        let of = |tally| {
            let estimate = estimates.get(&Holder::Tally(tally));
            estimate.map_or(0, |estimate| estimate.bytes)
        };
        assert_eq!((left[0], [of(0), of(1)]), expected);
    }

    #[test]
    fn of_a_size_that_is_counted_there_is_no_more_and_no_less() {
        check_counted(&[(1000, 0, 80.0)], 60_000, 0, (40_000, [60_000, 0]));
        // Two blocks say nothing of the rest.
        check_counted(&[(1000, 0, 10.0); 2], 60_000, 0, (80_000, [20_000, 0]));
        check_counted(&[(1000, 0, 10.0); 3], 60_000, 0, (40_000, [60_000, 0]));
        let two = [(1000, 0, 10.0), (1000, 0, 10.0), (1000, 1, 10.0)];
        check_counted(&two, 60_000, 0, (40_000, [40_000, 20_000]));
        check_counted(&[(MIB, 0, 1.0)], 60_000, 0, (70_000, [30_000, 0]));
    }

    #[test]
    fn what_others_touched_is_theirs_as_long_as_few_blocks_tell() {
        // They have the large ones, and of the others less than those of whom blocks tell.
        check_counted(&[(1000, 0, 10.0); 3], 60_000, 60_000, (52_857, [47_143, 0]));
        check_counted(&[(1000, 0, 1.0); 30], 60_000, 60_000, (46_923, [53_077, 0]));
    }
}
