//! The pools of a process: who acquired each, and how much of it is in use.
//!
//! A pool's first filling belongs to whoever acquired it: the block that needed the pool is one out of all that came to lie
//! in it. Blocks that are used again later (the count grew, and not into space that was never used) were filled by
//! somebody else. So were pools that were acquired while nobody looked, unless something tells of them (see [`Pools::claim`]),
//! and those of who keeps nothing there (see [`Pools::disown`]).
//! Invariant: `own + refilled` is the used count of the last audit.

mod acquirers;
pub(super) mod touched;

use std::collections::{VecDeque, hash_map::Entry};

use rustc_hash::{FxHashMap, FxHashSet};

use self::{
    acquirers::Acquirers,
    touched::{ByPage, Touched},
};
use super::{Holder, Special};
use crate::{
    ingest::{HeapAudit, PoolState},
    profile::live::TallyIndex,
    units::MonotonicNs,
};

/// Acquisitions kept at most of pools to which an audit did not come.
const MAX_LATE: usize = 1 << 18;
/// Gaps kept apart.
const MAX_GAPS: usize = 256;
/// Bytes between two size classes.
pub(super) const ALIGNMENT: u64 = 16;

#[derive(Clone, Copy, Debug)]
struct Pool {
    class: u8,
    /// Blocks of its first filling that are in use.
    own: u16,
    /// Blocks in use that were filled again.
    refilled: u16,
    carved: u16,
    arena: u32,
    owner: Owner,
    /// When it was acquired; 0 if that was not seen, nor who touched it first.
    acquired: u64,
    /// It was seen who acquired this one, or touched it first.
    is_sample: bool,
    /// Up to this time there was nothing in it but its first filling.
    first_until: u64,
}

/// Whose a pool's first filling is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Of the time before tracing.
    Before,
    Tally(TallyIndex),
    /// Anybody's: as if it had been filled again.
    Unknown,
}

/// By whom a pool was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// By who acquired it, all of it; or there is no such pool.
    ByOwner,
    /// A part of it by others, at this time or later.
    Again(MonotonicNs),
    /// Nobody knows.
    ByAnybody,
}

/// An acquisition that no audit has shown yet.
#[derive(Clone, Copy, Debug)]
struct Acquired {
    addr: u64,
    class: u8,
    tally: TallyIndex,
    time: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Pools {
    all: FxHashMap<u64, Pool>,
    pending: Vec<Acquired>,
    /// Who was seen to acquire pools of which class.
    acquirers: Acquirers,
    /// Pools that the last audit was the first to show, and that may have been acquired by anybody.
    unclaimed: Vec<u64>,
    /// Since when there was a time in which acquisitions were not traced.
    had_gap: Option<u64>,
    /// When they were not, as far as no audit has read all pools since: from then to then.
    gaps: VecDeque<(u64, u64)>,
    /// When the last audit that read all pools began, and when it began to read.
    began: u64,
    last: u64,
    /// All that was there has been read: what comes into use from here on was not there before tracing.
    is_known: bool,
}

/// What somebody uses in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) address: u64,
    pub(super) class: usize,
    pub(super) arena: u32,
    pub(super) holder: Holder,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    /// 1 if it was seen whose it is.
    pub(super) samples: u64,
}

impl Pools {
    pub(super) fn acquired(&mut self, addr: u64, class: usize, tally: TallyIndex, time: MonotonicNs) {
        let class = u8::try_from(class).unwrap_or(u8::MAX);
        self.acquirers.seen(class, tally);
        self.pending.push(Acquired {
            addr,
            class,
            tally,
            time: time.0,
        });
    }

    /// Acquisitions are not traced from `from` on, or were not up to `to`. Audits from before that may wait still.
    pub(super) fn gap(&mut self, from: MonotonicNs, to: Option<MonotonicNs>) {
        self.had_gap.get_or_insert(from.0);
        match (to, self.gaps.back_mut()) {
            (None, _) => self.gaps.push_back((from.0, u64::MAX)),
            (Some(to), Some((_, open))) if *open == u64::MAX => *open = to.0,
            (Some(to), _) => self.gaps.push_back((from.0, to.0)),
        }
        if self.gaps.len() > MAX_GAPS
            && let Some((from, _)) = self.gaps.pop_front()
            && let Some(first) = self.gaps.front_mut()
        {
            first.0 = from;
        }
    }

