//! Who filled pools again: what short looks at every allocation tell of it.
//!
//! Refilled blocks pass no acquisition. Now and then a *window* is opened in which every allocation is seen; those that are
//! still in use two audits later, in a pool that was filled again, stand for as many as the time from the window before was
//! longer than the window. That many refilled blocks of their class are theirs; so are, until another window tells, those of the
//! seconds after it; the rest stays unknown. Invariant: for each class, what is known and what is not add up to what the pools say was
//! filled again.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use tracer_ebpf::limits::MOST_TICK_NS;

use crate::{profile::live::TallyIndex, python::SIZE_CLASSES, units::MonotonicNs};

/// Allocations remembered of one process; more are not.
const MAX_SAMPLES: usize = 1 << 14;
/// Audits that an allocation must outlive.
const AUDITS: u32 = 2;
/// A window stands for what was filled again after it, too, until the next one: for no more time than this, which is how long that
/// one can be away, nanoseconds.
const TAIL: f64 = 5e9;
/// The first window stands for no more time than this, nanoseconds.
const LONGEST_PERIOD: u64 = 60_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Sample {
    class: usize,
    tally: TallyIndex,
    time: u64,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    from: u64,
    to: u64,
    /// Time from the end of the window before.
    period: u64,
    audits: u32,
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
}

impl Default for Refills {
    fn default() -> Self {
        Self {
            classes: vec![Class::default(); SIZE_CLASSES],
            windows: VecDeque::new(),
            last_window: None,
            samples: FxHashMap::default(),
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
        }
    }

    /// Every allocation was seen in this time, but for what did not fit.
    pub(super) fn window(&mut self, from: MonotonicNs, to: MonotonicNs) {
        let before = self.last_window.replace(to.0);
        let period = to.0.saturating_sub(before.unwrap_or(0)).min(LONGEST_PERIOD);
        self.windows.push_back(Window {
            from: from.0,
            to: to.0,
            period,
            audits: 0,
        });
    }

    /// An audit that began at `time`. `alive`: those of the samples that are still in use; `refilled`: blocks in refilled
    /// pools, by class; `is_refilled`: whether a block is in one.
    pub(super) fn audit(
        &mut self,
        time: MonotonicNs,
        alive: &[u64],
        refilled: &[u64],
        is_refilled: impl Fn(u64) -> bool,
    ) {
        for (class, &now) in self.classes.iter_mut().zip(refilled) {
            class.follow(now as f64);
        }
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
        for window in &mut self.windows {
            window.audits += u32::from(window.to < time);
        }
        while let Some(window) = self
            .windows
            .front()
            .filter(|window| window.audits >= AUDITS)
            .copied()
        {
            self.windows.pop_front();
            self.settle(window, &is_refilled);
        }
    }

    /// Gives those that outlived a window what they stand for.
    fn settle(&mut self, window: Window, is_refilled: impl Fn(u64) -> bool) {
        let mut counts: FxHashMap<(usize, TallyIndex), u64> = FxHashMap::default();
        for (addr, sample) in &self.samples {
            // An event's time can be a tick of the clock before its own.
            let from = window.from.saturating_sub(MOST_TICK_NS);
            if (from..=window.to).contains(&sample.time) && is_refilled(*addr) {
                *counts.entry((sample.class, sample.tally)).or_default() += 1;
            }
        }
        self.samples.retain(|_, sample| sample.time > window.to);
        let length = window.to.saturating_sub(window.from).max(1) as f64;
        let weight = window.period as f64 / length;
        for (index, class) in self.classes.iter_mut().enumerate() {
            let of_class = || counts.iter().filter(move |((class, _), _)| *class == index);
            let all: u64 = of_class().map(|(_, count)| count).sum();
            if all == 0 {
                continue;
            }
            class.last = of_class().map(|((_, tally), &count)| (*tally, count)).collect();
            class.tail = TAIL / length;
            let given = class.unknown.min(all as f64 * weight);
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
        refills.audit(MonotonicNs(second * SECOND), alive, &refilled, |addr| addr < 1000);
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
        refills.window(MonotonicNs(from), MonotonicNs(from + 6 * SECOND / 10));
        audit(&mut refills, 101, &[1, 2, 3, 4, 2000], 600);
        check(&refills, [0, 0, 600]);
        audit(&mut refills, 102, &[1, 2, 3, 2000], 600);
        // Three outlived it, a hundred blocks each; and one in 0.6 s for 25 in the next five.
        check(&refills, [200 + 17, 100 + 8, 300 - 25]);
        // Half of them are freed.
        audit(&mut refills, 103, &[], 300);
        check(&refills, [100 + 17, 50 + 8, 150 - 25]);
        audit(&mut refills, 104, &[], 0);
        check(&refills, [0, 0, 0]);
    }

    #[test]
    fn no_more_is_given_than_there_is() {
        let mut refills = Refills::default();
        refills.sampled(1, 3, 0, MonotonicNs(SECOND));
        refills.window(MonotonicNs(SECOND), MonotonicNs(SECOND + 1000));
        audit(&mut refills, 2, &[1], 40);
        audit(&mut refills, 3, &[1], 40);
        check(&refills, [40, 0, 0]);
    }
}
