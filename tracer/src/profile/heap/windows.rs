//! Who keeps and who drops small blocks: what short looks at every allocation tell.
//!
//! Now and then a *window* is opened in which every allocation is seen, at the addresses of a sample. Frees are not: a block is
//! known to be kept if its address is not handed out again to the window's end and it is still in use at the next audit; it lasts if it
//! is at the one after that, too. That says little of what was made shortly before the end, as who drops all has some of that, too:
//! whose blocks are mostly gone by the end is counted for the window's first part only. Who allocates much and has next to
//! nothing left at the next audit is a *dropper*. Invariant: a sample belongs to one window, and is forgotten with it.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::limits::MOST_TICK_NS;

use crate::{
    profile::{apply::SamplingWindow, live::TallyIndex},
    units::MonotonicNs,
};

/// Allocations remembered of one process; more are not.
const MAX_SAMPLES: usize = 1 << 14;
/// Windows that wait for an audit; those of a process that cannot be read would be ever more.
const MAX_OPEN: usize = 8;
/// A window stands for what comes after it, too, until the next one: for no more time than this, which is how long it takes until
/// that one and its audits have been, nanoseconds.
const TAIL: u64 = 10_000_000_000;
/// The first of so many parts of a window tells of those whose blocks soon go.
const PARTS: u64 = 3;
/// A process does no less than a tenth of its work in a window, or it is not known how much.
const MOST_LOST: f64 = 0.9;
/// Allocations in a window from which on it tells who drops all, and of how many one may be left then: one round of many.
const TELLING: u64 = 32;
const DROPPED: u64 = 8;
/// The first window stands for no more time than this, nanoseconds.
const LONGEST_PERIOD: u64 = 60_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Sample {
    class: usize,
    tally: TallyIndex,
    time: u64,
}

/// A size class, and a stack.
type Key = (usize, TallyIndex);

/// Blocks of each.
type Counts = FxHashMap<Key, u64>;

#[derive(Debug)]
struct Window {
    from: u64,
    to: u64,
    /// Time from the end of the window before.
    period: u64,
    one_in: u32,
    /// Part of it in which the process did its work.
    kept: f64,
    /// Allocations in it.
    seen: Counts,
    /// What is left at the first audit after it.
    left: Option<Samples>,
}

/// By address.
type Samples = FxHashMap<u64, Sample>;

/// Who freed what they had allocated in a window, and the time that it stands for.
#[derive(Debug)]
struct Droppers {
    from: u64,
    to: u64,
    of: FxHashSet<Key>,
}

/// A window that one audit has seen, or two, and what outlived it.
#[derive(Debug)]
pub(super) struct Outcome {
    /// By what to multiply to come from the window to the time from the one before, and to [`TAIL`].
    pub(super) weight: f64,
    pub(super) tail: f64,
    pub(super) outlived: Vec<Outlived>,
}

/// A block that outlived a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outlived {
    pub(super) addr: u64,
    pub(super) class: usize,
    pub(super) tally: TallyIndex,
    /// How many of the window it stands for.
    pub(super) stands_for: u64,
    /// The second audit found it, too.
    pub(super) lasts: bool,
}

/// The windows of one process, and what was seen in them.
#[derive(Debug, Default)]
pub(super) struct Windows {
    open: VecDeque<Window>,
    last: Option<u64>,
    samples: Samples,
    /// All since the last window, those too whose address has been handed out again.
    seen: Counts,
    /// Of the windows that were settled last.
    droppers: Vec<Droppers>,
}

impl Windows {
    /// An allocation was seen in a window.
    pub(super) fn sampled(&mut self, addr: u64, class: usize, tally: TallyIndex, time: MonotonicNs) {
        if self.samples.len() < MAX_SAMPLES || self.samples.contains_key(&addr) {
            let sample = Sample {
                class,
                tally,
                time: time.0,
            };
            self.samples.insert(addr, sample);
            // What waited in the ring comes behind its window's end.
            let window = self.open.iter_mut().find(|window| window.has(&sample));
            let seen = window.map_or(&mut self.seen, |window| &mut window.seen);
            *seen.entry((class, tally)).or_default() += 1;
        }
    }

    /// Every allocation at the addresses of the sample was seen in this time, but for what did not fit.
    pub(super) fn closed(&mut self, window: SamplingWindow) {
        let (from, to) = (window.from.0, window.to.0);
        let before = self.last.replace(to);
        self.open.push_back(Window {
            from,
            to,
            period: to
                .saturating_sub(before.unwrap_or(window.since.0))
                .min(LONGEST_PERIOD),
            one_in: window.one_in.max(1),
            kept: 1.0 - window.lost.clamp(0.0, MOST_LOST),
            seen: std::mem::take(&mut self.seen),
            left: None,
        });
        if self.open.len() > MAX_OPEN {
            self.open.pop_front();
        }
    }

