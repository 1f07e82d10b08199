//! One traced process while it runs: its live set, its tallies, its code objects, its counters.
//!
//! Apart from `apply`, which decides *which* process an event belongs to; here is what the event does to it.
//! Invariant: a block is in the live set exactly if its tally counts it as live.

mod fold;

use rustc_hash::FxHashMap;
use tracer_ebpf::{record::stack_id, site::group};

use super::{
    apply::{GroupGap, SamplingWindow},
    audit::{AuditLog, Audits, PoolAudit},
    heap::{Estimate, Growth, HeapSummary, Holders as HeapHolders, LargeUse},
    high_water::{Entry, Held, HighWater},
    info::{End, ProcessInfo},
    live::{Block, Freed, LiveSet, Owner, TallyIndex, reallocated},
    losses::{Losses, Operations},
    mimalloc,
    stack_ids::StackIds,
    stacks::{StackId, StackTable},
    tally::Tally,
    untraced::Untraced,
};
use crate::{
    ingest::{
        BIG_CHUNK, HeapAudit, LibcBlock, Survey,
        event::{Alloc, AllocSite, BlockKind, Counters, Fault, Free, Realloc},
    },
    mode::Mode,
    symbolize::{FrameTable, Symbolizer},
    units::MonotonicNs,
};

/// State of one process, running or gone.
#[derive(Debug)]
pub(super) struct ProcessState {
    pub(super) info: ProcessInfo,
    pub(super) symbolizer: Symbolizer,
    pub(super) counters: Option<Counters>,
    pub(super) high_water: HighWater,
    pub(super) tallies: Vec<StackTally>,
    delivered: Operations,
    unmatched_frees: u64,
    stale_blocks: u64,
    is_partial: bool,
    /// Large blocks (heap mode).
    untraced: Untraced,
    live: LiveSet,
    audits: AuditLog,
    /// In heap mode, what small blocks and untraced memory are known by.
    heap: Option<Box<HeapHolders>>,
    ids: StackIds,
    /// The id and tally of the last allocation: the next one often has the same.
    last_stack: Option<(u64, TallyIndex)>,
    threads: LastAllocations,
}

/// Most blocks live shorter than this, or for long; nanoseconds.
const YOUNG_NS: u64 = 1_000_000_000;

/// What one stack id stands for, and what it did.
#[derive(Debug, Default)]
pub(super) struct StackTally {
    /// `None` until the stack arrives.
    pub(super) stack: Option<StackId>,
    pub(super) allocated: Held,
    /// Of that, what is only seen while large blocks are traced (heap mode).
    pub(super) sampled: Held,
    /// Large blocks that were allocated while they were not traced, and of which mappings told (heap mode).
    pub(super) mapped: Held,
    /// Bytes of both in chunks of [`BIG_CHUNK`] and more.
    pub(super) big: u64,
    /// Bytes of these that were seen to be freed within [`YOUNG_NS`].
    pub(super) died_young: u64,
    pub(super) temporary: Held,
    pub(super) held: Entry,
    /// In heap mode, what is estimated beside that.
    pub(super) estimated: Estimate,
    /// In heap mode, both at the last audit.
    pub(super) at_audit: Held,
    /// In heap mode, both when the process held the most.
    pub(super) at_peak: Held,
}

/// The last block that each thread allocated, if it did not free or lose it.
#[derive(Debug, Default)]
struct LastAllocations {
    current: Option<(u32, u64)>,
    others: FxHashMap<u32, u64>,
}

