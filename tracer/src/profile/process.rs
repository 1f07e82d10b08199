//! One traced process while it runs: its live set, its tallies, its code objects, its counters.
//!
//! Apart from `apply`, which decides *which* process an event belongs to; here is what the event does to it.
//! Invariant: a block is in the live set exactly if its tally counts it as live.

mod fold;

use rustc_hash::FxHashMap;
use tracer_ebpf::record::stack_id;

use super::{
    audit::{AuditLog, Audits, PoolAudit},
    high_water::{Entry, Held, HighWater},
    info::{End, ProcessInfo},
    live::{Block, Freed, LiveSet, Owner, TallyIndex, reallocated},
    losses::{Losses, Operations},
    mimalloc,
    stack_ids::StackIds,
    stacks::{StackId, StackTable},
    tally::Tally,
};
use crate::{
    ingest::event::{Alloc, BlockKind, Counters, Free, Realloc},
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
    live: LiveSet,
    audits: AuditLog,
    ids: StackIds,
    /// The id and tally of the last allocation: the next one often has the same.
    last_stack: Option<(u64, TallyIndex)>,
    threads: LastAllocations,
}

/// What one stack id stands for, and what it did.
#[derive(Debug, Default)]
pub(super) struct StackTally {
    /// `None` until the stack arrives.
    pub(super) stack: Option<StackId>,
    allocated: Held,
    temporary: Held,
    held: Entry,
}

/// The last block that each thread allocated, if it did not free or lose it.
#[derive(Debug, Default)]
struct LastAllocations {
    current: Option<(u32, u64)>,
    others: FxHashMap<u32, u64>,
}

impl ProcessState {
    pub(super) fn new(info: ProcessInfo) -> Self {
        Self {
            info,
            symbolizer: Symbolizer::default(),
            counters: None,
            high_water: HighWater::default(),
            tallies: Vec::new(),
            delivered: Operations::default(),
            unmatched_frees: 0,
            stale_blocks: 0,
            live: LiveSet::default(),
            audits: AuditLog::default(),
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
            BlockKind::Mimalloc => (Owner::Mimalloc, mimalloc::occupied(event.size.0)),
            BlockKind::Pool | BlockKind::Any => (Owner::Pool, event.size.0),
        };
        let tally = self.tally_of(event.stack.0, stacks);
        self.add(event.tid.0, event.addr.0, Block::new(size, owner, tally), all);
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
        self.add(event.tid.0, event.addr.0, block, all);
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
        self.live.clear();
        self.audits.end();
        self.ids = StackIds::default();
        self.last_stack = None;
        self.threads = LastAllocations::default();
        self.symbolizer.forget_code();
    }

    /// The next event is of this time: what was audited before is compared with the blocks that live now.
    #[inline]
    pub(super) fn before(&mut self, time: MonotonicNs) {
        if self.audits.is_due(time) {
            self.audits.compare(time, self.live.pool_blocks());
        }
    }

    /// What its pools held, a little later than the last event so far.
    pub(super) fn audit(&mut self, audit: PoolAudit) {
        self.audits.add(audit);
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
            self.stale_blocks += 1;
            self.release(stale, Temporary::No, all);
        }
        if let Some(tally) = self.tallies.get_mut(block.tally as usize) {
            tally.allocated.bytes = tally.allocated.bytes.saturating_add(block.size());
            tally.allocated.count += 1;
            tally.held.add(block.size(), &mut self.high_water);
            all.grow(block.size());
        }
        self.threads.set(tid, addr);
    }

    /// Frees what is live at the address, if the kinds agree; gives the block that was freed.
    fn take(&mut self, tid: u32, addr: u64, kind: BlockKind, all: &mut HighWater) -> Option<Block> {
        match self.live.free(addr, kind) {
            Freed::Block(block) => {
                let temporary = if self.threads.is_last(tid, addr) {
                    Temporary::Yes
                } else {
                    Temporary::No
                };
                self.release(block, temporary, all);
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

impl StackTally {
    pub(super) fn tally(&self, mark: &HighWater) -> Tally {
        let (now, at_peak) = (self.held.now(), self.held.at_peak(mark));
        Tally {
            allocated_bytes: self.allocated.bytes,
            allocated_count: self.allocated.count,
            live_bytes: now.bytes,
            live_count: now.count,
            peak_bytes: at_peak.bytes,
            peak_count: at_peak.count,
            temporary_bytes: self.temporary.bytes,
            temporary_count: self.temporary.count,
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