    /// An audit that began at `time`. `alive`: those of the samples that are still in use. Gives the windows that it tells of.
    pub(super) fn audit(&mut self, time: MonotonicNs, alive: &[u64]) -> Vec<Outcome> {
        let time = time.0;
        let mut outlived = FxHashMap::default();
        for addr in alive {
            if let Some(sample) = self.samples.get(addr)
                && sample.time < time
            {
                outlived.insert(*addr, *sample);
            }
        }
        self.samples.retain(|_, sample| sample.time >= time);
        self.samples.extend(outlived);
        let mut outcomes = Vec::new();
        let mut droppers = Vec::new();
        for mut window in std::mem::take(&mut self.open) {
            if window.to >= time {
                self.open.push_back(window);
            } else if window.left.is_some() {
                outcomes.push(window.outcome(Some(&self.samples)));
                droppers.push(window.droppers());
                self.samples.retain(|_, sample| sample.time > window.to);
            } else {
                let left = self.samples.iter().filter(|(_, sample)| window.has(sample));
                window.left = Some(left.map(|(addr, sample)| (*addr, *sample)).collect());
                outcomes.push(window.outcome(None));
                self.open.push_back(window);
            }
        }
        if !droppers.is_empty() {
            self.droppers = droppers;
        }
        outcomes
    }

    /// Whether the windows that were settled last say that a stack soon freed what it allocated of a class at that time.
    pub(super) fn drops(&self, class: usize, tally: TallyIndex, time: MonotonicNs) -> bool {
        self.droppers
            .iter()
            .any(|Droppers { from, to, of }| (*from..=*to).contains(&time.0) && of.contains(&(class, tally)))
    }
}

impl Window {
    fn has(&self, sample: &Sample) -> bool {
        // An event's time can be a tick of the clock before its own.
        (self.from.saturating_sub(MOST_TICK_NS)..=self.to).contains(&sample.time)
    }

    /// Whether a sample is of its first part.
    fn begins_with(&self, sample: &Sample) -> bool {
        self.has(sample) && sample.time <= self.from + self.to.saturating_sub(self.from) / PARTS
    }

    /// `lasting`: what is left at the second audit, if there was one.
    fn outcome(&self, lasting: Option<&Samples>) -> Outcome {
        let first = self.left.as_ref().into_iter().flatten();
        let kept = self.kept_by(first.clone().map(|(_, sample)| sample));
        let all = lasting.into_iter().flatten();
        let lasts_by = self.kept_by(all.map(|(_, sample)| sample));
        let outlived = first.filter_map(|(&addr, sample)| {
            let Sample { class, tally, .. } = *sample;
            let now = lasting.and_then(|lasting| lasting.get(&addr));
            let lasts = now.is_some_and(|now| now.time == sample.time);
            let is_kept = if lasts { &lasts_by } else { &kept }.contains(&(class, tally));
            (is_kept || self.begins_with(sample)).then_some(Outlived {
                addr,
                class,
                tally,
                stands_for: if is_kept { 1 } else { PARTS },
                lasts,
            })
        });
        let length = self.to.saturating_sub(self.from).max(1) as f64;
        let share = length * self.kept / f64::from(self.one_in);
        Outcome {
            weight: self.period as f64 / share,
            tail: TAIL as f64 / share,
            outlived: outlived.collect(),
        }
    }

    /// Of whom most samples are among these.
    fn kept_by<'a>(&self, left: impl Iterator<Item = &'a Sample>) -> FxHashSet<Key> {
        let left = counts(left.filter(|sample| self.has(sample)));
        let seen = |key: &Key| self.seen.get(key).copied().unwrap_or(0);
        let kept = left.iter().filter(|&(key, &left)| left * 2 >= seen(key));
        kept.map(|(key, _)| *key).collect()
    }

    /// Who had nothing left soon after it.
    fn droppers(&self) -> Droppers {
        let left = counts(self.left.iter().flat_map(Samples::values));
        let left = |key: &Key| left.get(key).copied().unwrap_or(0);
        let all = self.seen.iter();
        let droppers = all.filter(|&(key, &seen)| seen >= TELLING && left(key) * DROPPED < seen);
        Droppers {
            from: self.to.saturating_sub(self.period),
            to: self.to.saturating_add(TAIL),
            of: droppers.map(|(key, _)| *key).collect(),
        }
    }
}

