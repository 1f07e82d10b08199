//! Holds what probes cost a process within a budget: takes the group of sites that costs most off, and puts it back when the
//! budget has recovered, so that its duty cycle follows from its own cost.
//!
//! The budget is a share of the processor time that a process uses, and a little of the time that goes by besides. Pure: it
//! is told the counters and says what to do; `owner` does it and puts the gaps on record. The cost of a hit is that of an
//! empty program, measured on this host, times a factor for what the programs of a group do. Invariant: what a process is
//! charged in any time is at most the budget of that time and of [`RESERVE`] besides, and what a group costs until it is
//! taken off; groups that are never taken off are charged, and not bounded.

use std::time::Duration;

use rustc_hash::FxHashMap;
use tracer_ebpf::site::group;

use crate::{
    bpf::LiveCounters,
    mode::Mode,
    units::{BootNs, MonotonicNs, Pid},
};

/// Cost of a hit until it is known, nanoseconds.
const UNKNOWN_COST: f64 = 1000.0;
/// The part of the budget that is planned with. The rest is for what is not charged: page faults that are not reported, code
/// that is in pages of its own where probes stand, and what the recorder takes from the same processors.
const AIM: f64 = 0.4;
/// For how long a process's budget can be saved up, seconds of its processor time.
const RESERVE: f64 = 10.0;
/// What a process begins with, in the same way.
const FIRST: f64 = 0.1;
/// What must have been saved up before a group is put back that was too dear, as a part of [`RESERVE`].
const ENOUGH: f64 = 0.5;
/// A process that uses less of the time than this has the budget of one that uses so much. A hundredth of nothing would be
/// nothing, and such a process is not where a host's time goes.
const LEAST_USE: f64 = 0.02;
/// When to look again: while a process recovers, while all is cheap, and while something is not.
const RECOVERING: Duration = Duration::from_millis(100);
const CALM: Duration = Duration::from_millis(25);
const TENSE: Duration = Duration::from_millis(10);
/// A process counts as busy from this share of the time on.
const BUSY: f64 = 0.05;

/// A group of sites that can be taken off: its number, what it is called, and how many times an empty program its hits
/// cost. The factors are those of `cargo xtask bench hit` (an allocation 1.9, a free 1.2), of faults without the trap.
const GROUPS: [Group; 6] = [
    Group::new(group::LARGE, "large blocks", 1.6),
    Group::new(group::DOMAINS, "blocks of extensions", 1.6),
    BLOCKS,
    Group::new(group::POOLS, "acquisitions of pools", 1.9),
    FAULTS,
    CODES,
];
/// Stands in heap mode for a moment now and then only, and is only counted there.
const BLOCKS: Group = Group::new(group::BLOCKS, "small blocks", 1.6);
/// Thins itself out, and is only counted.
const FAULTS: Group = Group::new(group::FAULTS, "page faults", 1.2);

/// Is never taken off, and is only counted.
const CODES: Group = Group::new(group::CODES, "deaths of code objects", 1.2);

/// What heap mode rests on has an account of its own, which is larger: all others give way first. A heap that grows fast costs
/// more than its share for a while and less later, and what is not seen of it is not found again.
const LAST: u32 = group::POOLS;
/// Its part of the budget, what a process begins with (seconds of its processor time), and the least use.
const LAST_AIM: f64 = 1.0;
const LAST_FIRST: f64 = 2.5;
const LAST_LEAST_USE: f64 = 0.25;

/// See [`GROUPS`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Group {
    pub(super) number: u32,
    pub(super) name: &'static str,
    factor: f64,
}

impl Group {
    const fn new(number: u32, name: &'static str, factor: f64) -> Self {
        Self { number, name, factor }
    }

    fn place(self) -> usize {
        usize::try_from(self.number).unwrap_or_default()
    }
}

/// What is to be done with a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    TakeOff(Group),
    PutBack(Group),
}

/// One process's account.
#[derive(Clone, Copy, Debug)]
struct Account {
    hits: [u64; group::GROUPS],
    /// Processor time that it had used.
    used: Option<Duration>,
    /// Seconds of its time that probes may still take.
    balance: f64,
    /// The same of [`LAST`] alone.
    last: f64,
    /// Whether it was overdrawn, and has not saved up enough since; each of the two.
    recovers: bool,
    last_recovers: bool,
    seen: MonotonicNs,
}

