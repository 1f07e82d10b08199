//! Who filled pools again: what short looks at every allocation tell of it.
//!
//! Refilled blocks pass no acquisition. Now and then a *window* is opened in which every allocation is seen, at the addresses of
//! a sample. Frees are not: a block of a window's first part whose address is not handed out again in the others, and that is still in
//! use two audits later in a pool that was filled again, stands for as many as the time from the window before was longer than
//! that part. That many refilled blocks of their class are theirs; so are, until another window tells, those of the seconds
//! after it; the rest stays unknown. Who allocates much in a window and has nothing left at the next audit is a *dropper*: the
//! pools that he acquired around that time hold what others keep, and count as filled again. Invariant: for each class, what is
//! known and what is not add up to what the pools say was filled again.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::limits::MOST_TICK_NS;

use crate::{
    profile::{apply::SamplingWindow, live::TallyIndex},
    python::SIZE_CLASSES,
    units::MonotonicNs,
};

/// Allocations remembered of one process; more are not.
const MAX_SAMPLES: usize = 1 << 14;
/// Audits that an allocation must outlive.
const AUDITS: u32 = 2;
/// A window stands for what was filled again after it, too, until the next one: for no more time than this, which is how long it
/// takes until that one and its audits have been, nanoseconds.
const TAIL: u64 = 10_000_000_000;
/// Samples are from the first of so many parts of a window; the others are there to tell what of it is freed soon.
const PARTS: u64 = 3;
/// A process does no less than a tenth of its work in a window, or it is not known how much.
const MOST_LOST: f64 = 0.9;
/// Allocations in a part of a window from which on it tells who drops all, and of how many one may be left then.
const TELLING: u64 = 16;
const DROPPED: u64 = 8;
/// The first window stands for no more time than this, nanoseconds.
const LONGEST_PERIOD: u64 = 60_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Sample {
    class: usize,
    tally: TallyIndex,
    time: u64,
}

#[derive(Clone, Debug)]
struct Window {
    from: u64,
    to: u64,
    /// Time from the end of the window before.
    period: u64,
    one_in: u32,
    /// Part of it in which the process did its work.
    kept: f64,
    audits: u32,
    /// Allocations in it, and those of its first part that are left at the first audit.
    seen: Counts,
    left: Counts,
}

/// Blocks by size class and stack.
type Counts = FxHashMap<(usize, TallyIndex), u64>;

/// Who freed what they had allocated in a window, and the time that it stands for.
#[derive(Debug, Default)]
struct Droppers {
    from: u64,
    to: u64,
    of: FxHashSet<(usize, TallyIndex)>,
}

/// A window that enough audits have seen, and what outlived it.
#[derive(Debug)]
pub(super) struct Settled {
    /// How many blocks one stands for, of the time from the window before and of [`TAIL`].
    weight: f64,
    tail: f64,
    outlived: Vec<(u64, Sample)>,
}

/// Refilled blocks of one size class.
#[derive(Clone, Debug, Default)]
struct Class {
    unknown: f64,
    known: FxHashMap<TallyIndex, Known>,
    /// What outlived the last window in which something did, and how many blocks of later times one stands for at most.
    last: Vec<(TallyIndex, u64)>,
    tail: f64,
}

/// Blocks, and the samples that they rest on.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    blocks: f64,
    samples: u64,
}

/// What is known of one process's refilled pools.
#[derive(Debug)]
pub(super) struct Refills {
    classes: Vec<Class>,
    windows: VecDeque<Window>,
    last_window: Option<u64>,
    samples: FxHashMap<u64, Sample>,
    /// Since the last window.
    seen: Counts,
    /// Of the windows that were settled last.
    droppers: Vec<Droppers>,
}

impl Default for Refills {
    fn default() -> Self {
        Self {
            classes: vec![Class::default(); SIZE_CLASSES],
            windows: VecDeque::new(),
            last_window: None,
            samples: FxHashMap::default(),
            seen: Counts::default(),
            droppers: Vec::new(),
        }
    }
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

impl Refills {
    /// An allocation was seen in a window.
    pub(super) fn sampled(&mut self, addr: u64, class: usize, tally: TallyIndex, time: MonotonicNs) {
        if self.samples.len() < MAX_SAMPLES || self.samples.contains_key(&addr) {
            let time = time.0;
            self.samples.insert(addr, Sample { class, tally, time });
            *self.seen.entry((class, tally)).or_default() += 1;
        }
    }