    pub(super) fn audit(&mut self, audit: &HeapAudit) {
        // A reading finds pools where events told of some: of an arena that was new in the gap they tell later.
        let was_off = self.had_gap.is_some_and(|from| from <= audit.ended.0);
        let unseen = was_off && (self.is_known || audit.since_start);
        self.is_known |= audit.complete;
        let mask = u64::from(audit.pool_bytes).wrapping_sub(1);
        let mut newest: FxHashMap<u64, Acquired> = FxHashMap::default();
        for acquired in &self.pending {
            // The last one counts; they are in order.
            newest.insert(acquired.addr & !mask, *acquired);
        }
        // What is newer may not have been there yet, or where nobody had told of a pool: the next audit shows it.
        self.pending.retain(|acquired| acquired.time >= audit.began.0);
        for state in &audit.changed {
            self.change(state, unseen);
        }
        if audit.is_partial {
            self.keep(&newest, audit);
        } else {
            (self.began, self.last) = (audit.began.0, audit.read_from().0);
        }
        for (address, acquired) in newest {
            if let Some(pool) = self.all.get_mut(&address)
                && pool.class == acquired.class
                && pool.acquired < acquired.time
            {
                *pool = Pool {
                    own: pool.own + pool.refilled,
                    refilled: 0,
                    owner: Owner::Tally(acquired.tally),
                    acquired: acquired.time,
                    is_sample: true,
                    ..*pool
                };
            }
        }
    }

    /// What was acquired in pools that an audit does not tell of waits for the one that does.
    fn keep(&mut self, newest: &FxHashMap<u64, Acquired>, audit: &HeapAudit) {
        let told: FxHashSet<u64> = audit.changed.iter().map(|state| state.address).collect();
        let mut late: Vec<Acquired> = newest
            .iter()
            .filter(|(address, acquired)| acquired.time < audit.began.0 && !told.contains(address))
            .map(|(_, acquired)| *acquired)
            .collect();
        late.sort_unstable_by_key(|acquired| acquired.time);
        late.drain(..late.len().saturating_sub(MAX_LATE));
        late.append(&mut self.pending);
        self.pending = late;
    }

    /// `unseen`: a pool that is new may have been acquired by anybody.
    fn change(&mut self, state: &PoolState, unseen: bool) {
        if state.used == 0 {
            self.all.remove(&state.address);
            return;
        }
        let fresh = Pool {
            class: state.class,
            own: state.used,
            refilled: 0,
            carved: state.carved,
            arena: state.arena,
            owner: if unseen { Owner::Unknown } else { Owner::Before },
            acquired: 0,
            is_sample: false,
            first_until: 0,
        };
        let pool = match self.all.entry(state.address) {
            Entry::Occupied(pool) => pool.into_mut(),
            Entry::Vacant(place) => {
                if unseen {
                    self.unclaimed.push(state.address);
                }
                place.insert(fresh)
            }
        };
        if pool.class != state.class || state.carved < pool.carved {
            // Set up anew by an acquisition that follows, or that was not seen.
            *pool = fresh;
            return;
        }
        let before = pool.own + pool.refilled;
        if let Some(more) = state.used.checked_sub(before) {
            // One block more than were handed out is always prepared.
            let prepared = u16::from(before.saturating_add(1) >= pool.carved);
            let first = more.min(state.carved - pool.carved + prepared);
            if pool.refilled == 0 {
                pool.first_until = self.last;
            }
            pool.own += first;
            pool.refilled += more - first;
        } else {
            let left = u32::from(state.used) * u32::from(pool.refilled) / u32::from(before.max(1));
            pool.refilled = u16::try_from(left).unwrap_or(pool.refilled);
            pool.own = state.used - pool.refilled;
        }
        pool.carved = state.carved;
    }

    /// Gives the pools that the last audit was the first to show, and nobody was seen to acquire, to who touched memory first in them or
    /// nearest to them, or else to those who were seen to acquire others of their class, in their shares. `touches`: all that were seen
    /// since the audit before, in any order. The pool around a touch may have become one of another class since: who was seen to
    /// acquire pools, but never such a one, did not touch it for that, nor who acquired none while that was traced.
    pub(super) fn claim(&mut self, audit: &HeapAudit, touches: impl FnOnce() -> Vec<Touched>) {
        self.claim_of_gaps(audit, touches);
        self.gaps.retain(|&(_, to)| to >= self.began);
    }