/// The governor of a recording.
pub(super) struct Governor {
    mode: Mode,
    /// Share of a process's time; `None` for no bound.
    budget: Option<f64>,
    hit_cost_ns: f64,
    accounts: FxHashMap<(Pid, BootNs), Account>,
    /// Groups that are off, since when.
    off: Vec<(Group, MonotonicNs)>,
    last: Option<MonotonicNs>,
    /// What each busy process may still be charged at least; `None` while one recovers.
    room: Option<Duration>,
    /// How long the last change of what stands took.
    change: Duration,
    /// No process was charged more than its budget since the last time.
    is_calm: bool,
}

impl Governor {
    /// `percent`: the budget; `None` for none.
    pub(super) fn new(mode: Mode, percent: Option<f64>) -> Self {
        Self {
            mode,
            room: percent.is_none().then_some(Duration::MAX),
            budget: percent.map(|percent| percent / 100.0 * AIM),
            hit_cost_ns: UNKNOWN_COST,
            accounts: FxHashMap::default(),
            off: Vec::new(),
            last: None,
            change: Duration::ZERO,
            is_calm: false,
        }
    }

    /// What a hit of an empty program costs here.
    pub(super) fn set_hit_cost(&mut self, nanoseconds: f64) {
        self.hit_cost_ns = nanoseconds;
    }

    /// For how long everything can be looked at once more: at worst a process does nothing but to be looked at, and while
    /// probes are put in place and taken off, waits.
    pub(super) fn room(&self) -> Duration {
        let room = self.room.unwrap_or_default();
        room.saturating_sub(self.change)
    }

    /// Probes were put in place, or taken off, which took so long: every process may have waited.
    pub(super) fn changed(&mut self, took: Duration) {
        self.change = took;
        for account in self.accounts.values_mut() {
            account.balance -= took.as_secs_f64();
        }
    }

    /// How soon to look again: how fast what stands can get too dear, as far as one knows.
    pub(super) fn pace(&self) -> Duration {
        match (self.room, self.is_calm) {
            (None, _) => RECOVERING,
            (Some(_), true) => CALM,
            (Some(_), false) => TENSE,
        }
    }

    /// Groups that are off, and since when.
    pub(super) fn off(&self) -> &[(Group, MonotonicNs)] {
        &self.off
    }

    /// Takes the counters in, as they were at a time; what is to be done, one thing at most. `is_held`: nothing is to be put
    /// back now. `used`: the processor time that a process has used so far.
    pub(super) fn judge(
        &mut self,
        time: MonotonicNs,
        counters: &[LiveCounters],
        is_held: bool,
        used: impl Fn(Pid) -> Option<Duration>,
    ) -> Option<Verdict> {
        let budget = self.budget?;
        let before = self.last.replace(time).unwrap_or(time);
        let elapsed = time.0.saturating_sub(before.0) as f64 / 1e9;
        let last_budget = budget / AIM * LAST_AIM;
        let (full, last_full) = (budget * RESERVE, last_budget * RESERVE);
        let mut last_recovers = false;
        let (mut room, mut hottest, mut most) = (Some(f64::MAX), None, 0.0);
        self.is_calm = true;
        for process in counters {
            let hits = process.counters.hits_by_group;
            let account = self
                .accounts
                .entry((process.pid, process.start))
                .or_insert(Account {
                    hits: [0; group::GROUPS],
                    used: None,
                    balance: budget * FIRST,
                    last: last_budget * LAST_FIRST,
                    recovers: false,
                    last_recovers: false,
                    seen: time,
                });
            account.seen = time;
            let now = used(process.pid);
            let busy = match (now, account.used) {
                (Some(now), Some(known)) => now.saturating_sub(known).as_secs_f64(),
                // Not known: as if it did nothing else.
                _ => elapsed,
            };
            account.used = now;
            account.balance = (account.balance + budget * busy.max(elapsed * LEAST_USE)).min(full);
            let last_earned = last_budget * busy.max(elapsed * LAST_LEAST_USE);
            account.last = (account.last + last_earned).min(last_full);
            let (before, mut dearest) = (account.balance, None);
            let mut most_here = 0.0;
            for group in GROUPS {
                let [now, known] =
                    [&hits, &account.hits].map(|hits| hits.get(group.place()).copied().unwrap_or(0));
                let cost = now.saturating_sub(known) as f64 * self.hit_cost_ns * group.factor / 1e9;
                account.balance -= cost;
                let is_on = self.off.iter().all(|(off, _)| *off != group);
                let is_empty = if group.number == LAST {
                    account.last -= cost;
                    account.last < 0.0 && cost > last_earned
                } else {
                    account.balance < 0.0
                };
                if is_on && can_go(self.mode, group) && is_empty && cost > most_here {
                    (most_here, dearest) = (cost, Some(group));
                }
            }
            let spent = before - account.balance;
            // What heap mode rests on is charged here too, and does not leave the others without for hours.
            account.balance = account.balance.max(-full);
            // What is left may be cheap enough to recover with.
            let is_too_dear = spent > budget * busy.max(elapsed * LEAST_USE);
            self.is_calm &= !is_too_dear;
            if is_too_dear && most_here > most {
                (most, hottest) = (most_here, dearest);
            }
            let still = |recovers: bool, balance: f64, full: f64| {
                balance < 0.0 || recovers && balance < full * ENOUGH
            };
            account.last_recovers = still(account.last_recovers, account.last, last_full);
            last_recovers |= account.last_recovers;
            account.recovers = still(account.recovers, account.balance, full);
            account.hits = hits;
            if account.recovers {
                room = None;
            } else if busy >= elapsed * BUSY {
                room = room.map(|room| room.min(account.balance));
            }
        }
        self.room = room.map(|room| Duration::try_from_secs_f64(room).unwrap_or(Duration::MAX));
        self.accounts.retain(|_, account| account.seen == time);
        if let Some(group) = hottest {
            self.off.push((group, time));
            return Some(Verdict::TakeOff(group));
        }
        let can_return = |group: Group| match group.number {
            LAST => !last_recovers,
            _ => self.room.is_some() && !is_held,
        };
        let back = self.off.iter().position(|(group, _)| can_return(*group));
        if let Some(place) = back {
            self.is_calm = false;
            return Some(Verdict::PutBack(self.off.remove(place).0));
        }
        None
    }
}

