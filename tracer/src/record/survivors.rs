//! Which of the blocks that were seen in sampling windows are still in use: read from their pools, not traced.
//!
//! A block is free if it is on its pool's list of free blocks, was never handed out, or its pool is another class's now. One that was freed and handed out
//! again looks in use; what its first words say (`content`) gives it away in most cases. Those of the newest window are looked at
//! often, which tells how long each stays; older ones whenever the heap is read. Invariant: who reads what the capture is told knows
//! which blocks are looked at, and however many were seen, their number is bounded.

use std::{collections::BTreeMap, io};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    content::{Content, Types},
    left_out::Count,
    pool_walk::{Memory, in_use},
    types::KnownTypes,
};
use crate::{
    ingest::PoolState,
    units::{ByteCount, MonotonicNs, ProcAddr},
};

/// Blocks remembered of one process.
const MAX_SAMPLES: usize = 1 << 14;
/// Of the newest window, once they were looked at, and of all before it.
const MOST_NEW: usize = 1 << 10;
const MOST_OLD: usize = 1 << 11;
/// Of either, of all processes.
pub(super) const MOST_IN_ALL: usize = 1 << 16;
/// Bytes between two size classes.
const ALIGNMENT: u64 = 16;

/// Which blocks are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    NewestWindow,
    AllWindows,
}

/// What a look found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Blocks that are no longer in use.
    pub(super) gone: Vec<u64>,
    /// Those that are, and are not looked at any more, as there are too many.
    pub(super) left: Vec<u64>,
    /// Those for which there was no room when they were seen, and those that cannot be told from others.
    pub(super) refused: Vec<u64>,
}

/// A block that was seen.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Bytes of its class.
    size: u64,
    time: u64,
    content: Option<Content>,
}

/// Those of one process, by address.
#[derive(Debug, Default)]
pub(super) struct Survivors {
    samples: FxHashMap<u64, Sample>,
    /// When the last two windows were over; 0 for none.
    ends: [u64; 2],
    /// The last one was too short to show who drops what he makes.
    was_short: bool,
    /// What is left to this process of [`MOST_IN_ALL`].
    most: usize,
    /// Blocks for which there was no room, and when each was seen.
    refused: FxHashMap<u64, u64>,
    types: KnownTypes,
    /// How many those were so far.
    left_out: Count,
}

impl Survivors {
    /// A block was allocated in a window; whether it is the first that was seen there.
    pub(super) fn add(&mut self, addr: ProcAddr, size: ByteCount, time: MonotonicNs) -> bool {
        // The newest at an address is the one that is there.
        if self.samples.len() >= MAX_SAMPLES && !self.samples.contains_key(&addr.get()) {
            let has_room = self.refused.len() < MAX_SAMPLES || self.refused.contains_key(&addr.get());
            let is_first = !has_room || self.refused.insert(addr.get(), time.get()).is_none();
            self.left_out.add(u64::from(is_first), time);
            return is_first;
        }
        self.refused.remove(&addr.get());
        let sample = Sample {
            size: size.get(),
            time: time.get(),
            content: None,
        };
        self.samples.insert(addr.get(), sample).is_none()
    }

    /// For how many there was no room.
    pub(super) fn left_out(&self) -> Count {
        self.left_out
    }

    /// A window is over in which the process was hit. `was_short`: too short to show who drops what he makes; `most`: so many blocks of
    /// it are looked at on, and of all before it.
    pub(super) fn window_over(&mut self, over: MonotonicNs, was_short: bool, most: usize) {
        let [_, last] = self.ends;
        self.ends = [last, over.get()];
        self.was_short = was_short;
        self.most = most;
    }

    /// The first and the last time at which blocks were allocated that can be looked at, if all that happened before `settled` is known.
    /// Those of a window are looked at together, once it is over.
    pub(super) fn due(&self, of: Of, settled: MonotonicNs) -> Option<(u64, u64)> {
        let [before, newest] = self.ends;
        match of {
            _ if newest == 0 => None,
            Of::NewestWindow => (newest < settled.get()).then_some((before + 1, newest)),
            Of::AllWindows if newest < settled.get() => Some((0, newest)),
            Of::AllWindows => (before > 0).then_some((0, before)),
        }
    }