    fn claim_of_gaps(&mut self, audit: &HeapAudit, touches: impl FnOnce() -> Vec<Touched>) {
        let unclaimed = std::mem::take(&mut self.unclaimed).into_iter();
        let mut unclaimed: Vec<(u8, u64)> = unclaimed
            .filter_map(|addr| {
                let pool = self.all.get(&addr).filter(|pool| pool.owner == Owner::Unknown)?;
                Some((pool.class, addr))
            })
            .collect();
        if unclaimed.is_empty() {
            return;
        }
        let pool_bytes = u64::from(audit.pool_bytes);
        let mask = pool_bytes.wrapping_sub(1);
        let of_class = touches().into_iter().filter_map(|touch| {
            let class = self.all.get(&(touch.addr & !mask))?.class;
            let in_gap = || {
                self.gaps
                    .iter()
                    .any(|&(from, to)| (from..=to).contains(&touch.time))
            };
            let may_be = self.acquirers.has(class, touch.tally).unwrap_or_else(in_gap);
            may_be.then_some((class, touch))
        });
        for (addr, touch) in ByPage::new(of_class).of_pools(&unclaimed, pool_bytes) {
            self.give(addr, touch.tally, touch.time, touch.addr & !mask == addr);
        }
        unclaimed.retain(|(_, addr)| {
            self.all
                .get(addr)
                .is_some_and(|pool| pool.owner == Owner::Unknown)
        });
        for (addr, tally) in self.acquirers.share_out(unclaimed) {
            self.give(addr, tally, audit.began.0, false);
        }
        self.acquirers.age();
    }

    fn give(&mut self, addr: u64, tally: TallyIndex, acquired: u64, is_sample: bool) {
        if let Some(pool) = self.all.get_mut(&addr) {
            *pool = Pool {
                owner: Owner::Tally(tally),
                acquired,
                is_sample,
                ..*pool
            };
        }
    }

    /// Takes from who soon frees what he allocates the pools that he acquired: others keep what is left in them. `drops` says
    /// whether a stack did so with blocks of a class at a time.
    pub(super) fn disown(&mut self, drops: impl Fn(usize, TallyIndex, MonotonicNs) -> bool) {
        for pool in self.all.values_mut() {
            if let Owner::Tally(tally) = pool.owner
                && drops(usize::from(pool.class), tally, MonotonicNs(pool.acquired))
            {
                pool.owner = Owner::Unknown;
            }
        }
    }

    /// For each class, what lies in pools that were taken from who acquired them, and who acquired others of that time and keeps
    /// them: blocks, and theirs.
    pub(super) fn disowned(&self) -> FxHashMap<u8, (u64, FxHashMap<TallyIndex, u64>)> {
        let is_disowned = |pool: &&Pool| pool.owner == Owner::Unknown && pool.acquired > 0;
        let mut spans: FxHashMap<u8, (u64, u64)> = FxHashMap::default();
        let mut disowned: FxHashMap<u8, (u64, FxHashMap<TallyIndex, u64>)> = FxHashMap::default();
        for pool in self.all.values().filter(is_disowned) {
            let (first, last) = spans.entry(pool.class).or_insert((pool.acquired, pool.acquired));
            (*first, *last) = ((*first).min(pool.acquired), (*last).max(pool.acquired));
            disowned.entry(pool.class).or_default().0 += u64::from(pool.own);
        }
        for pool in self.all.values() {
            if let Owner::Tally(tally) = pool.owner
                && let Some(&(first, last)) = spans.get(&pool.class)
                && (first..=last).contains(&pool.acquired)
            {
                let (_, keepers) = disowned.entry(pool.class).or_default();
                *keepers.entry(tally).or_default() += u64::from(pool.own);
            }
        }
        disowned
    }

    /// By whom the pool around a block of a class was filled.
    pub(super) fn filled(&self, addr: u64, class: usize, pool_bytes: u32) -> Filled {
        let pool = addr & !u64::from(pool_bytes).wrapping_sub(1);
        match self.all.get(&pool) {
            Some(pool) if usize::from(pool.class) != class => Filled::ByOwner,
            Some(pool) if pool.owner == Owner::Unknown => Filled::ByAnybody,
            Some(pool) if pool.refilled > 0 => Filled::Again(MonotonicNs(pool.first_until)),
            _ => Filled::ByOwner,
        }
    }

    /// Who uses what.
    pub(super) fn uses(&self) -> impl Iterator<Item = Use> + '_ {
        self.all.iter().flat_map(|(&address, pool)| {
            let size = (u64::from(pool.class) + 1) * ALIGNMENT;
            let of = |blocks: u16, holder: Holder, samples: u64| Use {
                address,
                class: usize::from(pool.class),
                arena: pool.arena,
                holder,
                blocks: u64::from(blocks),
                bytes: u64::from(blocks) * size,
                samples,
            };
            let (holder, samples) = match pool.owner {
                Owner::Tally(tally) => (Holder::Tally(tally), u64::from(pool.is_sample)),
                Owner::Before => (Holder::Special(Special::Before), 0),
                Owner::Unknown => (Holder::Special(Special::Refilled), 0),
            };
            let refilled = of(pool.refilled, Holder::Special(Special::Refilled), 0);
            [of(pool.own, holder, samples), refilled]
        })
    }
}

#[cfg(test)]
mod tests;
