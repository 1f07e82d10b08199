//! What the limits of heap mode leave out, and what cannot be known: counted, so that a report can say that its figures are less than complete.
//!
//! Apart from what has the limits. Invariant: one sentence for each limit, however many processes there are.

use crate::{capture::Gap, units::MonotonicNs};

/// How many were left out because of one limit, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    number: u64,
    since: MonotonicNs,
}

/// The same for each limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LeftOut {
    /// Blocks of libc's malloc that are not looked at.
    pub(super) large: Count,
    /// Pools that are not told of.
    pub(super) pools: Count,
    /// Parts of memory that are not searched for pools.
    pub(super) parts: Count,
    /// Blocks seen in sampling windows that are not looked at.
    pub(super) samples: Count,
    /// Processes whose heaps were too large to be counted.
    pub(super) uncounted: Count,
    /// Heaps that were not read when the recording ended.
    pub(super) heaps: Count,
    /// Processes of which it cannot be told which large blocks were freed while that was not traced.
    pub(super) other_mallocs: Count,
}

impl Count {
    /// So many more, at this time.
    pub(super) fn add(&mut self, number: u64, time: MonotonicNs) {
        if number > 0 {
            self.since = if self.number > 0 {
                self.since.min(time)
            } else {
                time
            };
            self.number = self.number.saturating_add(number);
        }
    }

    /// So many at this time, of which those before may be some.
    pub(super) fn at_least(&mut self, number: u64, time: MonotonicNs) {
        self.add(number.saturating_sub(self.number), time);
    }
}

impl LeftOut {
    /// And what was left out of another process.
    pub(super) fn add(&mut self, other: &Self) {
        for (count, other) in [
            (&mut self.large, other.large),
            (&mut self.pools, other.pools),
            (&mut self.parts, other.parts),
            (&mut self.samples, other.samples),
            (&mut self.uncounted, other.uncounted),
            (&mut self.heaps, other.heaps),
            (&mut self.other_mallocs, other.other_mallocs),
        ] {
            count.add(other.number, other.since);
        }
    }

    /// For the capture, up to this time.
    pub(super) fn gaps(&self, to: MonotonicNs) -> Vec<Gap> {
        [
            (
                self.large,
                "large blocks were too many to be read while frees are not traced",
            ),
            (
                self.pools,
                "pools were too many to be remembered, and what is in them is not attributed",
            ),
            (
                self.parts,
                "parts of memory, a MiB each, were too many to be searched for pools",
            ),
            (
                self.samples,
                "blocks seen in short looks were too many to be looked at again",
            ),
            (
                self.uncounted,
                "processes have more of libc's heap than can be counted: what of it is free, after a gap in large blocks, is not known",
            ),
            (
                self.heaps,
                "heaps were too many to be read at the end, and their figures are older than it",
            ),
            (
                self.other_mallocs,
                "processes have another malloc than glibc's: large blocks that they freed while that was not traced are still shown",
            ),
        ]
        .into_iter()
        .filter(|(count, _)| count.number > 0)
        .map(|(count, what)| Gap {
            from: count.since,
            to,
            reason: format!("{} {what}", count.number),
            ..Gap::default()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_one_sentence_for_all_processes() {
        let (mut all, mut one, mut other) = (LeftOut::default(), LeftOut::default(), LeftOut::default());
        one.pools.at_least(5, MonotonicNs(30));
        one.pools.at_least(7, MonotonicNs(40));
        one.pools.at_least(6, MonotonicNs(50));
        one.samples.add(0, MonotonicNs(1));
        other.pools.add(2, MonotonicNs(20));
        other.heaps.add(1, MonotonicNs(60));
        all.add(&one);
        all.add(&other);
        let told: Vec<(u64, u64, String)> = all
            .gaps(MonotonicNs(70))
            .into_iter()
            .map(|gap| (gap.from.get(), gap.to.get(), gap.reason))
            .collect();
        let pools = "9 pools were too many to be remembered, and what is in them is not attributed";
        let heaps = "1 heaps were too many to be read at the end, and their figures are older than it";
        assert_eq!(told, [(20, 70, pools.to_owned()), (60, 70, heaps.to_owned())]);
    }
}
