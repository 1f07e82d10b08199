//! Who filled pools again: what sampling windows tell of it.
//!
//! Refilled blocks pass no acquisition, and what is left in the pools of who drops all is not his. The blocks that outlive a
//! window in such a pool stand for as many as the time from the window before was longer. That many refilled blocks of their
//! class are theirs; so are, until another window tells, those of the seconds after it; the rest stays unknown. Invariant: for each
//! class, what is known and what is not add up to what the pools say was filled again.

use rustc_hash::FxHashMap;

use super::windows::Settled;
use crate::{profile::live::TallyIndex, python::SIZE_CLASSES};

/// Refilled blocks of one size class.
#[derive(Clone, Debug, Default)]
struct Class {
    unknown: f64,
    known: FxHashMap<TallyIndex, Known>,
    /// What outlived the last window in which something did, and by what to multiply it for the time after it.
    last: FxHashMap<TallyIndex, Known>,
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
        settled: &[Settled],
        refilled: &[u64],
        is_refilled: impl Fn(u64, usize) -> bool,
    ) {
        for (class, &now) in self.classes.iter_mut().zip(refilled) {
            class.follow(now as f64);
        }
        for window in settled {
            let mut outlived = vec![FxHashMap::<TallyIndex, Known>::default(); self.classes.len()];
            for block in &window.outlived {
                if let Some(of_class) = outlived.get_mut(block.class)
                    && is_refilled(block.addr, block.class)
                {
                    let known = of_class.entry(block.tally).or_default();
                    known.blocks += block.stands_for as f64;
                    known.samples += 1;
                }
            }
            for (class, outlived) in self.classes.iter_mut().zip(outlived) {
                class.give(outlived, window);
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
    fn give(&mut self, outlived: FxHashMap<TallyIndex, Known>, window: &Settled) {
        let all: f64 = outlived.values().map(|of_it| of_it.blocks).sum();
        if outlived.is_empty() {
            return;
        }
        let given = self.unknown.min(all * window.weight);
        self.unknown -= given;
        for (&tally, of_it) in &outlived {
            let known = self.known.entry(tally).or_default();
            known.blocks += given * of_it.blocks / all;
            known.samples += of_it.samples;
        }
        (self.last, self.tail) = (outlived, window.tail);
    }

    /// What is known, with what the last window tells of the time after it, and what is not.
    fn until_the_next_window(&self) -> (FxHashMap<TallyIndex, Known>, f64) {
        let mut known = self.known.clone();
        let all: f64 = self.last.values().map(|of_it| of_it.blocks).sum();
        let given = self.unknown.min(all * self.tail);
        for (&tally, of_it) in &self.last {
            known.entry(tally).or_default().blocks += given * of_it.blocks / all;
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

    /// So many blocks of a class are refilled; windows were settled of which each block of these addresses and stacks stands for
    /// a hundred blocks, and for ten of later times.
    fn share(refills: &mut Refills, blocks: u64, windows: &[&[(u64, TallyIndex)]]) {
        let outlived = |&(addr, tally): &(u64, TallyIndex)| Outlived {
            addr,
            class: 3,
            tally,
            stands_for: 1,
        };
        let settled: Vec<Settled> = windows
            .iter()
            .map(|window| Settled {
                weight: 100.0,
                tail: 10.0,
                outlived: window.iter().map(outlived).collect(),
            })
            .collect();
        let mut refilled = [0; SIZE_CLASSES];
        refilled[3] = blocks;
        refills.share(&settled, &refilled, |addr, class| addr < 1000 && class == 3);
    }

    #[test]
    fn who_outlives_a_window_stands_for_the_time_before_it_and_a_while_after_it() {
        let mut refills = Refills::default();
        share(&mut refills, 500, &[]);
        check(&refills, [0, 0, 500]);
        // One of B's is elsewhere.
        share(&mut refills, 600, &[&[(1, 0), (2, 0), (3, 1), (2000, 1)]]);
        check(&refills, [200 + 20, 100 + 10, 300 - 30]);
        // Half of them are freed.
        share(&mut refills, 300, &[]);
        check(&refills, [100 + 20, 50 + 10, 150 - 30]);
        share(&mut refills, 0, &[]);
        check(&refills, [0, 0, 0]);
    }

    #[test]
    fn what_a_later_window_tells_replaces_what_was_supposed() {
        let mut refills = Refills::default();
        share(&mut refills, 100, &[&[(1, 0)]]);
        check(&refills, [100, 0, 0]);
        // Who filled pools in the window before is supposed to have filled these, until there is another.
        share(&mut refills, 105, &[]);
        check(&refills, [105, 0, 0]);
        share(&mut refills, 180, &[&[(5, 1)]]);
        check(&refills, [100, 80, 0]);
    }

    #[test]
    fn no_more_is_given_than_there_is() {
        let mut refills = Refills::default();
        share(&mut refills, 40, &[&[(1, 0)]]);
        check(&refills, [40, 0, 0]);
        share(&mut refills, 140, &[&[(1, 0)], &[(1, 1)]]);
        check(&refills, [140, 0, 0]);
    }
}