fn can_go(mode: Mode, group: Group) -> bool {
    group != FAULTS && group != CODES && (group != BLOCKS || mode == Mode::Allocs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::event::Counters;

    const STEP_NS: u64 = 10_000_000;
    const STEPS_PER_SECOND: u64 = 1_000_000_000 / STEP_NS;

    /// A process that runs for a part of the time, and hits so often a second while a group is on; the share of its
    /// processor time that this takes, and how often the group was taken off.
    fn run(runs: f64, hits_per_second: f64, budget: Option<f64>, seconds: u64) -> (f64, u32) {
        let mut governor = Governor::new(Mode::Heap, budget);
        governor.set_hit_cost(600.0);
        let large = GROUPS[0];
        let (mut hits, mut on, mut taken) = (0.0, true, 0);
        for step in 0..seconds * STEPS_PER_SECOND {
            if on {
                hits += hits_per_second / STEPS_PER_SECOND as f64;
            }
            let used = Duration::from_nanos(step * STEP_NS).mul_f64(runs);
            let mut hits_by_group = [0; group::GROUPS];
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a small positive number"
            )]
            let whole = hits as u64;
            hits_by_group[large.place()] = whole;
            let counters = LiveCounters {
                pid: Pid(7),
                start: BootNs(1),
                counters: Counters {
                    hits_by_group,
                    ..Counters::default()
                },
            };
            match governor.judge(MonotonicNs(step * STEP_NS), &[counters], false, |_| Some(used)) {
                Some(Verdict::TakeOff(group)) => {
                    assert_eq!(group, large);
                    (on, taken) = (false, taken + 1);
                }
                Some(Verdict::PutBack(_)) => on = true,
                None => {}
            }
        }
        (hits * 600.0 * large.factor / 1e9 / (seconds as f64 * runs), taken)
    }

    #[test]
    fn what_is_cheap_stays_on() {
        let (share, taken) = run(1.0, 8_000.0, Some(2.0), 60);
        assert!(taken == 0 && share > 0.007, "{share} {taken}");
        assert_eq!(run(1.0, 1e6, None, 60).1, 0);
        // Much for what it does, and little for the host.
        assert_eq!(run(0.001, 100.0, Some(2.0), 60).1, 0);
    }

    #[test]
    fn what_is_dear_is_held_within_the_budget() {
        for rate in [50_000.0, 200_000.0, 1_000_000.0] {
            let (share, taken) = run(1.0, rate, Some(2.0), 120);
            assert!(taken > 1, "{rate}: {taken}");
            assert!(share < 0.02, "{rate}: {share}");
        }
        let (share, taken) = run(0.1, 20_000.0, Some(2.0), 600);
        assert!(taken > 1 && share < 0.02, "{share} {taken}");
    }

    #[test]
    fn a_short_run_is_not_spent_on_what_was_saved_for_a_long_one() {
        let (share, taken) = run(1.0, 500_000.0, Some(2.0), 1);
        assert!(taken > 0 && share < 0.02, "{share} {taken}");
    }
}
