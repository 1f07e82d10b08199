//! Holds what probes cost a process within a budget: takes the group of sites that costs most off, and puts it back when the
//! budget has recovered, so that its duty cycle follows from its own cost.
//!
//! The budget is a share of the processor time that a process uses, and a little of the time that goes by besides. Pure: it
//! is told the counters and says what to do; `owner` does it and puts the gaps on record. The cost of a hit is that of an
//! empty program, measured on this host, and the time that its program ran, which the kernel side measures where it
//! happens. Invariant: what a process is
//! charged in any time is at most the budget of that time and what was saved up before, and what a group costs until it is
//! taken off.

use std::time::Duration;

use rustc_hash::FxHashMap;
use tracer_ebpf::site::group;

use super::audit::later;
use crate::{
    bpf::LiveCounters,
    ingest::event::Hits,
    mode::Mode,
    plan::group_name,
    units::{BootNs, MonotonicNs, Pid},
};

/// Cost of a hit of an empty program until it is known, nanoseconds.
const UNKNOWN_COST: f64 = 1000.0;

/// A part of the budget, for groups that give way for each other. What is left of it is for what is not charged: page faults, which
/// thin themselves out, deaths of code objects, code that is in pages of its own where probes stand, and what the recorder takes
/// from the same processors; and for what a hit costs more than is charged in a program that goes through the kernel all the time,
/// half as much again (`cargo xtask bench peers --only service --option=--max-overhead=0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// For what is known from a sample, too.
    Sampled,
    /// For what heap mode rests on. A heap that grows fast costs more than its share for a while and less later, and what is not
    /// seen of it is not found again.
    Base,
}

impl Share {
    /// What the first does not need is for the second.
    const ALL: [Self; 2] = [Self::Base, Self::Sampled];

    /// Of each.
    const PART: f64 = 0.22;

    /// A process that uses less of the time than this has the budget of one that uses so much. A hundredth of nothing would be
    /// nothing, and such a process is not where a host's time goes; but there can be many of them.
    const fn least_use(self) -> f64 {
        match self {
            Self::Sampled => 0.02,
            Self::Base => 0.35,
        }
    }

    /// What a process begins with, and for how long it can be saved up; seconds of its processor time.
    const fn reserve(self) -> (f64, f64) {
        match self {
            Self::Sampled => (1.0, 24.0),
            Self::Base => (1.4, 5.5),
        }
    }

    /// For how long a process saves up, once it owes nothing, before a group is put back that was too dear: what it is then
    /// looked at for is what it earned in this time, however little it does.
    const fn rest(self) -> Duration {
        match self {
            Self::Sampled => Duration::from_secs(3),
            Self::Base => Duration::from_secs(1),
        }
    }
}

/// When to look again: while a process recovers, while all is cheap, and while something is not.
const RECOVERING: Duration = Duration::from_millis(100);
const CALM: Duration = Duration::from_millis(25);
const TENSE: Duration = Duration::from_millis(10);
/// A process counts as busy from this share of the time on.
const BUSY: f64 = 0.05;

/// Groups of sites that can be taken off: whose budget they live on, and their number.
const GROUPS: [Group; 4] = [
    Group::new(Share::Sampled, group::LARGE),
    Group::new(Share::Sampled, group::DOMAINS),
    BLOCKS,
    Group::new(Share::Base, group::POOLS),
];
/// Stands in heap mode for a moment now and then only, and is only counted there.
const BLOCKS: Group = Group::new(Share::Sampled, group::BLOCKS);

/// See [`GROUPS`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Group {
    share: Share,
    pub(super) number: u32,
    pub(super) name: &'static str,
}

impl Group {
    const fn new(share: Share, number: u32) -> Self {
        Self {
            share,
            number,
            name: group_name(number),
        }
    }

