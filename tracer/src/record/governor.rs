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
    share::{BLOCKS, FEW, GROUPS, Share},
};
use super::{account::Account, audit::later};
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
/// What a change of what stands takes of the recorder counts for so much at most where many are at work.
const MOST_WEIGHT: f64 = 3.0;
/// A process is at work that uses such a share of the time, over about so many seconds.
const AT_WORK: f64 = 0.002;
const LATELY: f64 = 10.0;

/// What is to be done with a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    TakeOff(Group),
    PutBack(Group),
}

/// One process's account.
#[derive(Clone, Copy, Debug)]
struct Process {
    hits: [Hits; group::GROUPS],
    /// Processor time that it had used, and for which part of the time it ran since the look before.
    used: Option<Duration>,
    busy: f64,
    /// The same, over [`LATELY`].
    lately: f64,
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
    accounts: FxHashMap<(Pid, BootNs), Process>,
    /// How many of them were at work at the last look.
    at_work: f64,
    /// Groups that are off, since when.
    off: Vec<(Group, MonotonicNs)>,
    last: Option<MonotonicNs>,
    /// What each busy process may still be charged at least, behind what a change of what stands costs it; `None` while one
    /// recovers. In the order of [`Share::ALL`].
    rooms: [Option<Duration>; Share::COUNT],
    /// How long it took to put each group in place, the last time.
    changes: [Duration; group::GROUPS],
    /// Each group is not put in place before this,
    rests_until: [MonotonicNs; group::GROUPS],
    /// ... nor while its changes have taken too much of the recorder's own time.
    own: [Account; group::GROUPS],
    /// No process was charged more than its budget since the last time.
    is_calm: bool,
    /// How long the first purse lasts whose groups cost more than it earns, as far as its share can be foreseen.
    lasts: Duration,
    /// When the recording began.
    began: BootNs,
}

impl Governor {
    /// `percent`: the budget; `None` for none. `began`: the recording did.
    pub(super) fn new(mode: Mode, percent: Option<f64>, began: BootNs) -> Self {
        Self {
            mode,
            rooms: [percent.is_none().then_some(Duration::MAX); Share::COUNT],
            budget: percent.map(|percent| percent / 100.0),
            hit_cost_ns: UNKNOWN_COST,
            accounts: FxHashMap::default(),
            at_work: 0.0,
            off: Vec::new(),
            last: None,
            changes: [Duration::ZERO; group::GROUPS],
            rests_until: [MonotonicNs(0); group::GROUPS],
            own: std::array::from_fn(|place| {
                let group = Group::of_number(u32::try_from(place).unwrap_or_default());
                Account::of_changes(group.share.change_share())
            }),
            is_calm: false,
            lasts: Duration::MAX,
            began,
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
            let full = Purse::full(Share::Windows, budget);
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

    /// Putting a group in place or taking it off took so much of the recorder's own time, which has more to do with more processes.
    pub(super) fn cost_us(&mut self, number: u32, took: Duration) {
        let group = Group::of_number(number);
        if let Some(own) = self.own.get_mut(group.place()) {
            own.pay(took.mul_f64((self.at_work / FEW).clamp(1.0, MOST_WEIGHT)));
        }
    }

    /// Whether it is too early to put a group in place.
    pub(super) fn rests(&self, number: u32, time: MonotonicNs) -> bool {
        let place = Group::of_number(number).place();
        let until = self.rests_until.get(place).is_some_and(|until| time < *until);
        until || self.budget.is_some() && self.own.get(place).is_some_and(Account::is_empty)
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
        for own in &mut self.own {
            own.grow(time);
        }
        let (mut rooms, mut hottest, mut most) = ([Some(f64::MAX); Share::COUNT], None, 0.0);
        let changes = Share::ALL.map(|share| self.change(share, Purse::full(share, budget)));
        (self.is_calm, self.lasts) = (true, Duration::MAX);
        let mut lasts = Duration::MAX;
        let mut at_work = 0.0;
        for process in counters {
            // Of one that is not recorded it is not known.
            let is_new = process.start >= self.began || process.start == BootNs(0);
            let hits = std::array::from_fn(|group| process.counters.hits_of(group));
            let account = self
                .accounts
                .entry((process.pid, process.start))
                .or_insert(Process {
                    hits: [Hits::default(); group::GROUPS],
                    used: None,
                    busy: 1.0,
                    // Those that sleep all the time are not to count for a minute.
                    lately: 0.0,
                    purses: Share::ALL.map(|share| {
                        let first = if is_new { share.first() } else { 0.0 };
                        Purse::new(share, budget, first)
                    }),
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
            account.lately += (account.busy - account.lately) * (elapsed / LATELY).min(1.0);
            if account.lately >= AT_WORK {
                at_work += 1.0;
            }
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
                let least = |share: Share| busy.max(elapsed * share.least_use(self.at_work));
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
        self.at_work = at_work;
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
            if let Some(rests) = self.rests_until.get_mut(group.place()) {
                *rests = later(time, group.share.rest());
            }
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
mod tests;