    /// The pools around the blocks that were allocated between two times.
    pub(super) fn pools(&self, first: u64, last: u64, pool_bytes: u32) -> Vec<ProcAddr> {
        let mask = u64::from(pool_bytes).wrapping_sub(1);
        let samples = self.samples.iter();
        let wanted = samples.filter(|(_, sample)| (first..=last).contains(&sample.time));
        let pools: FxHashSet<u64> = wanted.map(|(addr, _)| addr & !mask).collect();
        let mut pools: Vec<ProcAddr> = pools.into_iter().map(ProcAddr).collect();
        pools.sort_unstable();
        pools
    }

    /// Looks at those that were allocated between two times, and forgets what it finds. `pools`: those around them that are in use, as
    /// they have just been read, in order of addresses. Nothing is forgotten if the process cannot be read.
    pub(super) fn check(
        &mut self,
        first: u64,
        last: u64,
        pool_bytes: u32,
        pools: &[PoolState],
        mut memory: impl Memory,
    ) -> io::Result<Found> {
        let mut found = Found::default();
        // Of a full pool only the samples need to be looked at; the others are walked.
        let mut full = Vec::new();
        let mut walked: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        let mask = u64::from(pool_bytes).wrapping_sub(1);
        for (&addr, sample) in &self.samples {
            if !(first..=last).contains(&sample.time) {
                continue;
            }
            let at = addr & !mask;
            let known = pools.binary_search_by_key(&at, |pool| pool.address);
            let pool = known.ok().and_then(|index| pools.get(index));
            match pool.filter(|pool| (u64::from(pool.class) + 1) * ALIGNMENT == sample.size) {
                Some(pool) if pool.used == pool.carved => full.push((addr, sample.size)),
                Some(_) => walked.entry(at).or_default().push((addr, sample.size)),
                None => found.gone.push(addr),
            }
        }
        let in_use = in_use(&full, walked, mask, &mut memory, &mut found.gone)?;
        let mut types = Types::of(in_use.iter().map(|(_, size, words)| (*size, words)));
        self.types.learn(types.candidates(), &mut memory)?;
        types.keep(|value| self.types.has(value));
        let mut times: FxHashMap<(u64, Option<Content>), u32> = FxHashMap::default();
        for (addr, size, words) in in_use {
            if let Some(sample) = self.samples.get_mut(&addr) {
                if types.is_another(&mut sample.content, size, &words) {
                    found.gone.push(addr);
                }
                *times.entry((size, sample.content)).or_default() += 1;
            }
        }
        for addr in &found.gone {
            self.samples.remove(addr);
        }
        let [before, newest] = self.ends;
        if self.was_short && last == newest {
            self.refuse(before + 1, newest, &times);
        }
        if last == newest {
            self.leave(before + 1, newest, MOST_NEW.min(self.most), &mut found.left);
        }
        self.leave(0, before, MOST_OLD.min(self.most), &mut found.left);
        // Those of a window that is open belong to the look at that window: of whom they are it is not known then.
        let refused = self.refused.extract_if(|_, time| *time <= last);
        found.refused = refused.map(|(addr, _)| addr).collect();
        for found in [&mut found.gone, &mut found.left, &mut found.refused] {
            found.sort_unstable();
        }
        Ok(found)
    }

    /// Forgets those of the newest window that cannot be told from what is put in their place: the window was too short to show it.
    fn refuse(&mut self, first: u64, last: u64, times: &FxHashMap<(u64, Option<Content>), u32>) {
        let refused = &mut self.refused;
        self.samples.retain(|&addr, sample| {
            let is_alone = times.get(&(sample.size, sample.content)) == Some(&1);
            let is_known = sample.content.is_some_and(|content| content.is_telling()) && is_alone;
            // Those of one that is open now are looked at when it is over.
            let stays = is_known || !(first..=last).contains(&sample.time);
            if !stays {
                refused.insert(addr, sample.time);
            }
            stays
        });
    }

    /// Forgets those between two times that are too many, evenly.
    fn leave(&mut self, first: u64, last: u64, most: usize, left: &mut Vec<u64>) {
        let samples = self.samples.iter();
        let of_kind = samples.filter(|(_, sample)| (first..=last).contains(&sample.time));
        let mut addrs: Vec<u64> = of_kind.map(|(&addr, _)| addr).collect();
        if addrs.len() <= most {
            return;
        }
        addrs.sort_unstable_by_key(|&addr| mixed(addr));
        for addr in addrs.drain(most..) {
            self.samples.remove(&addr);
            left.push(addr);
        }
    }
}

/// An order that has nothing to do with where blocks are, nor with which of them are sampled.
fn mixed(addr: u64) -> u64 {
    let mixed = (addr >> 4)
        .wrapping_add(0x51_7c_c1_b7)
        .wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
}

#[cfg(test)]
mod tests;
