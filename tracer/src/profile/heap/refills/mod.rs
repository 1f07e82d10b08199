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
mod share;
mod told;
mod waiting;
mod young;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use self::{
    droppers::{Droppers, InWindow},
    sample::{Counts, Key, Kind, Sample, State, counts},
    told::Told,
    waiting::Waiting,
    young::{Window, Young},
};
use crate::{
    ingest::Survey,
    profile::{apply::SamplingWindow, live::TallyIndex},
    python::SIZE_CLASSES,
    units::MonotonicNs,
};

/// Blocks remembered of one process; more are not. Twice what the recorder looks at.
const MAX_SAMPLES: usize = 1 << 15;
/// Windows remembered of those that tell who drops.
const MAX_DROPPERS: usize = 8;
/// Hits take no more tenths than this of what a process does in a window, or it is not known how much they take.
const MOST_LOST: u64 = 9;
/// A window stands for no more than this before it, nanoseconds of work or by the clock.
const LONGEST_PERIOD: u64 = 60_000_000_000;

/// One size class.
#[derive(Debug, Default)]
struct Class {
    young: Option<Young>,
    /// What those stood for that are not looked at any more, and whose stack has no others.
    given: FxHashMap<TallyIndex, f64>,
    told: Told,
}

/// What is known of one process's refilled pools.
#[derive(Debug)]
pub(super) struct Refills {
    /// By address.
    samples: FxHashMap<u64, Sample>,
    waiting: Waiting,
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
            waiting: Waiting::default(),
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
            self.waiting.ended(addr, before, time);
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
        self.waiting.push(Window {
            from,
            to,
            since,
            one_in: window.one_in.max(1),
            begin,
            work: inside,
            period: (end - before).clamp(0.0, LONGEST_PERIOD as f64),
        });
    }

    /// Blocks were looked at.
    pub(super) fn surveyed(&mut self, survey: &Survey) {
        self.work = survey.used.saturating_sub(self.hits) as f64;
        let mut looked_at = Vec::new();
        let removed = survey.refused.iter().filter_map(|addr| self.samples.remove(addr));
        let removed: Vec<Sample> = removed.collect();
        let refused = counts(removed.iter());
        while let Some(window) = self.waiting.pop(survey.last.0) {
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
        if !looked_at.is_empty() {
            self.limit(&refused);
        }
        for (window, mut seen) in looked_at {
            let young = self.samples.values().filter(|sample| window.has(sample.born));
            let left = counts(young);
            let from = window.since.max(window.to.saturating_sub(LONGEST_PERIOD));
            self.doubt(&window, &seen, &left);
            // Of whom some cannot be looked at, or are not remembered, it is not known.
            seen.retain(|key, _| !refused.contains_key(key) && !self.waiting.has_lost(*key, &window));
            self.droppers.push_back(Droppers::new(from, &seen));
            if self.droppers.len() > MAX_DROPPERS {
                self.droppers.pop_front();
            }
        }
        let lost = self.waiting.take_lost(survey.last.0);
        for (class, _) in refused.into_keys().chain(lost) {
            self.set_partial(class);
        }
        self.leave(&survey.left);
    }

    /// Of a class of which none can be looked at of some stacks, the others have a part: as many as are left of them, of those and all of
    /// which it is not known.
    fn limit(&mut self, refused: &Counts) {
        let young = self.samples.values();
        let left = counts(young.filter(|sample| sample.state == State::Young));
        let mut unknown: FxHashMap<usize, u64> = FxHashMap::default();
        for ((class, _), count) in refused.iter().filter(|(key, _)| !left.contains_key(key)) {
            *unknown.entry(*class).or_default() += count;
        }
        for (class, unknown) in unknown {
            let of_class = left.iter().filter(|((of, _), _)| *of == class);
            let known: u64 = of_class.map(|(_, count)| count).sum();
            if let Some(young) = self.young_mut(class) {
                young.part = known as f64 / (known + unknown) as f64;
            }
        }
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

    /// A window is looked at for the first time: it is the newest one of the classes of which it has blocks, and what is left of the
    /// one before settles. What was allocated in it.
    fn begin(&mut self, window: Window) -> FxHashMap<Key, InWindow> {
        let (ended, young) = self.waiting.take_ended(&window);
        for (addr, sample, until) in young {
            self.end(addr, sample, window.work_at(until));
        }
        let mut seen: FxHashMap<Key, InWindow> = FxHashMap::default();
        let mut add = |sample: &Sample, until: Option<u64>| {
            let key = (sample.class, sample.tally);
            seen.entry(key).or_default().add(&window, sample.born, until);
        };
        self.samples
            .values()
            .filter(|sample| sample.waits_for(&window))
            .for_each(|sample| add(sample, None));
        for sample in self.waiting.ended_later(&window) {
            add(sample, None);
            sample.state = State::Young;
        }
        for (_, sample, until) in waiting::few_of_each_place(&ended) {
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
            if rest.contains_key(&kind) || refills == Some(false) {
                continue;
            }
            match state {
                // Those of others do not stand for them.
                State::Young => self.set_partial(class),
                State::Settled if refills == Some(true) => {
                    if let Some(class) = self.classes.get_mut(class) {
                        *class.given.entry(tally).or_default() += weight;
                    }
                }
                _ => {}
            }
        }
    }

    fn young(&self, class: usize) -> Option<&Young> {
        self.classes.get(class)?.young.as_ref()
    }

    /// There are more blocks of the newest window than are looked at.
    fn set_partial(&mut self, class: usize) {
        if let Some(young) = self.young_mut(class) {
            young.is_partial = true;
        }
    }

    fn young_mut(&mut self, class: usize) -> Option<&mut Young> {
        self.classes.get_mut(class)?.young.as_mut()
    }
}

#[cfg(test)]
mod tests;
