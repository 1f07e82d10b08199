//! Large blocks that were not seen, as those stand for them that were: how much of it memory has room for.
//!
//! What is estimated is held within what the kernel says. libc's heaps have their chunks side by side, so that those of one
//! region are of that region; blocks that are mappings of their own can be anywhere. Where a reading tells how much is in use by chunks
//! of which size, those of a size are of that size. Invariant: a region gives away no more than it has, nor a size.

use rustc_hash::FxHashMap;

use super::{
    Estimates, Holder, add,
    big::{Big, Held, first_class},
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

    fn of_chunks(held: Held) -> Self {
        Self {
            bytes: held.bytes as f64,
            count: held.chunks as f64,
            samples: held.chunks,
        }
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
    pub(super) big: &'a Big,
}

/// A region.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) start: u64,
    /// Bytes that stacks touched first of which blocks tell, and others, outside of large chunks: of what is in use there a part is
    /// theirs.
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

    /// Whether blocks of a class are known that stand for others, in a region that is counted.
    pub(super) fn has(&self, region: usize, class: u8) -> bool {
        self.chunks.contains_key(&(region, Some(class)))
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
                self.share_out_big(index, place.start, left.census, left.big, bytes, estimates);
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

    /// The same for a region whose chunks are counted, but for large ones: what is in use of a size, is of those who were seen to keep
    /// such, but for what others touched.
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
        let is_small = |class: &u8| *class < first_class();
        for (&(_, class), parts) in self.chunks.iter().filter(|((of, _), _)| *of == region) {
            let Some(class) = class.filter(is_small) else {
                continue;
            };
            let in_use = census.in_class(place.start, class) as f64;
            let wanted = wanted(parts).min(in_use);
            let samples = samples_of(parts);
            let rest = if samples >= ENOUGH { in_use - wanted } else { 0.0 };
            (given, more, all_samples) = (given + wanted, more + rest, all_samples + samples);
            classes.push((parts, wanted, rest));
        }
        let small = (0..first_class()).map(|class| census.in_class(place.start, class));
        let all = small.fold(0, u64::saturating_add) as f64;
        // Sizes of which nobody is known to keep any are of others. What else those touched is theirs, or was freed since.
        let others = (place.touched_by_others as f64 - (all - given - more)).max(0.0);
        let doubt = (FEW / all_samples.max(1) as f64).min(1.0);
        let known = given + place.touched as f64 * doubt;
        let part = known / (known + others * doubt).max(1.0);
        for (parts, wanted, rest) in classes {
            take(parts, wanted + rest * part, &mut [&mut *left], estimates);
        }
    }

    /// The same for its large chunks. Each is of those who were seen to keep such, or of who touched it first: the more blocks tell, the
    /// more that counts; and what nobody is known to have touched is theirs.
    fn share_out_big(
        &self,
        region: usize,
        start: u64,
        census: &Census,
        big: &Big,
        left: &mut u64,
        estimates: &mut Estimates,
    ) {
        let of_region = self.chunks.keys().filter(|(of, _)| *of == region);
        let seen = of_region.filter_map(|(_, class)| *class);
        let mut classes: Vec<u8> = seen.chain(big.classes(start)).collect();
        classes.retain(|class| *class >= first_class());
        classes.sort_unstable();
        classes.dedup();
        for class in classes {
            let in_use = census.in_class(start, class) as f64;
            let touched: Parts = big
                .of(start, class)
                .into_iter()
                .flatten()
                .map(|(&tally, &held)| (tally, Part::of_chunks(held)))
                .collect();
            let of_touched = wanted(&touched).min(in_use);
            let (mut by_blocks, mut trust) = (0.0, 0.0);
            let seen = self.chunks.get(&(region, Some(class)));
            if let Some(parts) = seen {
                let samples = samples_of(parts);
                by_blocks = if samples >= ENOUGH {
                    in_use
                } else {
                    wanted(parts).min(in_use)
                };
                trust = samples as f64 / (samples as f64 + FEW);
            }
            let untouched = by_blocks.min(in_use - of_touched);
            let by_blocks = by_blocks.mul_add(trust, untouched * (1.0 - trust));
            if let Some(parts) = seen {
                take(parts, by_blocks, &mut [&mut *left], estimates);
            }
            take(&touched, of_touched * (1.0 - trust), &mut [&mut *left], estimates);
        }
    }
}

/// How many blocks tell.
fn samples_of(parts: &Parts) -> u64 {
    parts.values().map(|part| part.samples).sum()
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
mod tests;
