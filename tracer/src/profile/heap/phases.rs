//! How much of what was allocated the large blocks stand for that were seen: they are traced all the time, or in phases with gaps
//! between.
//!
//! A block that is allocated in a phase and stays stands for as many as half of the gap before it and half of the one behind it are
//! longer than the phase; what a program does at its start is not what it does later, so that the first gap is the second phase's alone.
//! Most blocks do not stay; what is known of one that is freed in a gap is what its memory says at the next audit, and
//! one that is freed and allocated again at the same place looks as if nothing had been. So a block stands for others only
//! once it has outlived a later phase, in which such a thing is seen. Invariant: never more than [`MAX_PHASES`] phases; when
//! there would be more, the second and the third become one: the first has no gap before it, and stands for itself.

use std::collections::VecDeque;

use crate::units::MonotonicNs;

const MAX_PHASES: usize = 256;
/// A phase that goes on for so long counts as one that has ended, nanoseconds.
const LONG: u64 = 1_000_000_000;

/// Large blocks were traced from then to then.
#[derive(Clone, Copy, Debug)]
struct Phase {
    from: u64,
    to: u64,
    /// Nanoseconds in it, and of gaps that it stands for.
    on: u64,
    gaps: u64,
}

/// The phases of one process.
#[derive(Debug, Default)]
pub(super) struct Phases {
    ended: VecDeque<Phase>,
    /// Since when a phase lasts; before the first gap, from the start.
    since: Option<u64>,
    /// When the gap before it began.
    gap: Option<u64>,
}

impl Phases {
    /// Whether there was a gap.
    pub(super) fn is_partial(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Large blocks are not traced from here on.
    pub(super) fn end(&mut self, at: MonotonicNs) {
        if self.ended.is_empty() || self.since.is_some() {
            self.push(at.0);
        }
        self.since = None;
        self.gap = Some(at.0);
    }

    /// They are again.
    pub(super) fn begin(&mut self, at: MonotonicNs) {
        self.since = Some(at.0);
    }

    /// It is now this time.
    pub(super) fn look(&mut self, now: MonotonicNs) {
        if let (Some(since), Some(_)) = (self.since, self.gap)
            && now.0.saturating_sub(since) >= LONG
        {
            self.push(now.0);
            self.gap = None;
            self.since = Some(now.0);
        }
    }

    fn push(&mut self, to: u64) {
        let from = self.since.unwrap_or(0);
        let begin = self.gap.unwrap_or(from);
        let gap = from.saturating_sub(begin);
        let before = match self.ended.back_mut() {
            Some(last) if last.from > 0 => {
                last.gaps = last.gaps.saturating_add(gap / 2);
                gap - gap / 2
            }
            _ => gap,
        };
        self.ended.push_back(Phase {
            from,
            to,
            on: to.saturating_sub(from).max(1),
            gaps: before,
        });
        if self.ended.len() > MAX_PHASES
            && let Some(second) = self.ended.remove(1)
            && let Some(third) = self.ended.get_mut(1)
        {
            third.from = second.from;
            third.on = third.on.saturating_add(second.on);
            third.gaps = third.gaps.saturating_add(second.gaps);
        }
    }

    /// How many blocks that are not seen one stands for that was allocated within `precision` after `born`, and is still there.
    pub(super) fn unseen(&self, born: u64, precision: u64, now: MonotonicNs) -> f64 {
        // Nothing is seen between phases: what may have been in the later of two was.
        let born = born.saturating_add(precision);
        let behind = self.ended.partition_point(|phase| phase.from <= born);
        let Some(phase) = behind.checked_sub(1).and_then(|index| self.ended.get(index)) else {
            return 0.0;
        };
        let is_open = self.since.is_some_and(|since| born >= since);
        let lasts = |since: u64| now.0.saturating_sub(since) >= phase.on.min(LONG);
        let is_proven = behind < self.ended.len() || self.since.is_some_and(lasts);
        if is_open || !is_proven || phase.to > now.0 {
            return 0.0;
        }
        phase.gaps as f64 / phase.on as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(milliseconds: u64) -> MonotonicNs {
        MonotonicNs(milliseconds * MS)
    }

    /// What blocks stand for that were born at these milliseconds, one millisecond exactly.
    #[track_caller]
    fn check(phases: &Phases, now: u64, expected: &[(u64, f64)]) {
        for &(born, unseen) in expected {
            let found = phases.unseen(born * MS, MS, at(now));
            assert!((found - unseen).abs() < 1e-6, "at {born}: {found}");
        }
    }

    #[test]
    fn without_a_gap_nothing_is_unseen() {
        let mut phases = Phases::default();
        phases.look(at(5000));
        check(&phases, 9000, &[(0, 0.0), (4000, 0.0)]);
        phases.end(at(6000));
        check(&phases, 9000, &[(0, 0.0), (5000, 0.0)]);
    }

    #[test]
    fn what_outlives_a_later_phase_stands_for_the_gaps_around_its_own() {
        let mut phases = Phases::default();
        phases.end(at(1000));
        phases.begin(at(2000));
        check(&phases, 2010, &[(500, 0.0), (2005, 0.0)]);
        phases.end(at(2100));
        // Nothing tells yet what was used again.
        check(&phases, 3000, &[(2005, 0.0)]);
        phases.begin(at(4000));
        check(&phases, 4050, &[(2005, 0.0), (4005, 0.0)]);
        check(&phases, 4150, &[(3999, 0.0), (2099, 10.0)]);
        check(
            &phases,
            4100,
            &[(500, 0.0), (2005, 10.0), (2000, 10.0), (1999, 10.0), (4005, 0.0)],
        );
        phases.end(at(4200));
        // The first gap, and half of the second one.
        check(&phases, 4200, &[(2099, 19.5), (4100, 0.0)]);
        // It goes on for long from here.
        phases.begin(at(8000));
        phases.look(at(8500));
        check(&phases, 8500, &[(4100, 4.75), (8100, 0.0)]);
        phases.look(at(11_800));
        check(&phases, 12_000, &[(4100, 14.25), (8100, 0.0), (11_900, 0.0)]);
        check(&phases, 12_800, &[(8100, 0.5), (11_900, 0.0)]);
        phases.look(at(20_000));
        phases.end(at(21_000));
        check(&phases, 30_000, &[(8100, 0.5), (19_000, 0.0)]);
    }

    #[test]
    fn many_phases_become_few_and_stand_for_the_same() {
        const START: u64 = 1_000_000;
        let mut phases = Phases::default();
        phases.end(at(START));
        for second in 1..2000 {
            phases.begin(at(START + second * 1000 - 100));
            phases.end(at(START + second * 1000));
        }
        assert!(phases.ended.len() <= MAX_PHASES);
        check(
            &phases,
            START + 2_000_000,
            // Half of a gap is behind those that have become one.
            &[
                (START - 50, 0.0),
                (START + 999_950, 9.0 + 450.0 / 174_500.0),
                (START + 1_998_000 - 50, 9.0),
                (START + 1_999_000 - 50, 0.0),
            ],
        );
    }
}
