//! What each stack held at each audit, at a bounded resolution, so that slow growth stands out.
//!
//! Apart from the estimates, which know the last audit only. All series of a process have the same times. Invariant: never
//! more than [`MAX_POINTS`] points; when there would be more, every second one goes, and from then on fewer are kept.

use crate::{profile::live::TallyIndex, units::MonotonicNs};

/// Points of a series.
const MAX_POINTS: usize = 64;

/// The series of one process.
#[derive(Clone, Debug)]
pub(in crate::profile) struct Growth {
    times: Vec<MonotonicNs>,
    /// By tally. A series can be shorter than the times: it began later, and held nothing before.
    series: Vec<Vec<u64>>,
    /// Audits for each point.
    stride: u64,
    audits: u64,
}

impl Default for Growth {
    fn default() -> Self {
        Self {
            times: Vec::new(),
            series: Vec::new(),
            stride: 1,
            audits: 0,
        }
    }
}

impl Growth {
    /// What all held at an audit, in the order of their tallies.
    pub(in crate::profile) fn add(&mut self, time: MonotonicNs, held: impl Iterator<Item = u64>) {
        let is_kept = self.audits.is_multiple_of(self.stride);
        self.audits += 1;
        if !is_kept {
            return;
        }
        if self.times.len() == MAX_POINTS {
            self.thin();
        }
        let points = self.times.len();
        self.times.push(time);
        for (index, bytes) in held.enumerate() {
            if index == self.series.len() {
                self.series.push(Vec::new());
            }
            if let Some(series) = self.series.get_mut(index)
                && (bytes > 0 || !series.is_empty())
            {
                series.resize(points, 0);
                series.push(bytes);
            }
        }
    }

    /// Keeps every second point.
    fn thin(&mut self) {
        self.stride *= 2;
        keep_even(&mut self.times);
        self.series.iter_mut().for_each(keep_even);
    }

    /// When the points were taken.
    pub(in crate::profile) fn times(&self) -> &[MonotonicNs] {
        &self.times
    }

    /// What a tally held at each of them; empty if it never held anything.
    pub(in crate::profile) fn of(&self, tally: TallyIndex) -> &[u64] {
        self.series.get(tally as usize).map_or(&[], Vec::as_slice)
    }
}

fn keep_even<T>(values: &mut Vec<T>) {
    let mut index = 0_usize;
    values.retain(|_| {
        index += 1;
        !index.is_multiple_of(2)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_keep_their_times_however_many_there_are() {
        let mut growth = Growth::default();
        for at in 0..1000 {
            // The first holds its time, the second nothing, the third begins late.
            growth.add(MonotonicNs(at), [at + 1, 0, at.saturating_sub(500)].into_iter());
        }
        let times = growth.times();
        assert!(
            times.len() <= MAX_POINTS && times.len() > MAX_POINTS / 4,
            "{}",
            times.len()
        );
        let first: Vec<u64> = times.iter().map(|time| time.0 + 1).collect();
        assert_eq!(growth.of(0), first);
        assert_eq!(growth.of(1), [0; 0]);
        let third: Vec<u64> = times.iter().map(|time| time.0.saturating_sub(500)).collect();
        assert_eq!(growth.of(2), third);
        assert_eq!(growth.of(9), [0; 0]);
    }
}