/// How many samples there are of each class and stack.
fn counts<'a>(samples: impl Iterator<Item = &'a Sample>) -> Counts {
    let mut counts = Counts::default();
    for sample in samples {
        *counts.entry((sample.class, sample.tally)).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(second: u64) -> MonotonicNs {
        MonotonicNs(second * SECOND)
    }

    fn window(from: u64, seconds: u64) -> SamplingWindow {
        SamplingWindow {
            from: at(from),
            to: at(from + seconds),
            one_in: 1,
            lost: 0.0,
            since: at(0),
        }
    }

    /// Address, stack, what it stands for and whether it lasts, of each block that outlived the only window that an audit tells of.
    #[track_caller]
    fn check(windows: &mut Windows, second: u64, alive: &[u64], expected: &[(u64, TallyIndex, u64, bool)]) {
        let told = windows.audit(at(second), alive);
        let all = told[0].outlived.iter();
        let mut found: Vec<_> = all
            .map(|block| (block.addr, block.tally, block.stands_for, block.lasts))
            .collect();
        found.sort_unstable();
        assert_eq!((found.as_slice(), told.len()), (expected, 1));
    }

    #[test]
    fn what_two_audits_find_in_use_lasts() {
        let mut windows = Windows::default();
        for (addr, tally) in [(1, 0), (2, 0), (3, 1), (4, 1)] {
            windows.sampled(addr, 3, tally, at(100));
        }
        windows.closed(window(100, 3));
        // Address 2 is handed out again, which is told of late.
        windows.sampled(2, 3, 1, at(101));
        windows.closed(window(110, 1));
        assert_eq!(windows.open[0].seen[&(3, 1)], 3);
        assert!(windows.open[1].seen.is_empty());
        windows.open.pop_back();
        assert!(windows.audit(at(102), &[1, 2, 3, 4]).is_empty());
        let left = [(1, 0, 1, false), (2, 1, 1, false), (3, 1, 1, false)];
        check(&mut windows, 104, &[1, 2, 3], &left);
        // Of B's most do not last.
        let left = [(1, 0, 1, true), (2, 1, 1, false), (3, 1, 3, true)];
        check(&mut windows, 105, &[1, 3, 4], &left);
        assert!(windows.samples.is_empty() && windows.open.is_empty());
    }

    #[test]
    fn of_those_whose_blocks_soon_go_only_the_first_part_counts() {
        let mut windows = Windows::default();
        for number in 0..30 {
            windows.sampled(number, 3, 0, MonotonicNs(100 * SECOND + number * SECOND / 10));
        }
        windows.closed(window(100, 3));
        let alive = [3, 5, 11, 15, 27, 28, 29];
        check(&mut windows, 104, &alive, &[(3, 0, 3, false), (5, 0, 3, false)]);
        check(&mut windows, 105, &alive, &[(3, 0, 3, true), (5, 0, 3, true)]);
    }

    #[test]
    fn a_window_stands_for_the_time_from_the_one_before() {
        let mut windows = Windows::default();
        windows.closed(window(0, 1));
        windows.sampled(1, 3, 0, at(10));
        windows.closed(SamplingWindow {
            one_in: 4,
            lost: 0.5,
            ..window(10, 3)
        });
        windows.audit(at(14), &[1]);
        let told = windows.audit(at(15), &[1]);
        // A second and a half of work, of a quarter of the addresses: for the twelve since the window before, and for ten.
        for (found, expected) in [(told[1].weight, 32.0), (told[1].tail, 26.67)] {
            assert!((found - expected).abs() < 0.01, "{found}");
        }
        assert!(told[0].outlived.is_empty());
        assert_eq!(told[1].outlived.len(), 1);
    }

    #[test]
    fn who_has_nothing_left_of_much_soon_after_a_window_drops_all() {
        let mut windows = Windows::default();
        windows.closed(window(0, 1));
        // A and B make 60 blocks each; of these A keeps seven until the next audit, and B eight.
        for (tally, base) in [(0, 0), (1, 100)] {
            for number in 0..60 {
                windows.sampled(base + number, 3, tally, at(21));
            }
        }
        windows.closed(window(20, 3));
        let alive: Vec<u64> = (0..7).chain(100..108).collect();
        windows.audit(at(24), &alive);
        let drops = |windows: &Windows, class, tally, second| windows.drops(class, tally, at(second));
        assert!(!drops(&windows, 3, 0, 20));
        windows.audit(at(25), &[]);
        assert!(drops(&windows, 3, 0, 2) && drops(&windows, 3, 0, 33));
        assert!(!drops(&windows, 3, 0, 0) && !drops(&windows, 3, 0, 34));
        assert!(!drops(&windows, 3, 1, 20) && !drops(&windows, 4, 0, 20));
        // Few tell nothing.
        windows.sampled(1, 3, 1, at(40));
        windows.closed(window(40, 1));
        windows.audit(at(42), &[]);
        assert!(drops(&windows, 3, 0, 20));
        windows.audit(at(43), &[]);
        assert!(!drops(&windows, 3, 0, 40) && !drops(&windows, 3, 1, 40));
    }
}
