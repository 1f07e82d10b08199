//! Whose the refilled blocks are: what samples stand for, as far as the pools have room for it.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Refills,
    sample::State,
    young::{StandsFor, TAIL, Young},
};
use crate::{
    profile::{heap::pools::Filled, live::TallyIndex},
    units::MonotonicNs,
};

/// What the newest window tells is all there is but for an error of so many times; the rest is not known.
const MOST_SHORT: f64 = 2.0;

/// Blocks, and the samples that they rest on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    pub(super) blocks: f64,
    pub(super) samples: u64,
}

/// Blocks of one class, by stack.
pub(super) type Shares = FxHashMap<TallyIndex, Known>;

/// A share of the refilled blocks of one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::profile::heap) struct Refill {
    pub(in crate::profile::heap) class: usize,
    /// `None`: not known.
    pub(in crate::profile::heap) tally: Option<TallyIndex>,
    pub(in crate::profile::heap) blocks: u64,
    pub(in crate::profile::heap) samples: u64,
}

impl Refills {
    /// Whose the refilled blocks are, by a reading that began at `now`. `refilled`: how many there are of each class; `filled`: by whom
    /// the pool around a block of a class was filled.
    pub(in crate::profile::heap) fn share(
        &mut self,
        now: MonotonicNs,
        refilled: &[u64],
        filled: impl Fn(u64, usize) -> Filled,
    ) -> Vec<Refill> {
        self.decide(now, filled);
        let (settled, young) = self.stand_for();
        let mut shares = Vec::new();
        let mut scales = vec![1.0; self.classes.len()];
        let of_classes = settled.into_iter().zip(young).zip(refilled).enumerate();
        for (class, ((mut settled, (young, at_end)), &all)) in of_classes {
            // If they stood for more than there is, they did so before.
            let scale = ratio(all as f64, blocks(&settled)).min(1.0);
            for known in settled.values_mut() {
                known.blocks *= scale;
            }
            if let Some(to) = scales.get_mut(class) {
                *to = scale;
            }
            let part = self.young(class).map_or(1.0, |young| young.part);
            let room = (all as f64 - blocks(&settled)) * part;
            let is_partial = self.young(class).is_some_and(|young| young.is_partial);
            let fits = ratio(room, blocks(&young)).min(if is_partial { 1.0 } else { MOST_SHORT });
            if let Some(young) = self.young_mut(class) {
                // What came after the window's end need not have come at its rate, but what it is short of settles, too.
                young.fits = fits.max(ratio(room, at_end).min(1.0));
            }
            let seen: FxHashSet<TallyIndex> = young.keys().copied().collect();
            for (tally, known) in young {
                let to = settled.entry(tally).or_default();
                to.blocks += known.blocks * fits;
                to.samples += known.samples;
            }
            if let Some(class) = self.classes.get_mut(class) {
                let since = self.work - TAIL as f64;
                let seen = |tally| seen.contains(&tally);
                class.told.complete(&mut settled, all as f64, since, seen);
            }
            let mut left = all;
            let mut push = |tally, blocks: u64, samples| {
                if blocks > 0 {
                    shares.push(Refill {
                        class,
                        tally,
                        blocks,
                        samples,
                    });
                }
            };
            for (tally, known) in settled {
                let blocks = whole(known.blocks).min(left);
                left -= blocks;
                push(Some(tally), blocks, known.samples);
            }
            push(None, left, 0);
        }
        self.scale(&scales);
        shares
    }

    /// Finds out of each sample whether it was put where blocks are filled again, as far as the reading is late enough for it. It stays
    /// with what was found first, unless the pool is anybody's now.
    fn decide(&mut self, now: MonotonicNs, filled: impl Fn(u64, usize) -> Filled) {
        for (&addr, sample) in &mut self.samples {
            if sample.state == State::Waiting || sample.born >= now.0 || sample.refills == Some(true) {
                continue;
            }
            let is_new = sample.refills.is_none();
            sample.refills = Some(match filled(addr, sample.class) {
                Filled::ByAnybody => true,
                Filled::Again(since) => is_new && sample.born >= since.0,
                Filled::ByOwner => false,
            });
        }
        for (class, of_class) in self.classes.iter_mut().enumerate() {
            if let Some(young) = of_class.young.as_mut().filter(|young| young.window.to < now.0) {
                young.decide(|place, born| match filled(place, class) {
                    Filled::ByAnybody => true,
                    Filled::Again(since) => born >= since.0,
                    Filled::ByOwner => false,
                });
            }
        }
    }

    /// What samples stand for in refilled pools, by class: the settled ones, and the young ones, of whom also what they come to up to
    /// their window's end.
    fn stand_for(&self) -> (Vec<Shares>, Vec<(Shares, f64)>) {
        let mut settled = vec![Shares::default(); self.classes.len()];
        let mut young = vec![(Shares::default(), 0.0); self.classes.len()];
        let mut add = |class: usize, tally: TallyIndex, stands_for: StandsFor, samples: u64| {
            if let Some((shares, at_end)) = young.get_mut(class) {
                let known = shares.entry(tally).or_default();
                known.blocks += stands_for.now;
                known.samples += samples;
                *at_end += stands_for.at_end;
            }
        };
        for sample in self
            .samples
            .values()
            .filter(|sample| sample.refills == Some(true))
        {
            if sample.state == State::Young
                && let Some(young) = self.young(sample.class)
            {
                let stands_for = young.of_living(sample.tally, sample.until(sample.seen), self.work);
                add(sample.class, sample.tally, stands_for, 1);
            } else if let Some(settled) = settled.get_mut(sample.class) {
                let known = settled.entry(sample.tally).or_default();
                known.blocks += sample.weight;
                known.samples += 1;
            }
        }
        for (class, of_class) in self.classes.iter().enumerate() {
            for (tally, stands_for) in of_class.young.iter().flat_map(Young::of_ended) {
                add(class, tally, stands_for, 0);
            }
            if let Some(settled) = settled.get_mut(class) {
                for (&tally, &blocks) in &of_class.given {
                    settled.entry(tally).or_default().blocks += blocks;
                }
            }
        }
        (settled, young)
    }

    /// Settled ones stand for less.
    fn scale(&mut self, scales: &[f64]) {
        let of = |class: usize| scales.get(class).copied().unwrap_or(1.0);
        if scales.iter().all(|&scale| scale >= 1.0) {
            return;
        }
        for sample in self.samples.values_mut() {
            if sample.state == State::Settled {
                sample.weight *= of(sample.class);
            }
        }
        for (index, class) in self.classes.iter_mut().enumerate() {
            for blocks in class.given.values_mut() {
                *blocks *= of(index);
            }
            class.given.retain(|_, blocks| *blocks >= 0.5);
        }
    }
}

/// How many times one is the other.
pub(super) fn ratio(one: f64, other: f64) -> f64 {
    if other > 0.0 { one.max(0.0) / other } else { 1.0 }
}

pub(super) fn blocks(shares: &Shares) -> f64 {
    shares.values().map(|known| known.blocks).sum()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the conversion saturates, and no count is negative"
)]
pub(super) fn whole(blocks: f64) -> u64 {
    blocks.round() as u64
}
