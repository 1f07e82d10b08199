//! Who filled pools again: what sampling windows tell of it.
//!
//! Refilled blocks pass no acquisition, and what is left in the pools of who drops all is not his. The blocks that outlive a
//! window in such a pool stand for as many as the time from the window before was longer. That many refilled blocks of their
//! class are theirs if they last. What does not last is soon somebody's else: it, and what was filled in the seconds after a
//! window, is supposed to be whose that window says, until another one tells; the rest stays unknown. Invariant: for each class,
//! what is known and what is not add up to what the pools say was filled again.

use rustc_hash::FxHashMap;

use super::windows::Outcome;
use crate::{profile::live::TallyIndex, python::SIZE_CLASSES};

/// Refilled blocks of one size class.
#[derive(Clone, Debug, Default)]
struct Class {
    unknown: f64,
    known: FxHashMap<TallyIndex, Known>,
    /// What outlived the last window in which something did.
    last: Kept,
}

/// What outlived a window, by stack.
#[derive(Clone, Debug, Default)]
struct Kept {
    lasting: FxHashMap<TallyIndex, Known>,
    others: FxHashMap<TallyIndex, Known>,
    /// How many blocks one stands for that are not known to be somebody's.
    lasting_weight: f64,
    others_weight: f64,
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
}

impl Default for Refills {
    fn default() -> Self {
        Self {
            classes: vec![Class::default(); SIZE_CLASSES],
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
    /// Gives those that outlived these windows what they stand for. `refilled`: blocks in refilled pools, by class;
    /// `is_refilled`: whether a block of a class is in one.
    pub(super) fn share(
        &mut self,
        windows: &[Outcome],
        refilled: &[u64],
        is_refilled: impl Fn(u64, usize) -> bool,
    ) {
        for (class, &now) in self.classes.iter_mut().zip(refilled) {
            class.follow(now as f64);
        }
        for window in windows {
            let mut kept = vec![Kept::default(); self.classes.len()];
            for block in &window.outlived {
                if let Some(kept) = kept.get_mut(block.class)
                    && is_refilled(block.addr, block.class)
                {
                    let part = if block.lasts {
                        &mut kept.lasting
                    } else {
                        &mut kept.others
                    };
                    let known = part.entry(block.tally).or_default();
                    known.blocks += block.stands_for as f64;
                    known.samples += 1;
                }
            }
            for (class, kept) in self.classes.iter_mut().zip(kept) {
                class.give(kept, window);
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
    fn give(&mut self, mut kept: Kept, window: &Outcome) {
        if kept.lasting.is_empty() && kept.others.is_empty() {
            return;
        }
        self.unknown -= take(&kept.lasting, self.unknown, window.weight, &mut self.known);
        // Those are counted now.
        for known in kept.lasting.values_mut() {
            known.samples = 0;
        }
        kept.lasting_weight = window.tail;
        kept.others_weight = window.weight + window.tail;
        self.last = kept;
    }

    /// What is known, with what the last window tells of the rest, and what is not.
    fn until_the_next_window(&self) -> (FxHashMap<TallyIndex, Known>, f64) {
        let (mut known, mut unknown) = (self.known.clone(), self.unknown);
        let last = &self.last;
        unknown -= take(&last.lasting, unknown, last.lasting_weight, &mut known);
        unknown -= take(&last.others, unknown, last.others_weight, &mut known);
        (known, unknown)
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

/// Gives each of them its share of `unknown` blocks, at most `weight` for one; how many were given.
fn take(
    kept: &FxHashMap<TallyIndex, Known>,
    unknown: f64,
    weight: f64,
    to: &mut FxHashMap<TallyIndex, Known>,
) -> f64 {
    let all: f64 = kept.values().map(|of_it| of_it.blocks).sum();
    let given = unknown.min(all * weight);
    if given <= 0.0 {
        return 0.0;
    }
    for (&tally, of_it) in kept {
        let known = to.entry(tally).or_default();
        known.blocks += given * of_it.blocks / all;
        known.samples += of_it.samples;
    }
    given
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
    use super::{super::windows::Outlived, *};

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

    /// A window of which each block stands for a hundred blocks, and for ten of later times: address, stack, whether it lasts.
    fn window(blocks: &[(u64, TallyIndex, bool)]) -> Outcome {
        let outlived = |&(addr, tally, lasts): &(u64, TallyIndex, bool)| Outlived {
            addr,
            class: 3,
            tally,
            stands_for: 1,
            lasts,
        };
        Outcome {
            weight: 100.0,
            tail: 10.0,
            outlived: blocks.iter().map(outlived).collect(),
        }
    }

    /// So many blocks of a class are refilled, and an audit told of these windows.
    fn share(refills: &mut Refills, blocks: u64, windows: &[Outcome]) {
        let mut refilled = [0; SIZE_CLASSES];
        refilled[3] = blocks;
        refills.share(windows, &refilled, |addr, class| addr < 1000 && class == 3);
    }

    #[test]
    fn who_outlives_a_window_stands_for_the_time_before_it_and_a_while_after_it() {
        let mut refills = Refills::default();
        share(&mut refills, 500, &[]);
        check(&refills, [0, 0, 500]);
        // One of B's is elsewhere.
        let blocks = [(1, 0, true), (2, 0, true), (3, 1, true), (2000, 1, true)];
        share(&mut refills, 600, &[window(&blocks)]);
        check(&refills, [200 + 20, 100 + 10, 300 - 30]);
        let samples: u64 = refills.shares().iter().map(|share| share.samples).sum();
        assert_eq!(samples, 3);
        // Half of them are freed.
        share(&mut refills, 300, &[]);
        check(&refills, [100 + 20, 50 + 10, 150 - 30]);
        share(&mut refills, 0, &[]);
        check(&refills, [0, 0, 0]);
    }

    #[test]
    fn what_lasts_comes_first() {
        let blocks = [(1, 0, true), (2, 1, false), (3, 1, false)];
        let mut refills = Refills::default();
        share(&mut refills, 90, &[window(&blocks)]);
        check(&refills, [90, 0, 0]);
        let mut refills = Refills::default();
        share(&mut refills, 200, &[window(&blocks)]);
        check(&refills, [110, 90, 0]);
    }

    #[test]
    fn what_does_not_last_is_whose_the_newest_window_says() {
        let mut refills = Refills::default();
        share(&mut refills, 200, &[window(&[(1, 0, false), (2, 1, false)])]);
        check(&refills, [100, 100, 0]);
        share(&mut refills, 200, &[window(&[(1, 0, false), (2, 1, true)])]);
        check(&refills, [90, 110, 0]);
        share(&mut refills, 400, &[window(&[(3, 0, false)])]);
        check(&refills, [110, 100, 190]);
    }

    #[test]
    fn what_a_later_window_tells_replaces_what_was_supposed() {
        let mut refills = Refills::default();
        share(&mut refills, 100, &[window(&[(1, 0, true)])]);
        check(&refills, [100, 0, 0]);
        // Who filled pools in the window before is supposed to have filled these, until there is another.
        share(&mut refills, 105, &[]);
        check(&refills, [105, 0, 0]);
        share(&mut refills, 180, &[window(&[(5, 1, true)])]);
        check(&refills, [100, 80, 0]);
    }

    #[test]
    fn no_more_is_given_than_there_is() {
        let mut refills = Refills::default();
        share(&mut refills, 40, &[window(&[(1, 0, true)])]);
        check(&refills, [40, 0, 0]);
        let windows = [window(&[(1, 0, true)]), window(&[(1, 1, true)])];
        share(&mut refills, 140, &windows);
        check(&refills, [140, 0, 0]);
    }
}
