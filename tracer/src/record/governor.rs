//! Holds what probes cost a process within a budget: takes the group of sites that costs most off, and puts it back when the
//! budget has recovered, so that its duty cycle follows from its own cost.
//!
//! The budget is a share of the processor time that a process uses, and a little of the time that goes by besides. Pure: it
//! is told the counters and says what to do; `owner` does it and puts the gaps on record. The cost of a hit is that of an
//! empty program, measured on this host, and the time that its program ran, which the kernel side measures where it
//! happens. Invariant: what a process is
//! charged in any time is at most the budget of that time and what was saved up before, and what a group costs until it is
//! taken off.

mod purse;
mod share;

use std::time::Duration;

use rustc_hash::FxHashMap;
use tracer_ebpf::site::group;

pub(super) use self::share::Group;
use self::{
    purse::Purse,
    share::{BLOCKS, GROUPS, Share},
};
use super::audit::later;
use crate::{
    bpf::LiveCounters,
    ingest::event::Hits,
    mode::Mode,
    units::{BootNs, MonotonicNs, Pid},
};

/// Cost of a hit of an empty program until it is known, nanoseconds.
const UNKNOWN_COST: f64 = 1000.0;

/// When to look again: while a process recovers, while all is cheap, and while something is not.
const RECOVERING: Duration = Duration::from_millis(100);
const CALM: Duration = Duration::from_millis(25);
const TENSE: Duration = Duration::from_millis(10);
/// A process counts as busy from this share of the time on.
const BUSY: f64 = 0.05;

/// What is to be done with a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    TakeOff(Group),
    PutBack(Group),
}

/// One process's account.
#[derive(Clone, Copy, Debug)]
struct Account {
    hits: [Hits; group::GROUPS],
    /// Processor time that it had used, and for which part of the time it ran since the look before.
    used: Option<Duration>,
    busy: f64,
    /// In the order of [`Share::ALL`].
    purses: [Purse; Share::COUNT],
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
    rooms: [Option<Duration>; Share::COUNT],
    /// How long it took to put each group in place, the last time.
    changes: [Duration; group::GROUPS],
    /// Each group is not put in place before this.
    rests_until: [MonotonicNs; group::GROUPS],
    /// No process was charged more than its budget since the last time.
    is_calm: bool,
    /// How long the first purse lasts whose groups cost more than it earns, as far as its share can be foreseen.
    lasts: Duration,
}

