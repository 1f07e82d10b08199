//! A block that was seen in a sampling window, and what is known of it. The rules are in the module above.

use rustc_hash::FxHashMap;

use super::young::{Life, Window};
use crate::profile::live::TallyIndex;

/// A size class, and a stack.
pub(super) type Key = (usize, TallyIndex);

/// Blocks of each class and stack.
pub(super) type Counts = FxHashMap<Key, u64>;

/// Samples that can stand for each other.
pub(super) type Kind = (Key, State, Option<bool>);

/// A block that was seen in a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) class: usize,
    pub(super) tally: TallyIndex,
    pub(super) born: u64,
    /// How long the process had worked when it was last found in use, or nothing.
    pub(super) seen: f64,
    pub(super) state: State,
    /// How many it stands for: of the sample, or, once it is settled, of all.
    pub(super) weight: f64,
    /// Whether it was put where blocks are filled again, once a reading has told.
    pub(super) refills: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// Its window has not been looked at.
    Waiting,
    /// Of the newest window of its class.
    Young,
    /// Of one before that.
    Settled,
}

impl Sample {
    pub(super) fn kind(&self) -> Kind {
        ((self.class, self.tally), self.state, self.refills)
    }

    /// Whether it is of a window, which has not been looked at.
    pub(super) fn waits_for(&self, window: &Window) -> bool {
        self.state == State::Waiting && window.has(self.born)
    }

    /// Its life, which lasted for no more work than this.
    pub(super) fn until(&self, until: f64) -> Life {
        Life {
            born: self.born,
            seen: self.seen,
            until,
            weight: self.weight,
            refills: self.refills,
        }
    }
}

pub(super) fn counts<'a>(samples: impl Iterator<Item = &'a Sample>) -> Counts {
    let mut counts = Counts::default();
    for sample in samples {
        *counts.entry((sample.class, sample.tally)).or_default() += 1;
    }
    counts
}
