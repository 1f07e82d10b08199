//! Who filled pools again: what sampling windows tell of it.
//!
//! Refilled blocks pass no acquisition, and what is left in the pools of who drops all is not his. Now and then a *window* is
//! opened in which every allocation is seen, at the addresses of a sample, and what was seen is looked at until it is gone. A block
//! that is still there when the next window is over stands for those of its stack that were allocated between the two; it takes
//! them along when it goes. Of what came since, the newest window tells the rate, and how long blocks stay (`young`); of what a
//! program did until it began to do something else, the windows before, for a while (`told`). Invariant: for each class, what is known and
//! what is not add up to what the pools say was filled again.

mod droppers;
mod lives;
mod sample;
mod told;
mod young;

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};

use self::{
    droppers::{Droppers, InWindow},
    sample::{Counts, Key, Kind, Sample, State, counts},
    told::Told,
    young::{StandsFor, TAIL, Window, Young},
};
use super::pools::Filled;
use crate::{
    ingest::Survey,
    profile::{apply::SamplingWindow, live::TallyIndex},
    python::SIZE_CLASSES,
    units::MonotonicNs,
};

/// Blocks remembered of one process; more are not. Twice what the recorder looks at.
const MAX_SAMPLES: usize = 1 << 15;
/// Blocks remembered that were handed out again in windows that wait for a look. A loop does so with a million a second.
const MAX_ENDED: usize = 1 << 18;
/// Windows that wait for a look; those of a process that cannot be read would be ever more.
const MAX_WAITING: usize = 8;
/// Hits take no more tenths than this of what a process does in a window, or it is not known how much they take.
const MOST_LOST: u64 = 9;
/// A window stands for no more than this before it, nanoseconds of work or by the clock.
const LONGEST_PERIOD: u64 = 60_000_000_000;
/// What the newest window tells is all there is but for an error of so many times; the rest is not known.
const MOST_SHORT: f64 = 2.0;

/// Blocks, and the samples that they rest on.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    blocks: f64,
    samples: u64,
}

/// Blocks of one class, by stack.
type Shares = FxHashMap<TallyIndex, Known>;

/// One size class.
#[derive(Debug, Default)]
struct Class {
    young: Option<Young>,
    /// What those stood for that are not looked at any more, and whose stack has no others.
    given: FxHashMap<TallyIndex, f64>,
    told: Told,
}

/// A share of the refilled blocks of one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Refill {
    pub(super) class: usize,
    /// `None`: not known.
    pub(super) tally: Option<TallyIndex>,
    pub(super) blocks: u64,
    pub(super) samples: u64,
}

/// What is known of one process's refilled pools.
#[derive(Debug)]
pub(super) struct Refills {
    /// By address.
    samples: FxHashMap<u64, Sample>,
    /// Those that were handed out again before their window was looked at: address, block, and when, by the clock.
    ended: Vec<(u64, Sample, u64)>,
    /// Of whom not all of those are remembered, and when the last of them was allocated.
    lost: FxHashMap<Key, u64>,
    waiting: VecDeque<Window>,
    /// When the last window was over: by the clock, and in work.
    last: Option<(u64, f64)>,
    /// What hits in windows have taken so far, nanoseconds of processor time, and how long the process had worked without them when
    /// that was last told.
    hits: u64,
    work: f64,
    classes: Vec<Class>,
    /// What the last windows say, the newest one last.
    droppers: VecDeque<Droppers>,
}

impl Default for Refills {
    fn default() -> Self {
        Self {
            samples: FxHashMap::default(),
            ended: Vec::new(),
            lost: FxHashMap::default(),
            waiting: VecDeque::new(),
            last: None,
            hits: 0,
            work: 0.0,
            classes: std::iter::repeat_with(Class::default)
                .take(SIZE_CLASSES)
                .collect(),
            droppers: VecDeque::new(),
        }
    }
}