impl Governor {
    /// `percent`: the budget; `None` for none.
    pub(super) fn new(mode: Mode, percent: Option<f64>) -> Self {
        Self {
            mode,
            rooms: [percent.is_none().then_some(Duration::MAX); Share::COUNT],
            budget: percent.map(|percent| percent / 100.0),
            hit_cost_ns: UNKNOWN_COST,
            accounts: FxHashMap::default(),
            off: Vec::new(),
            last: None,
            changes: [Duration::ZERO; group::GROUPS],
            rests_until: [MonotonicNs(0); group::GROUPS],
            is_calm: false,
            lasts: Duration::MAX,
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

    /// For how long every allocation can be looked at once more: at worst a process does nothing but to be looked at.
    pub(super) fn room(&self) -> Duration {
        self.room_of(Share::Windows).unwrap_or_default()
    }

    /// `None` while a process recovers.
    fn room_of(&self, share: Share) -> Option<Duration> {
        let mut rooms = Share::ALL.into_iter().zip(self.rooms);
        rooms.find(|(of, _)| *of == share).and_then(|(_, room)| room)
    }

    /// The most room there can be.
    pub(super) fn most_room(&self) -> Duration {
        let most = self.budget.map(|budget| {
            let full = Purse::new(Share::Windows, budget).full;
            Duration::try_from_secs_f64(full - self.change(Share::Windows, full)).unwrap_or_default()
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

    /// A group is not put in place before this.
    pub(super) fn rest_until(&mut self, number: u32, time: MonotonicNs) {
        if let Some(rests) = self.rests_until.get_mut(Group::of_number(number).place()) {
            *rests = (*rests).max(time);
        }
    }

    /// Whether it is too early for that.
    pub(super) fn rests(&self, number: u32, time: MonotonicNs) -> bool {
        let until = self.rests_until.get(Group::of_number(number).place());
        until.is_some_and(|until| time < *until)
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

    /// How soon to look again: how fast what stands can get too dear, as far as one knows. Looks are `apart` at least, but for those that
    /// end what costs so much that it would be overdrawn by then.
    pub(super) fn pace(&self, apart: Duration) -> Duration {
        let pace = match (self.room_of(Share::Large), self.is_calm) {
            (None, _) => RECOVERING,
            (Some(_), true) => CALM,
            (Some(_), false) => TENSE,
        };
        pace.max(apart).min(self.lasts.max(Share::Large.least_look()))
    }

    /// Groups that are off, and since when.
    pub(super) fn off(&self) -> &[(Group, MonotonicNs)] {
        &self.off
    }

    /// Takes the counters in, as they were at a time; what is to be done, one thing at most. `used`: the processor time that a
    /// process has used so far.
    pub(super) fn judge(
        &mut self,
        time: MonotonicNs,
        counters: &[LiveCounters],
        used: impl Fn(Pid) -> Option<Duration>,
    ) -> Option<Verdict> {
        let budget = self.budget?;
        let before = self.last.replace(time).unwrap_or(time);
        let elapsed = seconds(before, time);
        let (mut rooms, mut hottest, mut most) = ([Some(f64::MAX); Share::COUNT], None, 0.0);
        let changes = Share::ALL.map(|share| self.change(share, Purse::new(share, budget).full));
        (self.is_calm, self.lasts) = (true, Duration::MAX);
        let mut lasts = Duration::MAX;
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
            // Of one that is new it is not known for how long.
            let known = seconds(account.seen, time);
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
                if of_share().all(|group| self.off.iter().all(|(off, _)| *off != group)) {
                    purse.stood(known, spent);
                }
                let least = |share: Share| busy.max(elapsed * share.least_use());
                let earned = budget * share.part() * least(share) + over;
                // Of what is there because a process does little, nothing is left over.
                over = purse
                    .settle(earned, spent, later(time, share.rest()))
                    .min(over + budget * share.part() * least(Share::Windows));
                self.is_calm &= spent <= earned;
                if spent <= earned {
                    continue;
                }
                if purse.balance >= purse.cost_of(share.least_look()) {
                    if share == Share::Large {
                        self.lasts = self.lasts.min(purse.lasts(0.0));
                    }
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
            let shares = Share::ALL.into_iter().zip(account.purses);
            for ((room, change), (share, purse)) in rooms.iter_mut().zip(changes).zip(shares) {
                if time < purse.recovers_until {
                    *room = None;
                } else if account.busy >= BUSY {
                    let look = purse.cost_of(share.least_look()).min(purse.full / 2.0);
                    *room = room.map(|room| room.min(purse.balance - change * account.busy - look));
                }
                if share == Share::Large {
                    lasts = lasts.min(purse.lasts(change * account.busy));
                }
            }
        }
        self.rooms = rooms.map(|room| {
            let room = room?.max(0.0);
            Some(Duration::try_from_secs_f64(room).unwrap_or(Duration::MAX))
        });
        self.accounts.retain(|_, account| account.seen == time);
        self.decide(time, hottest, lasts)
    }

    /// Takes the hottest group off, or puts one back that can be paid for again: if it is of large blocks, for as long as it `lasts`.
    fn decide(&mut self, time: MonotonicNs, hottest: Option<Group>, lasts: Duration) -> Option<Verdict> {
        if let Some(group) = hottest {
            self.off.push((group, time));
            self.rest_until(group.number, later(time, group.share.rest()));
            return Some(Verdict::TakeOff(group));
        }
        let can_return = |group: Group| {
            self.room_of(group.share) > Some(Duration::ZERO) && !self.rests(group.number, time)
        };
        let back = self.off.iter().position(|(group, _)| can_return(*group));
        if let Some(place) = back {
            self.is_calm = false;
            let (group, _) = self.off.remove(place);
            if group.share == Share::Large {
                self.lasts = lasts;
            }
            return Some(Verdict::PutBack(group));
        }
        None
    }
}

/// Seconds from then to then.
fn seconds(from: MonotonicNs, to: MonotonicNs) -> f64 {
    to.0.saturating_sub(from.0) as f64 / 1e9
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
            match governor.judge(MonotonicNs(step * STEP_NS), &[counters], |_| Some(used)) {
                Some(Verdict::TakeOff(group)) => {
                    assert_eq!(group, large);
                    (on, taken) = (false, taken + 1);
                }
                Some(Verdict::PutBack(_)) => on = true,
                None => {}
            }
        }
        let time = seconds as f64 * runs.max(Share::Windows.least_use());
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
            let verdict = governor.judge(MonotonicNs(step * STEP_NS), &[counters], |_| Some(used));
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
    fn what_ends_large_blocks_looks_in_time_is_known_from_the_last_one() {
        let ms = Duration::from_millis;
        let mut governor = Governor::new(Mode::Heap, Some(2.0));
        governor.set_hit_cost(1000.0);
        let large = GROUPS[0];
        // Nearly half of the time of a process that always works, while it stands.
        let (mut time, mut hits, mut stands) = (ms(0), 0, true);
        let (mut looks, mut look) = (Vec::new(), Duration::ZERO);
        while time < ms(60_000) {
            let mut hits_by_group = [0; group::GROUPS];
            hits_by_group[large.place()] = hits;
            let counters = LiveCounters {
                pid: Pid(7),
                start: BootNs(1),
                counters: Counters {
                    hits_by_group,
                    ..Counters::default()
                },
            };
            let at = later(MonotonicNs(0), time);
            match governor.judge(at, &[counters], |_| Some(time)) {
                Some(Verdict::TakeOff(_)) => {
                    looks.push(look);
                    (stands, look) = (false, Duration::ZERO);
                }
                Some(Verdict::PutBack(_)) => stands = true,
                None => {}
            }
            let pace = governor.pace(ms(250));
            if stands {
                look += pace;
                hits += u64::try_from(pace.as_micros()).unwrap_or(0) * 2 / 5;
            }
            time += pace;
        }
        assert!(looks.len() > 8, "{looks:?}");
        let later = looks.get(1..).unwrap_or_default();
        assert!(
            later.iter().all(|look| (ms(20)..ms(60)).contains(look)),
            "{looks:?}"
        );
        let cost = Duration::from_micros(hits).as_secs_f64() / time.as_secs_f64();
        assert!((0.003..0.02).contains(&cost), "{cost}");
    }

    #[test]
    fn what_is_dear_to_put_in_place_rests_longer() {
        let mut governor = Governor::new(Mode::Heap, Some(2.0));
        governor.rest_until(group::LARGE, MonotonicNs(5));
        assert!(
            governor.rests(group::LARGE, MonotonicNs(4)) && !governor.rests(group::LARGE, MonotonicNs(5))
        );
        assert!(!governor.rests(group::BLOCKS, MonotonicNs(4)));
    }

    #[test]
    fn what_the_start_of_a_program_costs_is_forgiven_once() {
        let mut purse = Purse::new(Share::Windows, 0.02);
        let mut owes = |earned, spent| {
            purse.settle(earned, spent, MonotonicNs(1));
            -purse.balance
        };
        // Half a second of its budget, and not the seven that it took.
        assert!((owes(0.0, 0.03) - 0.01 * Share::Windows.part()).abs() < 1e-6);
        assert!(owes(0.0025, 0.0) < 0.0);
        assert!(owes(0.0, 0.03) > 0.029);
    }

    #[test]
    fn a_short_run_is_not_spent_on_what_was_saved_for_a_long_one() {
        let (share, taken) = run(1.0, 500_000.0, Some(2.0), 1);
        assert!(taken > 0 && share < 0.02, "{share} {taken}");
    }
}
