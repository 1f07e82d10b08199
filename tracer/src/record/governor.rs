//! Holds what probes cost a process within a budget: takes the group of sites that costs most off, and puts it back when the
//! budget has recovered, so that its duty cycle follows from its own cost.
//!
//! Pure: it is told the counters and says what to do; `owner` does it and puts the gaps on record. The cost of a hit is that
//! of an empty program, measured on this host, times a factor for what the programs of a group do. Invariant: what a process
//! is charged in any time is at most the budget of that time and of [`RESERVE`] besides, and what a group costs until it is
//! taken off; groups that are never taken off are charged, and not bounded.

use rustc_hash::FxHashMap;
use tracer_ebpf::site::group;

use crate::{
    bpf::LiveCounters,
    mode::Mode,
    units::{BootNs, MonotonicNs, Pid},
};

/// Cost of a hit until it is known, nanoseconds.
const UNKNOWN_COST: f64 = 1000.0;
/// For how long a process's budget can be saved up, seconds.
const RESERVE: f64 = 20.0;
/// What must have been saved up before a group is put back, as a part of that.
const ENOUGH: f64 = 0.25;

/// A group of sites that can be taken off: its number, what it is called, and how many times an empty program its hits
/// cost. The factors are those of `cargo xtask bench hit` (an allocation 1.9, a free 1.2), of faults without the trap.
const GROUPS: [Group; 5] = [
    Group::new(group::LARGE, "large blocks", 1.6),
    Group::new(group::DOMAINS, "blocks of extensions", 1.6),
    BLOCKS,
    Group::new(group::POOLS, "acquisitions of pools", 2.0),
    FAULTS,
];
/// Stands in heap mode for a moment now and then only, and is only counted there.
const BLOCKS: Group = Group::new(group::BLOCKS, "small blocks", 1.6);
/// Thins itself out, and is only counted.
const FAULTS: Group = Group::new(group::FAULTS, "page faults", 1.2);

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
    /// Seconds of its time that probes may still take.
    balance: f64,
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
    has_room: bool,
}

impl Governor {
    /// `percent`: the budget; `None` for none.
    pub(super) fn new(mode: Mode, percent: Option<f64>) -> Self {
        Self {
            mode,
            has_room: true,
            budget: percent.map(|percent| percent / 100.0),
            hit_cost_ns: UNKNOWN_COST,
            accounts: FxHashMap::default(),
            off: Vec::new(),
            last: None,
        }
    }

    /// What a hit of an empty program costs here.
    pub(super) fn set_hit_cost(&mut self, nanoseconds: f64) {
        self.hit_cost_ns = nanoseconds;
    }

    /// Whether there is room in the budget for something more.
    pub(super) fn has_room(&self) -> bool {
        self.has_room
    }

    /// Groups that are off, and since when.
    pub(super) fn off(&self) -> &[(Group, MonotonicNs)] {
        &self.off
    }

    /// Takes the counters in, as they were at a time; what is to be done, one thing at most.
    pub(super) fn judge(&mut self, time: MonotonicNs, counters: &[LiveCounters]) -> Option<Verdict> {
        let budget = self.budget?;
        let before = self.last.replace(time).unwrap_or(time);
        let elapsed = time.0.saturating_sub(before.0) as f64 / 1e9;
        let (full, mut least, mut hottest) = (budget * RESERVE, budget * RESERVE, None);
        let mut most = 0.0;
        for process in counters {
            let hits = process.counters.hits_by_group;
            let account = self
                .accounts
                .entry((process.pid, process.start))
                .or_insert(Account {
                    hits: [0; group::GROUPS],
                    balance: full,
                    seen: time,
                });
            account.seen = time;
            account.balance = (account.balance + budget * elapsed).min(full);
            for group in GROUPS {
                let [now, known] =
                    [&hits, &account.hits].map(|hits| hits.get(group.place()).copied().unwrap_or(0));
                let cost = now.saturating_sub(known) as f64 * self.hit_cost_ns * group.factor / 1e9;
                account.balance -= cost;
                let can_go = can_go(self.mode, group) && self.off.iter().all(|(off, _)| *off != group);
                if can_go && account.balance < 0.0 && cost > most {
                    (most, hottest) = (cost, Some(group));
                }
            }
            account.hits = hits;
            least = least.min(account.balance);
        }
        self.has_room = least >= full * ENOUGH;
        self.accounts.retain(|_, account| account.seen == time);
        if let Some(group) = hottest {
            self.off.push((group, time));
            return Some(Verdict::TakeOff(group));
        }
        if self.has_room && !self.off.is_empty() {
            return Some(Verdict::PutBack(self.off.remove(0).0));
        }
        None
    }
}

fn can_go(mode: Mode, group: Group) -> bool {
    group != FAULTS && (group != BLOCKS || mode == Mode::Allocs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::event::Counters;

    const STEP_NS: u64 = 250_000_000;

    /// A process that hits so often a second while a group is on; the share of its time that this takes, and how often the
    /// group was taken off.
    fn run(hits_per_second: f64, budget: Option<f64>, seconds: u64) -> (f64, u32) {
        let mut governor = Governor::new(Mode::Heap, budget);
        governor.set_hit_cost(600.0);
        let large = GROUPS[0];
        let (mut hits, mut on, mut taken) = (0.0, true, 0);
        for step in 0..seconds * 4 {
            if on {
                hits += hits_per_second / 4.0;
            }
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
            match governor.judge(MonotonicNs(step * STEP_NS), &[counters]) {
                Some(Verdict::TakeOff(group)) => {
                    assert_eq!(group, large);
                    (on, taken) = (false, taken + 1);
                }
                Some(Verdict::PutBack(_)) => on = true,
                None => {}
            }
        }
        (hits * 600.0 * large.factor / 1e9 / seconds as f64, taken)
    }

    #[test]
    fn what_is_cheap_stays_on() {
        let (share, taken) = run(10_000.0, Some(2.0), 60);
        assert!(taken == 0 && share > 0.009, "{share} {taken}");
        assert_eq!(run(1e6, None, 60).1, 0);
    }

    #[test]
    fn what_is_dear_is_held_within_the_budget() {
        for rate in [50_000.0, 200_000.0, 1_000_000.0, 3_000_000.0] {
            let (share, taken) = run(rate, Some(2.0), 120);
            assert!(taken > 1, "{rate}: {taken}");
            assert!(share < 0.04, "{rate}: {share}");
        }
    }
}