    /// Every allocation at the addresses of the sample was seen in this time, but for what did not fit.
    pub(super) fn window(&mut self, window: SamplingWindow) {
        let (from, to) = (window.from.0, window.to.0);
        let before = self.last_window.replace(to);
        let period = to.saturating_sub(before.unwrap_or(0)).min(LONGEST_PERIOD);
        self.windows.push_back(Window {
            from,
            to,
            period,
            one_in: window.one_in.max(1),
            kept: 1.0 - window.lost.clamp(0.0, MOST_LOST),
            audits: 0,
            seen: std::mem::take(&mut self.seen),
            left: Counts::default(),
        });
    }

    /// An audit that began at `time`. `alive`: those of the samples that are still in use. The windows that it settles are
    /// given back: what they tell of acquisitions comes before what they tell of refilled blocks.
    pub(super) fn audit(&mut self, time: MonotonicNs, alive: &[u64]) -> Vec<Settled> {
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
        for window in self.windows.iter_mut().filter(|window| window.to < time) {
            window.audits += 1;
            if window.audits == 1 {
                window.left = counts(window.of_first_part(&self.samples));
            }
        }
        let mut settled = Vec::new();
        let mut droppers = Vec::new();
        while let Some(window) = self.windows.pop_front_if(|window| window.audits >= AUDITS) {
            settled.push(window.settle(&self.samples));
            droppers.push(window.droppers());
            self.samples.retain(|_, sample| sample.time > window.to);
        }
        if !droppers.is_empty() {
            self.droppers = droppers;
        }
        settled
    }

    /// Whether the windows that were settled last say that a stack soon freed what it allocated of a class at that time.
    pub(super) fn drops(&self, class: usize, tally: TallyIndex, time: MonotonicNs) -> bool {
        self.droppers
            .iter()
            .any(|Droppers { from, to, of }| (*from..=*to).contains(&time.0) && of.contains(&(class, tally)))
    }

    /// Gives those that outlived these windows what they stand for. `refilled`: blocks in refilled pools, by class;
    /// `is_refilled`: whether a block is in one.
    pub(super) fn share(
        &mut self,
        settled: &[Settled],
        refilled: &[u64],
        is_refilled: impl Fn(u64, usize) -> bool,
    ) {
        for (class, &now) in self.classes.iter_mut().zip(refilled) {
            class.follow(now as f64);
        }
        for window in settled {
            let outlived = window.outlived.iter().copied();
            let counts = counts(outlived.filter(|(addr, sample)| is_refilled(*addr, sample.class)));
            self.give(window, &counts);
        }
    }

    fn give(&mut self, window: &Settled, counts: &Counts) {
        for (index, class) in self.classes.iter_mut().enumerate() {
            let of_class = || counts.iter().filter(move |((class, _), _)| *class == index);
            let all: u64 = of_class().map(|(_, count)| count).sum();
            if all == 0 {
                continue;
            }
            class.last = of_class().map(|((_, tally), &count)| (*tally, count)).collect();
            class.tail = window.tail;
            let given = class.unknown.min(all as f64 * window.weight);
            class.unknown -= given;
            for ((_, tally), &count) in of_class() {
                let known = class.known.entry(*tally).or_default();
                known.blocks += given * count as f64 / all as f64;
                known.samples += count;
            }
        }
    }

    /// What is known, and what is not.
    pub(super) fn shares(&self) -> Vec<Refill> {
        let mut shares = Vec::new();
        for (index, class) in self.classes.iter().enumerate() {
            let (known, unknown) = class.until_the_next_window();
            let known = known.into_iter().map(|(tally, known)| (Some(tally), known));
            let unknown = Known {
                blocks: unknown,
                samples: 0,
            };
            for (tally, known) in known.chain([(None, unknown)]) {
                let blocks = whole(known.blocks);
                if blocks > 0 {
                    shares.push(Refill {
                        class: index,
                        tally,
                        blocks,
                        samples: known.samples,
                    });
                }
            }
        }
        shares
    }
}

/// How many samples there are of each class and stack.
fn counts(samples: impl Iterator<Item = (u64, Sample)>) -> Counts {
    let mut counts = Counts::default();
    for (_, sample) in samples {
        *counts.entry((sample.class, sample.tally)).or_default() += 1;
    }
    counts
}

impl Window {
    fn part(&self) -> u64 {
        self.to.saturating_sub(self.from) / PARTS
    }