impl Refills {
    /// An allocation was seen in a window.
    pub(super) fn sampled(&mut self, addr: u64, class: usize, tally: TallyIndex, time: MonotonicNs) {
        if class >= self.classes.len()
            || self.samples.len() >= MAX_SAMPLES && !self.samples.contains_key(&addr)
        {
            return;
        }
        let mut sample = Sample {
            class,
            tally,
            born: time.0,
            seen: 0.0,
            state: State::Waiting,
            weight: 1.0,
            refills: None,
        };
        // What waited in the ring can come after the first look.
        if self.young(class).is_some_and(|young| young.window.has(time.0)) {
            sample.state = State::Young;
        }
        if let Some(before) = self.samples.insert(addr, sample) {
            self.replaced(addr, before, time.0);
        }
    }

    /// Another block was allocated at the address of one, at a time by the clock.
    fn replaced(&mut self, addr: u64, before: Sample, time: u64) {
        let young = self.young(before.class).filter(|_| before.state == State::Young);
        if let Some(young) = young.filter(|young| young.window.has(time)) {
            let until = young.window.work_at(time);
            self.end(addr, before, until);
        } else if before.state != State::Settled {
            if self.ended.len() < MAX_ENDED {
                // How long the process will have worked by then is known when that window is.
                self.ended.push((addr, before, time));
            } else {
                self.lost.insert((before.class, before.tally), before.born);
            }
        }
    }

    /// Every allocation at the addresses of the sample was seen in this time, but for what did not fit.
    pub(super) fn closed(&mut self, window: SamplingWindow) {
        let (from, to, work) = (window.from.0, window.to.0, window.work);
        let begin = work.before.saturating_sub(self.hits) as f64;
        let hits = work.hits.min(work.used / 10 * MOST_LOST);
        let inside = work.used.saturating_sub(hits) as f64;
        self.hits = self.hits.saturating_add(hits);
        let end = begin + inside;
        // What the process had used when it was first seen is not known, but that it had not used more since than went by.
        let first = end - to.saturating_sub(window.since.0) as f64;
        let (since, before) = self
            .last
            .replace((to, end))
            .unwrap_or((window.since.0, first.max(0.0)));
        self.waiting.push_back(Window {
            from,
            to,
            since,
            one_in: window.one_in.max(1),
            begin,
            work: inside,
            period: (end - before).clamp(0.0, LONGEST_PERIOD as f64),
        });
        if self.waiting.len() > MAX_WAITING {
            self.waiting.pop_front();
        }
    }

    /// Blocks were looked at.
    pub(super) fn surveyed(&mut self, survey: &Survey) {
        self.work = survey.used.saturating_sub(self.hits) as f64;
        let mut looked_at = Vec::new();
        let removed = survey.refused.iter().filter_map(|addr| self.samples.remove(addr));
        let refused: FxHashSet<Key> = removed.map(|sample| (sample.class, sample.tally)).collect();
        while let Some(window) = self.waiting.pop_front_if(|window| window.to <= survey.last.0) {
            // Those of the window before are gone, and not settled.
            self.end_gone(&survey.gone, Some(State::Young));
            looked_at.push((window, self.begin(window)));
        }
        self.end_gone(&survey.gone, None);
        for sample in self.samples.values_mut() {
            if (survey.first.0..=survey.last.0).contains(&sample.born) {
                sample.seen = self.work;
            }
        }
        for (window, mut seen) in looked_at {
            let young = self.samples.values().filter(|sample| window.has(sample.born));
            let left = counts(young);
            let from = window.since.max(window.to.saturating_sub(LONGEST_PERIOD));
            self.doubt(&window, &seen, &left);
            // Of whom some cannot be looked at, or are not remembered, it is not known.
            let is_lost = |key: &Key| self.lost.get(key).is_some_and(|&born| born >= window.from);
            seen.retain(|key, _| !refused.contains(key) && !is_lost(key));
            let age = survey.time.0.saturating_sub(window.to);
            self.droppers.push_back(Droppers::new(from, &seen, &left, age));
            if self.droppers.len() > MAX_WAITING {
                self.droppers.pop_front();
            }
        }
        let lost = self.lost.extract_if(|_, born| *born <= survey.last.0);
        for (class, _) in refused.into_iter().chain(lost.map(|(key, _)| key)) {
            if let Some(young) = self.classes.get_mut(class).and_then(|class| class.young.as_mut()) {
                young.is_partial = true;
            }
        }
        self.leave(&survey.left);
    }

