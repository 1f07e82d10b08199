//! Who touched which page first, as far as page faults tell.
//!
//! Apart from `regions`, which shares out what is resident by it. Invariant: a bounded number is remembered; what is forgotten the others
//! stand for.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::{pools::touched::Touched, sizes::Sizes};
use crate::{
    ingest::{LibcBlock, PAGE},
    profile::live::TallyIndex,
    units::MonotonicNs,
};

/// Faults remembered of one process; past it every second one is forgotten and the others count twice.
const MAX_FAULTS: usize = 1 << 16;
/// Large blocks that a fault can be for: a block is touched when it is filled, which is soon after it was allocated.
pub(super) const RECENT: usize = 64;
/// What libc has behind a block and writes before it gives the block away: the head of what follows.
pub(super) const HEAD: u64 = 16;

/// Pages whose first touch was seen.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// By page.
    pub(super) pages: FxHashMap<u64, Touch>,
    /// Where the newest large blocks are.
    recent: VecDeque<(u64, u64)>,
    pub(super) sizes: Sizes,
    /// Memory from before tracing, by the start of its region: what was there at the first audit.
    pub(super) before: Option<FxHashMap<u64, u64>>,
}

/// A fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touch {
    pub(super) tally: TallyIndex,
    /// How many faults it stands for.
    pub(super) weight: u32,
    pub(super) time: MonotonicNs,
    /// It came with a large block.
    pub(super) for_block: bool,
    /// Bytes that these faults brought, which is known when a region is shared out.
    pub(super) bytes: u64,
}

impl Touch {
    pub(super) fn of_pages(self) -> Self {
        Self {
            bytes: u64::from(self.weight) * PAGE,
            ..self
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the conversion saturates, and what is added is not negative"
    )]
    pub(super) fn add(&mut self, bytes: f64) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }
}

impl Faults {
    /// A large block was allocated.
    pub(super) fn allocated(&mut self, block: LibcBlock, tally: TallyIndex) {
        let addr = block.addr;
        let end = addr.saturating_add(block.bytes).saturating_add(HEAD);
        for page in [addr / PAGE, end / PAGE] {
            if let Some(touch) = self.pages.get_mut(&page) {
                touch.for_block = true;
            }
        }
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((addr, end));
        self.sizes.add(block.bytes, tally);
    }

    /// Pages that were touched, of which nothing else has told yet.
    pub(super) fn all(&self) -> Vec<Touched> {
        let all = self.pages.iter().map(|(page, touch)| Touched {
            addr: page * PAGE,
            tally: touch.tally,
            pages: touch.weight,
            time: touch.time.0,
        });
        all.collect()
    }

    /// Pages by address, and how many each stands for.
    pub(super) fn in_order(&self) -> Vec<(u64, u64)> {
        let pages = self.pages.iter();
        let mut all: Vec<_> = pages
            .map(|(page, touch)| (page * PAGE, u64::from(touch.weight)))
            .collect();
        all.sort_unstable();
        all
    }

    /// How many pages a fault stands for at most that was seen since.
    pub(super) fn coarsest(&self, since: MonotonicNs) -> u64 {
        let newer = self.pages.values().filter(|touch| touch.time >= since);
        newer.map(|touch| u64::from(touch.weight)).max().unwrap_or(0)
    }

    /// A page came without a fault, and with it so many others. Who was seen to touch it has it.
    pub(super) fn came(&mut self, addr: u64, pages: u32, tally: TallyIndex, time: MonotonicNs) {
        if !self.pages.contains_key(&(addr / PAGE)) {
            self.touched(addr, pages, tally, time);
        }
    }

    /// Of these pages nothing is known that is older.
    pub(super) fn forget(&mut self, pages: impl IntoIterator<Item = u64>, older: MonotonicNs) {
        for addr in pages {
            let page = addr / PAGE;
            if self.pages.get(&page).is_some_and(|touch| touch.time < older) {
                self.pages.remove(&page);
            }
        }
    }

    pub(super) fn touched(&mut self, addr: u64, weight: u32, tally: TallyIndex, time: MonotonicNs) {
        let mut recent = self.recent.iter().rev();
        let touch = Touch {
            tally,
            weight,
            time,
            for_block: recent.any(|&(first, end)| (first / PAGE..=end / PAGE).contains(&(addr / PAGE))),
            bytes: 0,
        };
        self.pages.insert(addr / PAGE, touch);
        if self.pages.len() > MAX_FAULTS {
            let mut keep = false;
            self.pages.retain(|_, touch| {
                keep = !keep;
                touch.weight = touch.weight.saturating_mul(2);
                keep
            });
        }
    }
}