    /// Of these samples, those of its first part.
    fn of_first_part(&self, samples: &FxHashMap<u64, Sample>) -> impl Iterator<Item = (u64, Sample)> {
        // An event's time can be a tick of the clock before its own.
        let first = self.from.saturating_sub(MOST_TICK_NS)..=self.from + self.part();
        let all = samples.iter().map(|(addr, sample)| (*addr, *sample));
        all.filter(move |(_, sample)| first.contains(&sample.time))
    }

    /// `samples`: those that are left.
    fn settle(&self, samples: &FxHashMap<u64, Sample>) -> Settled {
        let share = self.part().max(1) as f64 * self.kept / f64::from(self.one_in);
        Settled {
            weight: self.period as f64 / share,
            tail: TAIL as f64 / share,
            outlived: self.of_first_part(samples).collect(),
        }
    }

    /// Who had nothing left soon after it.
    fn droppers(&self) -> Droppers {
        let left = |key: &(usize, TallyIndex)| self.left.get(key).copied().unwrap_or(0);
        let of_part = self.seen.iter().map(|(key, seen)| (key, seen / PARTS));
        let droppers = of_part.filter(|&(key, seen)| seen >= TELLING && left(key) * DROPPED < seen);
        Droppers {
            from: self.to.saturating_sub(self.period),
            to: self.to.saturating_add(TAIL),
            of: droppers.map(|(key, _)| *key).collect(),
        }
    }
}

impl Class {
    /// What is known, with what the last window tells of the time after it, and what is not.
    fn until_the_next_window(&self) -> (FxHashMap<TallyIndex, Known>, f64) {
        let mut known = self.known.clone();
        let all: u64 = self.last.iter().map(|(_, count)| count).sum();
        let given = self.unknown.min(all as f64 * self.tail);
        for &(tally, count) in &self.last {
            known.entry(tally).or_default().blocks += given * count as f64 / all as f64;
        }
        (known, self.unknown - given)
    }

    /// So many blocks are refilled now: more are not known yet; if there are fewer, all have fewer.
    fn follow(&mut self, now: f64) {
        let before = self.unknown + self.known.values().map(|known| known.blocks).sum::<f64>();
        if now >= before {
            self.unknown += now - before;
            return;
        }
        let left = now / before;
        self.unknown *= left;
        for known in self.known.values_mut() {
            known.blocks *= left;
        }
        self.known.retain(|_, known| known.blocks >= 0.5);
    }
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
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Blocks of A, B and unknown ones.
    #[track_caller]
    fn check(refills: &Refills, expected: [u64; 3]) {
        let of = |tally| {
            let shares = refills.shares();
            let of_it = shares.iter().filter(|share| share.tally == tally);
            of_it.map(|share| share.blocks).sum::<u64>()
        };
        assert_eq!([of(Some(0)), of(Some(1)), of(None)], expected);
    }

    fn audit(refills: &mut Refills, second: u64, alive: &[u64], blocks: u64) {
        let mut refilled = [0; SIZE_CLASSES];
        refilled[3] = blocks;
        let settled = refills.audit(MonotonicNs(second * SECOND), alive);
        refills.share(&settled, &refilled, |addr, _| addr < 1000);
    }

    fn window(from: u64, length: u64) -> SamplingWindow {
        SamplingWindow {
            from: MonotonicNs(from),
            to: MonotonicNs(from + length),
            one_in: 1,
            lost: 0.0,
        }
    }