    /// Of a stack that keeps less than half, a block that is in use at the first look need not be its own: one that is dropped and handed
    /// out again between the window's end and that look is not told of. What was not handed out again in most of the window is, so
    /// only those of its first part count, for as many as were allocated later, too.
    fn doubt(&mut self, window: &Window, seen: &FxHashMap<Key, InWindow>, left: &Counts) {
        self.samples.retain(|_, sample| {
            let key = (sample.class, sample.tally);
            let Some(of_it) = seen.get(&key).filter(|_| sample.state == State::Young) else {
                return true;
            };
            let keeps = left.get(&key).copied().unwrap_or(0) * 2 >= of_it.all();
            let Some(weight) = of_it.weight_of_early().filter(|_| !keeps) else {
                return true;
            };
            if !window.has(sample.born) {
                return true;
            }
            sample.weight *= weight;
            window.is_early(sample.born)
        });
    }

    /// Whether a stack soon freed what it allocated of a class at a time. What the first window after that time says counts; behind the
    /// newest one, that.
    pub(super) fn drops(&self, class: usize, tally: TallyIndex, time: MonotonicNs) -> bool {
        let mut newest_first = self.droppers.iter().rev();
        newest_first
            .find(|droppers| droppers.speak_of(time))
            .is_some_and(|droppers| droppers.has((class, tally)))
    }