    fn of_number(number: u32) -> Self {
        let found = GROUPS.into_iter().find(|group| group.number == number);
        found.unwrap_or(BLOCKS)
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

/// What one process may spend on one share's groups.
#[derive(Clone, Copy, Debug)]
struct Purse {
    /// Seconds of its time that probes may still take, and the most that can be saved up.
    balance: f64,
    full: f64,
    /// What can be owed at most.
    debt: f64,
    /// It was overdrawn, and saves up until this time at least.
    recovers_until: MonotonicNs,
}

impl Purse {
    fn new(share: Share, budget: f64) -> Self {
        let (first, reserve) = share.reserve();
        let budget = budget * Share::PART;
        Self {
            balance: budget * first,
            full: budget * reserve,
            // What the start of a program costs before anybody looks is spent; it is not to keep a group off for a minute.
            debt: budget * first,
            recovers_until: MonotonicNs(0),
        }
    }

    /// Takes in and spends; what it has no room for.
    fn settle(&mut self, earned: f64, spent: f64, saved_up: MonotonicNs) -> f64 {
        let balance = self.balance + earned - spent;
        // What was overdrawn does not keep a group off for hours.
        self.balance = balance.clamp(-self.debt, self.full);
        if self.balance < 0.0 {
            self.recovers_until = saved_up;
        } else if self.recovers_until != MonotonicNs(0) {
            self.debt = self.full;
        }
        (balance - self.full).max(0.0)
    }
}

/// One process's account.
#[derive(Clone, Copy, Debug)]
struct Account {
    hits: [Hits; group::GROUPS],
    /// Processor time that it had used, and for which part of the time it ran since the look before.
    used: Option<Duration>,
    busy: f64,
    /// In the order of [`Share::ALL`].
    purses: [Purse; 2],
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
    /// What each busy process may still be charged at least, behind what a change of what stands costs it; `None` while one
    /// recovers. In the order of [`Share::ALL`].
    rooms: [Option<Duration>; 2],
    /// How long it took to put each group in place, the last time.
    changes: [Duration; group::GROUPS],
    /// What is sampled stands no more before this.
    rests_until: MonotonicNs,
    /// A group that lives on what windows live on was put back since the last window.
    has_put_back: bool,
    /// No process was charged more than its budget since the last time.
    is_calm: bool,
}

impl Governor {
    /// `percent`: the budget; `None` for none.
    pub(super) fn new(mode: Mode, percent: Option<f64>) -> Self {
        Self {
            mode,
            rooms: [percent.is_none().then_some(Duration::MAX); 2],
            budget: percent.map(|percent| percent / 100.0),
            hit_cost_ns: UNKNOWN_COST,
            accounts: FxHashMap::default(),
            off: Vec::new(),
            last: None,
            changes: [Duration::ZERO; group::GROUPS],
            rests_until: MonotonicNs(0),
            // The first window comes first.
            has_put_back: true,
            is_calm: false,
        }
    }

    /// What a hit of an empty program costs here.
    pub(super) fn set_hit_cost(&mut self, nanoseconds: f64) {
        self.hit_cost_ns = nanoseconds;
    }

    /// What hits took from a process, nanoseconds.
    pub(super) fn cost_ns(&self, hits: Hits) -> f64 {
        hits.cost_ns(self.hit_cost_ns)
    }

    /// For how long everything can be looked at once more, as far as it is sampled: at worst a process does nothing but to be
    /// looked at.
    pub(super) fn room(&self) -> Duration {
        let [_, sampled] = self.rooms;
        sampled.unwrap_or_default()
    }

    /// The most room there can be.
    pub(super) fn most_room(&self) -> Duration {
        let most = self.budget.map(|budget| {
            let full = Purse::new(Share::Sampled, budget).full;
            Duration::try_from_secs_f64(full - self.change(Share::Sampled, full)).unwrap_or_default()
        });
        most.unwrap_or(Duration::MAX)
    }

    /// Seconds that putting a group of this share in place can take. What takes longer than it can be saved up for is not put
    /// off for ever.
    fn change(&self, share: Share, full: f64) -> f64 {
        let groups = GROUPS.into_iter().filter(|group| group.share == share);
        let longest = groups.filter_map(|group| self.changes.get(group.place())).max();
        let longest = longest.copied().unwrap_or_default();
        longest.as_secs_f64().min(full / 2.0)
    }

    /// Whether it is the turn of a window, which lives on what groups that are off wait for.
    pub(super) fn is_windows_turn(&self) -> bool {
        self.has_put_back || self.off.iter().all(|(group, _)| group.share != Share::Sampled)
    }

    /// A window was opened.
    pub(super) fn opened(&mut self) {
        self.has_put_back = false;
    }

    /// What is sampled is not put in place before this.
    pub(super) fn rest_until(&mut self, time: MonotonicNs) {
        self.rests_until = time;
    }

    /// Whether it is too early for that.
    pub(super) fn rests(&self, time: MonotonicNs) -> bool {
        time < self.rests_until
    }

    /// Probes of a group were put in place, which took so long. A process that runs their image is held up for a tenth of that
    /// while it runs, and for several times as much when they are taken off, which mostly waits.
    pub(super) fn changed(&mut self, number: u32, took: Duration) {
        let group = Group::of_number(number);
        if let Some(change) = self.changes.get_mut(group.place()) {
            *change = took;
        }
        for account in self.accounts.values_mut() {
            for (share, purse) in Share::ALL.into_iter().zip(&mut account.purses) {
                if share == group.share {
                    purse.balance -= took.as_secs_f64() / 2.0 * account.busy;
                }
            }
        }
    }

    /// How soon to look again: how fast what stands can get too dear, as far as one knows.
    pub(super) fn pace(&self) -> Duration {
        let [_, sampled] = self.rooms;
        match (sampled, self.is_calm) {
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
        let (mut rooms, mut hottest, mut most) = ([Some(f64::MAX); 2], None, 0.0);
        let changes = Share::ALL.map(|share| self.change(share, Purse::new(share, budget).full));
        self.is_calm = true;
        for process in counters {
            let hits = std::array::from_fn(|group| process.counters.hits_of(group));
            let account = self
                .accounts
                .entry((process.pid, process.start))
                .or_insert(Account {
                    hits: [Hits::default(); group::GROUPS],
                    used: None,
                    busy: 1.0,
                    purses: Share::ALL.map(|share| Purse::new(share, budget)),
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
            account.busy = if elapsed > 0.0 {
                (busy / elapsed).min(1.0)
            } else {
                1.0
            };
            let cost = |group: Group| {
                let [now, known] =
                    [&hits, &account.hits].map(|hits| hits.get(group.place()).copied().unwrap_or_default());
                now.since(known).cost_ns(self.hit_cost_ns) / 1e9
            };
            let mut over = 0.0;
            for (share, purse) in Share::ALL.into_iter().zip(&mut account.purses) {
                let of_share = || GROUPS.into_iter().filter(move |group| group.share == share);
                let spent = of_share().map(cost).sum();
                let least = |share: Share| busy.max(elapsed * share.least_use());
                let earned = budget * Share::PART * least(share) + over;
                // Of what is there because a process does little, nothing is left over.
                over = purse
                    .settle(earned, spent, later(time, share.rest()))
                    .min(budget * Share::PART * least(Share::Sampled));
                self.is_calm &= spent <= earned;
                if purse.balance >= 0.0 || spent <= earned {
                    continue;
                }
                for group in of_share().filter(|group| can_go(self.mode, *group)) {
                    let is_on = self.off.iter().all(|(off, _)| *off != group);
                    if is_on && cost(group) > most {
                        (most, hottest) = (cost(group), Some(group));
                    }
                }
            }
            account.hits = hits;
            for ((room, purse), change) in rooms.iter_mut().zip(account.purses).zip(changes) {
                if time < purse.recovers_until {
                    *room = None;
                } else if account.busy >= BUSY {
                    *room = room.map(|room| room.min(purse.balance - change * account.busy));
                }
            }
        }
        self.rooms = rooms.map(|room| {
            let room = room?.max(0.0);
            Some(Duration::try_from_secs_f64(room).unwrap_or(Duration::MAX))
        });
        self.accounts.retain(|_, account| account.seen == time);
        if let Some(group) = hottest {
            self.off.push((group, time));
            return Some(Verdict::TakeOff(group));
        }
        let can_return = |group: Group| {
            let mut rooms = Share::ALL.into_iter().zip(self.rooms);
            let has_room = rooms.any(|(share, room)| share == group.share && room > Some(Duration::ZERO));
            has_room && (group.share == Share::Base || !is_held && !self.rests(time))
        };
        let back = self.off.iter().position(|(group, _)| can_return(*group));
        if let Some(place) = back {
            self.is_calm = false;
            let (group, _) = self.off.remove(place);
            self.has_put_back |= group.share == Share::Sampled;
            return Some(Verdict::PutBack(group));
        }
        None
    }
}

fn can_go(mode: Mode, group: Group) -> bool {
    group != BLOCKS || mode == Mode::Allocs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::event::Counters;

    const STEP_NS: u64 = 10_000_000;
    const STEPS_PER_SECOND: u64 = 1_000_000_000 / STEP_NS;

    /// A process that runs for a part of the time, and hits so often a second while a group is on; the share of what it has a
    /// budget of that this takes, and how often the group was taken off. A hit takes a microsecond, 300 ns of it its program.
    fn run(runs: f64, hits_per_second: f64, budget: Option<f64>, seconds: u64) -> (f64, u32) {
        let mut governor = Governor::new(Mode::Heap, budget);
        governor.set_hit_cost(340.0);
        let large = GROUPS[0];
        let (mut hits, mut on, mut taken) = (0.0, true, 0);
        for step in 0..seconds * STEPS_PER_SECOND {
            if on {
                hits += hits_per_second / STEPS_PER_SECOND as f64;
            }
            let used = Duration::from_nanos(step * STEP_NS).mul_f64(runs);
            let (mut hits_by_group, mut run_ns_by_group) = ([0; group::GROUPS], [0; group::GROUPS]);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a small positive number"
            )]
            let whole = hits as u64;
            hits_by_group[large.place()] = whole;
            run_ns_by_group[large.place()] = whole * 300;
            let counters = LiveCounters {
                pid: Pid(7),
                start: BootNs(1),
                counters: Counters {
                    hits_by_group,
                    run_ns_by_group,
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
        let time = seconds as f64 * runs.max(Share::Sampled.least_use());
        (hits * 1000.0 / 1e9 / time, taken)
    }

    #[test]
    fn what_is_cheap_stays_on() {
        let (share, taken) = run(1.0, 5_200.0, Some(2.0), 60);
        assert!(taken == 0 && share > 0.005, "{share} {taken}");
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
        let (share, taken) = run(0.1, 50_000.0, Some(2.0), 600);
        assert!(taken > 1 && share < 0.02, "{share} {taken}");
    }

    /// A process that hits large blocks and pools a hundred thousand times a second while they stand, where putting a group in
    /// place takes so long; how often each was put back in ten seconds, and for how many steps each stood after that.
    fn put_back(change: Duration) -> [(u32, u32); 2] {
        let mut governor = Governor::new(Mode::Heap, Some(2.0));
        governor.set_hit_cost(1000.0);
        let groups = [GROUPS[0], GROUPS[3]];
        let (mut hits, mut on, mut backs) = ([0; group::GROUPS], [true; 2], [(0, 0); 2]);
        for step in 0..10 * STEPS_PER_SECOND {
            for ((group, _), (times, steps)) in
                groups.iter().zip(on).zip(&mut backs).filter(|((_, on), _)| *on)
            {
                hits[group.place()] += 100_000 / STEPS_PER_SECOND;
                *steps += u32::from(*times > 0);
            }
            let counters = LiveCounters {
                pid: Pid(7),
                start: BootNs(1),
                counters: Counters {
                    hits_by_group: hits,
                    ..Counters::default()
                },
            };
            let used = Duration::from_nanos(step * STEP_NS);
            let verdict = governor.judge(MonotonicNs(step * STEP_NS), &[counters], false, |_| Some(used));
            let place = |group: Group| usize::from(group == groups[1]);
            match verdict {
                Some(Verdict::TakeOff(group)) => on[place(group)] = false,
                Some(Verdict::PutBack(group)) => {
                    governor.changed(group.number, change);
                    on[place(group)] = true;
                    backs[place(group)].0 += 1;
                }
                None => {}
            }
        }
        backs
    }

    #[test]
    fn what_a_change_costs_is_saved_up_first_and_by_its_own_share() {
        let [large, pools] = put_back(Duration::ZERO);
        assert!(
            (2..=4).contains(&large.0) && (6..=10).contains(&pools.0),
            "{large:?} {pools:?}"
        );
        // A change costs a busy process five milliseconds, of which each share has five or six a second.
        let [large, pools] = put_back(Duration::from_millis(10));
        assert!(
            (2..=4).contains(&large.0) && (3..=6).contains(&pools.0),
            "{large:?} {pools:?}"
        );
        for (times, steps) in [large, pools] {
            assert!(steps >= times * 4, "{times} looks of {steps} steps");
        }
        // More than can be saved up: seldom, but not never.
        let [large, pools] = put_back(Duration::from_secs(1));
        assert!(
            (1..=2).contains(&large.0) && (1..=2).contains(&pools.0),
            "{large:?} {pools:?}"
        );
    }

    #[test]
    fn there_is_room_for_a_window_unless_the_budget_is_too_small() {
        let ms = Duration::from_millis;
        let mut governor = Governor::new(Mode::Heap, Some(2.0));
        governor.changed(group::BLOCKS, ms(1000));
        assert!((ms(40)..ms(60)).contains(&governor.most_room()));
        assert!(Governor::new(Mode::Heap, Some(0.02)).most_room() < ms(5));
        assert_eq!(Governor::new(Mode::Heap, None).most_room(), Duration::MAX);
    }

    #[test]
    fn what_is_dear_to_put_in_place_rests_longer() {
        let mut governor = Governor::new(Mode::Heap, Some(2.0));
        governor.rest_until(MonotonicNs(5));
        assert!(governor.rests(MonotonicNs(4)) && !governor.rests(MonotonicNs(5)));
    }

    #[test]
    fn what_the_start_of_a_program_costs_is_forgiven_once() {
        let mut purse = Purse::new(Share::Sampled, 0.02);
        let mut owes = |earned, spent| {
            purse.settle(earned, spent, MonotonicNs(1));
            -purse.balance
        };
        // A second of its budget, and not the seven that it took.
        assert!((owes(0.0, 0.03) - 0.02 * Share::PART).abs() < 1e-6);
        assert!(owes(0.005, 0.0) < 0.0);
        assert!(owes(0.0, 0.03) > 0.029);
    }

    #[test]
    fn a_short_run_is_not_spent_on_what_was_saved_for_a_long_one() {
        let (share, taken) = run(1.0, 500_000.0, Some(2.0), 1);
        assert!(taken > 0 && share < 0.02, "{share} {taken}");
    }
}