    #[test]
    fn who_outlives_a_window_stands_for_the_time_before_it() {
        let mut refills = Refills::default();
        audit(&mut refills, 90, &[], 500);
        check(&refills, [0, 0, 500]);
        // A window of 1% of a minute: A makes two blocks that stay, B one, and three that go or are elsewhere.
        let from = 100 * SECOND;
        for (addr, tally) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (2000, 1)] {
            refills.sampled(addr, 3, tally, MonotonicNs(from + addr));
        }
        refills.window(window(from, 18 * SECOND / 10));
        // Behind its first third nobody's is counted.
        refills.sampled(6, 3, 1, MonotonicNs(from + 7 * SECOND / 10));
        audit(&mut refills, 102, &[1, 2, 3, 4, 6, 2000], 600);
        check(&refills, [0, 0, 600]);
        audit(&mut refills, 103, &[1, 2, 3, 6, 2000], 600);
        // Three outlived it, a hundred blocks each; and one in 0.6 s for 17 in the next ten.
        check(&refills, [200 + 33, 100 + 17, 300 - 50]);
        // Half of them are freed.
        audit(&mut refills, 104, &[], 300);
        check(&refills, [100 + 33, 50 + 17, 150 - 50]);
        audit(&mut refills, 105, &[], 0);
        check(&refills, [0, 0, 0]);
    }

    #[test]
    fn a_sample_stands_for_all_addresses_and_for_what_was_not_done_for_the_hits() {
        let mut refills = Refills::default();
        refills.window(window(0, SECOND));
        refills.sampled(1, 3, 0, MonotonicNs(10 * SECOND));
        refills.window(SamplingWindow {
            one_in: 4,
            lost: 0.5,
            ..window(10 * SECOND, 3 * SECOND)
        });
        audit(&mut refills, 14, &[1], 1000);
        audit(&mut refills, 15, &[1], 1000);
        // One in half a second of work, of a quarter of the addresses: for the twelve since the window before, and ten.
        check(&refills, [96 + 80, 0, 1000 - 96 - 80]);
    }

    #[test]
    fn an_address_is_whose_who_had_it_last() {
        let mut refills = Refills::default();
        refills.sampled(1, 3, 0, MonotonicNs(SECOND));
        refills.sampled(1, 3, 1, MonotonicNs(SECOND + 1));
        refills.window(window(SECOND, 100));
        audit(&mut refills, 2, &[1], 40);
        audit(&mut refills, 3, &[1], 40);
        check(&refills, [0, 40, 0]);
    }

    #[test]
    fn who_has_nothing_left_of_much_soon_after_a_window_drops_all() {
        let mut refills = Refills::default();
        let at = |second| MonotonicNs(second * SECOND);
        refills.window(window(0, SECOND));
        // A keeps one block of 20 in each third of the window, B five; both have more that is not left at the second audit.
        for (tally, base) in [(0, 0), (1, 100)] {
            for number in 0..60 {
                refills.sampled(
                    base + number,
                    3,
                    tally,
                    MonotonicNs(20 * SECOND + number * SECOND / 20),
                );
            }
        }
        refills.window(window(20 * SECOND, 3 * SECOND));
        audit(&mut refills, 24, &[1, 100, 101, 102, 103, 104], 0);
        assert!(!refills.drops(3, 0, at(20)));
        audit(&mut refills, 25, &[], 0);
        let drops = |refills: &Refills, class, tally, second| refills.drops(class, tally, at(second));
        assert!(drops(&refills, 3, 0, 2) && drops(&refills, 3, 0, 33));
        assert!(!drops(&refills, 3, 0, 0) && !drops(&refills, 3, 0, 34));
        assert!(!drops(&refills, 3, 1, 20) && !drops(&refills, 4, 0, 20));
        // Of little nothing is known, until another window tells.
        refills.sampled(1, 3, 1, at(40));
        refills.window(window(40 * SECOND, SECOND));
        audit(&mut refills, 42, &[], 0);
        assert!(drops(&refills, 3, 0, 20));
        audit(&mut refills, 43, &[], 0);
        assert!(!drops(&refills, 3, 0, 40) && !drops(&refills, 3, 1, 40));
    }

    #[test]
    fn no_more_is_given_than_there_is() {
        let mut refills = Refills::default();
        refills.sampled(1, 3, 0, MonotonicNs(SECOND));
        refills.window(window(SECOND, 1000));
        audit(&mut refills, 2, &[1], 40);
        audit(&mut refills, 3, &[1], 40);
        check(&refills, [40, 0, 0]);
    }
}