    /// Whose the refilled blocks are, by a reading that began at `now`. `refilled`: how many there are of each class; `filled`: by whom
    /// the pool around a block of a class was filled.
    pub(super) fn share(
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
            let room = all as f64 - blocks(&settled);
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

    /// A window is looked at for the first time: it is the newest one of the classes of which it has blocks, and what is left of the
    /// one before settles. What was allocated in it.
    fn begin(&mut self, window: Window) -> FxHashMap<Key, InWindow> {
        let ended = self.take_ended(&window);
        let waiting = |sample: &&Sample| sample.state == State::Waiting && window.has(sample.born);
        let mut seen: FxHashMap<Key, InWindow> = FxHashMap::default();
        let mut add = |sample: &Sample, until: Option<u64>| {
            let key = (sample.class, sample.tally);
            seen.entry(key).or_default().add(&window, sample.born, until);
        };
        self.samples
            .values()
            .filter(waiting)
            .for_each(|sample| add(sample, None));
        // Those that ended in a later window, if that has not been looked at either.
        let later = self.ended.iter_mut().map(|(_, sample, _)| sample);
        let later: Vec<&mut Sample> = later.filter(|sample| waiting(&&**sample)).collect();
        for sample in later {
            add(sample, None);
            sample.state = State::Young;
        }
        for (_, sample, until) in &ended {
            add(sample, Some(*until));
        }
        let mut news = vec![false; self.classes.len()];
        for &(class, _) in seen.keys() {
            if let Some(is_new) = news.get_mut(class) {
                *is_new = true;
            }
        }
        self.open(window, &news);
        for (addr, sample, until) in ended {
            if let Some(young) = self.young_mut(sample.class) {
                young.ended(addr, sample.tally, sample.until(window.work_at(until)));
            }
        }
        // Those that no window has.
        self.samples
            .retain(|_, sample| sample.state != State::Waiting || sample.born > window.to);
        seen
    }

    /// Ends those that were replaced up to a window's end: takes out those of the window itself, which is not known yet.
    fn take_ended(&mut self, window: &Window) -> Vec<(u64, Sample, u64)> {
        let (ended, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.ended)
            .into_iter()
            .partition(|(_, _, until)| *until <= window.to);
        self.ended = later;
        let (young, others): (Vec<_>, Vec<_>) = ended
            .into_iter()
            .partition(|(_, sample, _)| sample.state == State::Young);
        for (addr, sample, until) in young {
            self.end(addr, sample, window.work_at(until));
        }
        let is_of_it = |sample: &Sample| sample.state == State::Waiting && window.has(sample.born);
        others
            .into_iter()
            .filter(|(_, sample, _)| is_of_it(sample))
            .collect()
    }

    /// Makes a window the newest one of these classes: what is left of the one before settles.
    fn open(&mut self, window: Window, news: &[bool]) {
        let mut living = vec![Vec::new(); self.classes.len()];
        for sample in self.samples.values_mut() {
            if news.get(sample.class) != Some(&true) {
                continue;
            }
            match sample.state {
                State::Waiting if window.has(sample.born) => sample.state = State::Young,
                State::Young => {
                    if let Some(living) = living.get_mut(sample.class) {
                        living.push((sample.tally, sample.weight));
                    }
                    let of_class = self.classes.get(sample.class);
                    let young = of_class.and_then(|class| class.young.as_ref());
                    sample.weight = young.map_or(0.0, |young| young.settled(sample.weight));
                    sample.state = State::Settled;
                }
                _ => {}
            }
        }
        for ((class, living), _) in self
            .classes
            .iter_mut()
            .zip(living)
            .zip(news)
            .filter(|(_, is_new)| **is_new)
        {
            let before = class.young.take().map(|young| {
                class.told.open(young.window.end());
                young.into_lives(&living)
            });
            class.young = Some(Young::new(window, before.unwrap_or_default()));
        }
    }

    /// A look found blocks gone: ends those of a state, or all of them.
    fn end_gone(&mut self, gone: &[u64], state: Option<State>) {
        for addr in gone {
            let is_of_it = |sample: &&Sample| state.is_none_or(|state| sample.state == state);
            if let Some(&sample) = self.samples.get(addr).filter(is_of_it) {
                self.samples.remove(addr);
                self.end(*addr, sample, self.work);
            }
        }
    }

    /// A block is no longer in use, after so much work.
    fn end(&mut self, addr: u64, sample: Sample, until: f64) {
        if sample.state == State::Young
            && let Some(young) = self.young_mut(sample.class)
            && young.window.has(sample.born)
        {
            young.ended(addr, sample.tally, sample.until(until));
        }
    }

    /// Some are not looked at any more: the others of their stack stand for them.
    fn leave(&mut self, left: &[u64]) {
        if left.is_empty() {
            return;
        }
        let mut lost: FxHashMap<Kind, f64> = FxHashMap::default();
        for addr in left {
            if let Some(sample) = self.samples.remove(addr) {
                *lost.entry(sample.kind()).or_default() += sample.weight;
            }
        }
        let mut rest: FxHashMap<Kind, f64> = FxHashMap::default();
        for sample in self
            .samples
            .values()
            .filter(|sample| lost.contains_key(&sample.kind()))
        {
            *rest.entry(sample.kind()).or_default() += 1.0;
        }
        for sample in self.samples.values_mut() {
            let kind = sample.kind();
            if let (Some(weight), Some(rest)) = (lost.get(&kind), rest.get(&kind)) {
                sample.weight += weight / rest;
            }
        }
        for (kind, weight) in lost {
            let ((class, tally), state, refills) = kind;
            if (state, refills) == (State::Settled, Some(true))
                && !rest.contains_key(&kind)
                && let Some(class) = self.classes.get_mut(class)
            {
                *class.given.entry(tally).or_default() += weight;
            }
        }
    }

    fn young(&self, class: usize) -> Option<&Young> {
        self.classes.get(class)?.young.as_ref()
    }

    fn young_mut(&mut self, class: usize) -> Option<&mut Young> {
        self.classes.get_mut(class)?.young.as_mut()
    }
}

/// How many times one is the other.
fn ratio(one: f64, other: f64) -> f64 {
    if other > 0.0 { one.max(0.0) / other } else { 1.0 }
}

fn blocks(shares: &Shares) -> f64 {
    shares.values().map(|known| known.blocks).sum()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the conversion saturates, and no count is negative"
)]
fn whole(blocks: f64) -> u64 {
    blocks.round() as u64
}

#[cfg(test)]
mod tests;