impl ProcessState {
    pub(super) fn new(info: ProcessInfo, mode: Mode) -> Self {
        Self {
            info,
            symbolizer: Symbolizer::default(),
            counters: None,
            high_water: HighWater::default(),
            tallies: Vec::new(),
            delivered: Operations::default(),
            unmatched_frees: 0,
            stale_blocks: 0,
            is_partial: false,
            untraced: Untraced::default(),
            live: LiveSet::default(),
            audits: AuditLog::default(),
            heap: (mode == Mode::Heap).then(Box::default),
            ids: StackIds::default(),
            last_stack: None,
            threads: LastAllocations::default(),
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.info.end == End::Running
    }

    /// A block was allocated. `all` is the mark of all processes together.
    pub(super) fn alloc(&mut self, event: &Alloc, stacks: &mut StackTable, all: &mut HighWater) {
        self.delivered.allocs += 1;
        // `Any` cannot be: the decoder does not let it through. As a pool block, every kind of free finds it.
        let (owner, size) = match event.kind {
            BlockKind::Raw => (Owner::Raw, event.size.0),
            BlockKind::Domain => (Owner::Domain, event.size.0),
            BlockKind::Mimalloc => (Owner::Mimalloc, mimalloc::occupied(event.size.0)),
            BlockKind::Pool | BlockKind::Any => (Owner::Pool, event.size.0),
        };
        let tally = self.tally_of(event.stack.0, stacks);
        if let Some(holders) = &mut self.heap
            && owner == Owner::Pool
        {
            match event.site {
                AllocSite::Refill => {
                    if let Some(counts) = self.tallies.get_mut(tally as usize) {
                        counts.allocated.count += 1;
                    }
                    holders.acquired(event, size, tally);
                }
                AllocSite::Copy => holders.sampled(event, size, tally),
                AllocSite::Other => {}
            }
            return;
        }
        // An extension can tell of memory that it has from the allocator: that is known.
        if owner != Owner::Domain || !self.live.is_allocated(event.addr.0) {
            let block = Block::new(size, owner, tally).born(event.time);
            self.add(event.tid.0, event.addr.0, block, all);
        }
    }

    /// A page was touched, or a mapping made.
    pub(super) fn fault(&mut self, event: &Fault, stacks: &mut StackTable) {
        self.delivered.faults += 1;
        let tally = self.tally_of(event.stack.0, stacks);
        if let Some(holders) = &mut self.heap {
            holders.touched(event, tally);
        }
    }

    /// A block was freed.
    pub(super) fn free(&mut self, event: &Free, all: &mut HighWater) {
        self.delivered.frees += 1;
        self.take(event.tid.0, event.addr.0, event.kind, all);
    }

    /// A block was reallocated: one free and one allocation.
    pub(super) fn realloc(&mut self, event: &Realloc, stacks: &mut StackTable, all: &mut HighWater) {
        self.delivered.reallocs += 1;
        let tally = self.tally_of(event.stack.0, stacks);
        let old = event
            .old
            .and_then(|old| self.take(event.tid.0, old.0, event.kind, all));
        let moved = event.old != Some(event.addr);
        let block = reallocated(event.kind, old, moved, event.requested.0, event.raw_size.0, tally);
        self.add(event.tid.0, event.addr.0, block.born(event.time), all);
    }

    /// A stack arrived and was resolved. Blocks that named it before it came are its own from now on.
    pub(super) fn stack(&mut self, id: u64, stack: StackId) {
        if let Some(index) = self.ids.get(id)
            && let Some(known) = self.tallies.get_mut(index as usize)
        {
            match known.stack {
                None => {
                    known.stack = Some(stack);
                    self.ids.set_stack(stack, index);
                    return;
                }
                Some(same) if same == stack => return,
                // The id now means something else; what was counted keeps its meaning.
                Some(_) => {}
            }
        }
        self.new_tally(id, Some(stack));
    }

    /// It is gone: its blocks stay counted as live, and are no longer held by anybody.
    pub(super) fn end(&mut self, end: End, all: &mut HighWater) {
        self.info.end = end;
        all.shrink(self.high_water.current());
        if let Some(holders) = &mut self.heap {
            holders.end(all);
        }
        self.live.clear();
        self.audits.end();
        self.ids = StackIds::default();
        self.last_stack = None;
        self.threads = LastAllocations::default();
        self.symbolizer.forget_code();
    }

    /// The next event is of this time: what was audited before is compared with the blocks that live now.
    #[inline]
    pub(super) fn before(&mut self, time: MonotonicNs, stacks: &mut StackTable, all: &mut HighWater) {
        if self.audits.is_due(time) {
            self.audits.compare(time, self.live.pool_blocks());
        }
        if self.heap.as_ref().is_some_and(|holders| holders.is_due(time)) {
            self.take_audits(time, stacks, all);
        }
    }

    #[cold]
    fn take_audits(&mut self, time: MonotonicNs, stacks: &mut StackTable, all: &mut HighWater) {
        // Taken out for as long as it works on the tallies.
        if let Some(mut holders) = self.heap.take() {
            while let Some(changes) = holders.take_changes(time) {
                for addr in changes.gone {
                    if let Some(block) = self.live.take_older(addr, changes.began) {
                        self.release(block, Temporary::No, all);
                    }
                }
                for (found, whose) in changes.mapped {
                    self.mapped(found, whose, all);
                }
                holders.take(time, &self.live, &mut self.tallies, stacks, all);
            }
            self.heap = Some(holders);
        }
    }

    /// A group of sites is not traced from here on, or was not up to now (heap mode). Of large blocks that are freed meanwhile
    /// the next audit tells. Whether what an extension told of is still there nobody can tell: the young blocks will be freed
    /// unseen, most of them, and who touched their memory first stands for them from here on; the others are what somebody holds.
    pub(super) fn gap(&mut self, gap: &GroupGap, all: &mut HighWater) {
        match gap.group {
            group::POOLS if self.is_running() => {
                self.is_partial = true;
                if let Some(holders) = &mut self.heap {
                    holders.pool_gap(gap.from, gap.to);
                }
            }
            group::LARGE if self.is_running() => {
                self.is_partial = true;
                match gap.to {
                    Some(to) => self.untraced.end(to),
                    None => self.untraced.begin(gap.from),
                }
                if let Some(holders) = &mut self.heap {
                    holders.large_gap(gap.from, gap.to);
                }
            }
            group::DOMAINS if self.is_running() => {
                self.is_partial = true;
                let now = self.info.last_seen.unwrap_or_default();
                for block in self.live.take_young(Owner::Domain, now, YOUNG_NS) {
                    self.release(block, Temporary::No, all);
                }
            }
            _ => {}
        }
    }

    /// What its large blocks are to be multiplied with, as some were not seen.
    pub(super) fn scale(&self) -> f64 {
        let (first, last) = (self.info.first_seen, self.info.last_seen);
        first
            .zip(last)
            .map_or(1.0, |(first, last)| self.untraced.scale(first, last))
    }

    /// Every allocation was looked at in this time.
    pub(super) fn window(&mut self, window: SamplingWindow) {
        if let Some(holders) = &mut self.heap {
            holders.window(window);
        }
    }

    /// Whether pools or large blocks were not traced all the time (heap mode).
    pub(super) fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// What its heap looks like, a little later than the last event so far.
    pub(super) fn heap_audit(&mut self, audit: HeapAudit) {
        if let Some(holders) = &mut self.heap {
            holders.add(audit);
        }
    }

    /// Which of its sampled blocks are gone.
    pub(super) fn survey(&mut self, survey: &Survey) {
        if let Some(holders) = &mut self.heap {
            holders.survey(survey);
        }
    }

    /// What the last reading of its heap found.
    pub(super) fn heap(&self) -> Option<HeapSummary> {
        self.heap.as_ref()?.summary()
    }

    /// What its pools held, a little later than the last event so far.
    pub(super) fn audit(&mut self, audit: PoolAudit) {
        self.audits.add(audit);
    }

    /// What each tally held over time, in heap mode.
    pub(super) fn growth(&self) -> Option<&Growth> {
        self.heap.as_ref().map(|holders| holders.growth())
    }

    /// What came of the audits so far.
    pub(super) fn audits(&self) -> &Audits {
        self.audits.audits()
    }

    /// What was lost or not understood so far.
    pub(super) fn losses(&self, overflow: StackId) -> Losses {
        let blocks_of = |wanted: Option<StackId>| {
            self.tallies
                .iter()
                .filter(|tally| tally.stack == wanted)
                .map(|tally| tally.allocated.count)
                .sum()
        };
        Losses {
            by_reason: self
                .counters
                .map_or_else(Default::default, |counters| counters.losses),
            produced: self.counters.map(|counters| Operations {
                allocs: counters.allocs,
                frees: counters.frees,
                reallocs: counters.reallocs,
                faults: counters.faults,
            }),
            delivered: self.delivered,
            unmatched_frees: self.unmatched_frees,
            stale_blocks: self.stale_blocks,
            unknown_stacks: blocks_of(None),
            table_full: blocks_of(Some(overflow)),
            symbols: self.symbolizer.problems(),
        }
    }

    fn add(&mut self, tid: u32, addr: u64, block: Block, all: &mut HighWater) {
        if let Some(stale) = self.live.insert(addr, block) {
            // Who frees what a mapping was made for need not hit a site.
            self.stale_blocks += u64::from(stale.owner() != Owner::Mapped);
            self.release(stale, Temporary::No, all);
        }
        if let Some(tally) = self.tallies.get_mut(block.tally as usize) {
            tally.allocated.bytes = tally.allocated.bytes.saturating_add(block.size());
            tally.allocated.count += 1;
            if self.heap.is_some() && block.owner() == Owner::Raw {
                tally.sampled.bytes = tally.sampled.bytes.saturating_add(block.size());
                tally.sampled.count += 1;
                tally.count_big(block.size());
            }
            tally.held.add(block.size(), &mut self.high_water);
            all.grow(block.size());
        }
        if let Some(holders) = &mut self.heap {
            let bytes = block.size();
            holders.large_allocated(LibcBlock { addr, bytes }, block.tally);
        }
        self.threads.set(tid, addr);
    }

    /// A block is there of which a mapping told: what was known of its address ended unseen. Or one that is known has another size.
    fn mapped(&mut self, found: LibcBlock, whose: Option<Block>, all: &mut HighWater) {
        let known = || self.live.libc_block(found.addr);
        let Some(block) = whose.or_else(|| Some(known()?.resized(found.bytes))) else {
            return;
        };
        // An event that is as new has told of what is there.
        if whose.is_some() && self.live.is_newer(found.addr, block) {
            return;
        }
        if let Some(before) = self.live.insert(found.addr, block) {
            self.release(before, Temporary::No, all);
        }
        if let Some(tally) = self.tallies.get_mut(block.tally as usize) {
            if whose.is_some() {
                tally.mapped.bytes = tally.mapped.bytes.saturating_add(block.size());
                tally.mapped.count += 1;
                tally.count_big(block.size());
            }
            tally.held.add(block.size(), &mut self.high_water);
            all.grow(block.size());
        }
    }

    /// Frees what is live at the address, if the kinds agree; gives the block that was freed.
    fn take(&mut self, tid: u32, addr: u64, kind: BlockKind, all: &mut HighWater) -> Option<Block> {
        if let Some(holders) = &mut self.heap {
            holders.large_freed(addr);
        }
        match self.live.free(addr, kind) {
            Freed::Block(block) => {
                let temporary = if self.threads.is_last(tid, addr) {
                    Temporary::Yes
                } else {
                    Temporary::No
                };
                self.release(block, temporary, all);
                let now = self.info.last_seen.unwrap_or_default();
                if self.heap.is_some()
                    && block.is_younger(YOUNG_NS, now)
                    && let Some(tally) = self.tallies.get_mut(block.tally as usize)
                {
                    tally.died_young = tally.died_young.saturating_add(block.size());
                }
                return Some(block);
            }
            Freed::Unmatched => self.unmatched_frees += 1,
            Freed::PassedOn => {}
            Freed::Stale(block) => {
                self.unmatched_frees += 1;
                self.stale_blocks += 1;
                self.release(block, Temporary::No, all);
            }
        }
        None
    }

    fn release(&mut self, block: Block, temporary: Temporary, all: &mut HighWater) {
        let Some(tally) = self.tallies.get_mut(block.tally as usize) else {
            return;
        };
        if temporary == Temporary::Yes {
            tally.temporary.bytes = tally.temporary.bytes.saturating_add(block.size());
            tally.temporary.count += 1;
        }
        tally.held.remove(block.size(), &mut self.high_water);
        all.shrink(block.size());
    }

    fn tally_of(&mut self, id: u64, stacks: &mut StackTable) -> TallyIndex {
        if let Some((last, index)) = self.last_stack
            && last == id
        {
            return index;
        }
        let known = self.ids.get(id);
        let index = known.unwrap_or_else(|| {
            let special = match id {
                stack_id::NO_PYTHON => Some(FrameTable::NO_PYTHON),
                stack_id::UNREADABLE => Some(FrameTable::UNREADABLE),
                _ => None,
            };
            let stack = special.map(|frame| stacks.intern(&[frame]).unwrap_or(stacks.overflow()));
            self.new_tally(id, stack)
        });
        self.last_stack = Some((id, index));
        index
    }

    fn new_tally(&mut self, id: u64, stack: Option<StackId>) -> TallyIndex {
        self.last_stack = None;
        if let Some(index) = stack.and_then(|stack| self.ids.of_stack(stack)) {
            self.ids.insert(id, index);
            return index;
        }
        // No memory holds so many; if it did, what is beyond would belong to no tally.
        let index = u32::try_from(self.tallies.len()).unwrap_or(u32::MAX);
        self.tallies.push(StackTally {
            stack,
            ..StackTally::default()
        });
        self.ids.insert(id, index);
        if let Some(stack) = stack {
            self.ids.set_stack(stack, index);
        }
        index
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temporary {
    Yes,
    No,
}

/// Who holds less than one part in so many of the large blocks that it was seen to allocate is not who makes the heap grow. (A list
/// that grows by appending has allocated nine times what it holds.)
const DROPPED: u64 = 30;

impl StackTally {
    fn count_big(&mut self, block: u64) {
        if block >= BIG_CHUNK {
            self.big = self.big.saturating_add(block);
        }
    }

    /// What it does with the large blocks that it allocates.
    pub(super) fn large_use(&self) -> LargeUse {
        let seen = self.sampled.bytes.saturating_add(self.mapped.bytes);
        if seen == 0 {
            LargeUse::None
        } else if self.held.now().bytes < self.sampled.bytes / DROPPED
            && self.died_young > self.sampled.bytes / 2
        {
            // What outlives a look and goes later fills a cache.
            LargeUse::Drops
        } else {
            LargeUse::Keeps {
                small: seen.saturating_sub(self.big),
                big: self.big,
            }
        }
    }

    /// What is held exactly, as far as it is resident, and what is estimated beside it.
    pub(super) fn held_in_all(&self) -> Held {
        let now = self.held.now();
        Held {
            bytes: (now.bytes.saturating_sub(self.estimated.untouched)).saturating_add(self.estimated.bytes),
            count: now.count.saturating_add(self.estimated.count),
        }
    }

    /// All that was allocated, seen or not: of what was not, what was seen stands for, or mappings told of if that is more.
    pub(super) fn allocated_in_all(&self, scale: f64) -> Held {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded, positive, and far below 2^63"
        )]
        let unseen = |seen: u64| (seen as f64 * (scale - 1.0)).round() as u64;
        Held {
            bytes: (self.allocated.bytes).saturating_add(unseen(self.sampled.bytes).max(self.mapped.bytes)),
            count: (self.allocated.count).saturating_add(unseen(self.sampled.count).max(self.mapped.count)),
        }
    }

    /// `scale`: see [`ProcessState::scale`].
    pub(super) fn tally(&self, mark: &HighWater, mode: Mode, end: End, scale: f64) -> Tally {
        let allocated = self.allocated_in_all(scale);
        let (now, at_peak) = match mode {
            Mode::Allocs => (self.held.now(), self.held.at_peak(mark)),
            // What an interpreter frees while it exits is not read again.
            Mode::Heap if end != End::Running => (self.at_audit, self.at_peak),
            Mode::Heap => (self.held_in_all(), self.at_peak),
        };
        Tally {
            allocated_bytes: allocated.bytes,
            allocated_count: allocated.count,
            live_bytes: now.bytes,
            live_count: now.count,
            peak_bytes: at_peak.bytes,
            peak_count: at_peak.count,
            temporary_bytes: self.temporary.bytes,
            temporary_count: self.temporary.count,
            samples: self.estimated.samples,
            untouched_bytes: self.estimated.untouched,
        }
    }
}

impl LastAllocations {
    fn set(&mut self, tid: u32, addr: u64) {
        match &mut self.current {
            Some((current, last)) if *current == tid => *last = addr,
            current => {
                if let Some((other, last)) = current.replace((tid, addr)) {
                    self.others.insert(other, last);
                }
            }
        }
    }

    fn is_last(&self, tid: u32, addr: u64) -> bool {
        match self.current {
            Some((current, last)) if current == tid => last == addr,
            _ => self.others.get(&tid) == Some(&addr),
        }
    }
}
