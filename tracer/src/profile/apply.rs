//! The profile: consumes events in order, keeps one state per process, gives snapshots.
//!
//! Apart from `process`: here is decided which process an event belongs to, and what frames and stacks are
//! shared. Invariant: events of different processes do not touch each other, but for the mark of all
//! processes together.

use rustc_hash::FxHashMap;
use tracer_ebpf::reason::REASONS;

use super::{
    audit::PoolAudit,
    context::Context,
    high_water::HighWater,
    info::{End, ProcessInfo, ProcessKey},
    process::ProcessState,
    stacks::StackTable,
};
use crate::{
    ingest::{
        HeapAudit, Survey,
        event::{self, Counters, Event, Gone, GoneReason},
    },
    mode::Mode,
    symbolize::{FrameId, FrameTable, Memory},
    units::{BootNs, MonotonicNs, Pid},
};

/// Bounds of a profile's tables. What does not fit is shown as `[too many frames]` and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProfileSettings {
    /// Distinct frames (function, file, line).
    pub max_frames: usize,
    /// Nodes of the tree of stacks.
    pub max_stack_nodes: usize,
}

impl Default for ProfileSettings {
    fn default() -> Self {
        Self {
            max_frames: 1 << 20,
            max_stack_nodes: 1 << 23,
        }
    }
}

/// A group of sites was off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupGap {
    /// One of [`tracer_ebpf::site::group`].
    pub group: u32,
    /// When it was taken off.
    pub from: MonotonicNs,
    /// When it was put back; `None` while it is off.
    pub to: Option<MonotonicNs>,
}

/// A time in which every allocation of a process at the addresses of a sample was told of (heap mode).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SamplingWindow {
    /// When it began.
    pub(super) from: MonotonicNs,
    /// When it ended.
    pub(super) to: MonotonicNs,
    /// One address in so many is in the sample.
    pub(super) one_in: u32,
    pub(super) work: Work,
    /// When the process was first seen.
    pub(super) since: MonotonicNs,
}

/// Processor time of a process, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// What it had used at the start of a window.
    pub before: u64,
    /// What it used in it,
    pub used: u64,
    /// ... and how much of that its hits took.
    pub hits: u64,
}

/// Aggregates events. See the module.
pub struct Profile {
    pub(super) settings: ProfileSettings,
    pub(super) context: Context,
    pub(super) frames: FrameTable,
    pub(super) stacks: StackTable,
    pub(super) processes: Vec<ProcessState>,
    /// Processes that are gone and were too many, as one, and how many they are.
    pub(super) folded: Option<(Box<ProcessState>, u64)>,
    pub(super) all: HighWater,
    pub(super) mode: Mode,
    /// Groups of sites that are off (heap mode).
    gaps: Vec<GroupGap>,
    pub(super) host_losses: [u64; REASONS],
    pub(super) decode_problems: u64,
    pub(super) truncated: Option<String>,
    pub(super) times: Option<(MonotonicNs, MonotonicNs)>,
    /// The newest process of each pid, running or gone.
    by_pid: FxHashMap<Pid, usize>,
    /// The process of the last event: the next one is often of the same.
    last: Option<(Pid, usize)>,
    memory: Option<Box<dyn Memory + Send>>,
    /// Scratch for the stack that is being resolved.
    resolved: Vec<FrameId>,
}

impl Profile {
    /// An empty profile.
    pub fn new(settings: ProfileSettings) -> Self {
        Self {
            settings,
            context: Context::default(),
            frames: FrameTable::new(settings.max_frames),
            stacks: StackTable::new(settings.max_stack_nodes),
            processes: Vec::new(),
            folded: None,
            all: HighWater::default(),
            mode: Mode::Allocs,
            gaps: Vec::new(),
            host_losses: [0; REASONS],
            decode_problems: 0,
            truncated: None,
            times: None,
            by_pid: FxHashMap::default(),
            last: None,
            memory: None,
            resolved: Vec::new(),
        }
    }

    /// Gives a way into the memory of processes that still run, for line tables that the kernel side could not read.
    pub fn set_memory(&mut self, memory: Box<dyn Memory + Send>) {
        self.memory = Some(memory);
    }

    /// What the events are about. To be said before the first of them.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// What is known about the recording; the newest one counts.
    pub fn set_context(&mut self, context: Context) {
        self.context = context;
    }

    /// The kernel side's counters of a process, as they were read while it ran. Without effect if it is known
    /// to have ended since: its last ones came with its end.
    pub fn set_counters(&mut self, pid: Pid, start: BootNs, counters: Counters) {
        let has_ended = |process: &ProcessState| {
            process.info.key.pid == pid
                && process.info.key.start == Some(start)
                && process.info.end != End::Running
        };
        let newest = self.by_pid.get(&pid).and_then(|&index| self.processes.get(index));
        if newest.is_some_and(has_ended) || (newest.is_none() && self.processes.iter().any(has_ended)) {
            return;
        }
        let index = self.index_of(pid);
        if let Some(process) = self.processes.get_mut(index) {
            process.counters = Some(counters);
        }
    }

    /// Whether this process is known and was not seen to end.
    pub fn is_running(&self, pid: Pid, start: BootNs) -> bool {
        let newest = self.by_pid.get(&pid).and_then(|&index| self.processes.get(index));
        newest.is_some_and(|process| process.is_running() && process.info.key.start == Some(start))
    }

    /// What the pools of a process held. To be given before any event that is later; it is compared with what the events
    /// up to its time leave alive. Without effect if the process is not known, or has ended.
    pub fn audit(&mut self, audit: PoolAudit) {
        let running = self.by_pid.get(&audit.pid).copied();
        if let Some(process) = running.and_then(|index| self.processes.get_mut(index))
            && process.is_running()
            && process.info.key.start == Some(audit.start)
        {
            process.audit(audit);
        }
    }

    /// What the heap of a process looks like. The same rules hold as for an audit.
    pub fn heap_audit(&mut self, audit: HeapAudit) {
        let running = self.by_pid.get(&audit.pid).copied();
        if let Some(process) = running.and_then(|index| self.processes.get_mut(index))
            && process.is_running()
            && process.info.key.start == Some(audit.start)
        {
            process.heap_audit(audit);
        }
    }

    /// Which of a process's sampled blocks are gone. The same rules hold as for an audit.
    pub fn survey(&mut self, survey: &Survey) {
        let running = self.by_pid.get(&survey.pid).copied();
        if let Some(process) = running.and_then(|index| self.processes.get_mut(index))
            && process.is_running()
            && process.info.key.start == Some(survey.start)
        {
            process.survey(survey);
        }
    }

    /// A group of sites is off, or was up to now: what is known of its blocks may not be true any more.
    pub fn gap(&mut self, gap: GroupGap) {
        if self.mode != Mode::Heap {
            return;
        }
        for process in &mut self.processes {
            process.gap(&gap, &mut self.all);
        }
        self.gaps.retain(|open| open.group != gap.group);
        if gap.to.is_none() {
            self.gaps.push(gap);
        }
    }

    /// In heap mode, every allocation at one address in `one_in` was told of in this time. `work`: what a process did in it, if it was
    /// hit.
    pub fn window(
        &mut self,
        from: MonotonicNs,
        to: MonotonicNs,
        one_in: u32,
        work: impl Fn(Pid, Option<BootNs>) -> Option<Work>,
    ) {
        for process in self.processes.iter_mut().filter(|process| process.is_running()) {
            if let Some(work) = work(process.info.key.pid, process.info.key.start) {
                process.window(SamplingWindow {
                    from,
                    to,
                    one_in,
                    work,
                    since: process.info.first_seen.unwrap_or_default(),
                });
            }
        }
    }

    /// There are no more events: audits that still waited for some are compared with what lives now.
    pub fn finish(&mut self) {
        for process in &mut self.processes {
            process.before(MonotonicNs(u64::MAX), &mut self.stacks, &mut self.all);
        }
    }

    /// Losses that belong to no process (table full, unknown site), by the number of the reason.
    pub fn set_host_losses(&mut self, losses: [u64; REASONS]) {
        self.host_losses = losses;
    }

    /// Records that could not be decoded.
    pub fn add_decode_problems(&mut self, count: u64) {
        self.decode_problems = self.decode_problems.saturating_add(count);
    }

    /// The capture ends early, and why: every report will say so.
    pub fn set_truncated(&mut self, why: impl Into<String>) {
        self.truncated = Some(why.into());
    }

    /// Takes the next event. The events of one process must come in their order.
    pub fn apply(&mut self, event: &Event<'_>) {
        match event {
            Event::Alloc(alloc) => {
                self.seen_at(alloc.time);
                let index = self.index_of(alloc.pid);
                if let Some(process) = self.processes.get_mut(index) {
                    process.before(alloc.time, &mut self.stacks, &mut self.all);
                    process.info.last_seen = Some(alloc.time);
                    process.alloc(alloc, &mut self.stacks, &mut self.all);
                }
            }
            Event::Free(free) => {
                self.seen_at(free.time);
                let index = self.index_of(free.pid);
                if let Some(process) = self.processes.get_mut(index) {
                    process.before(free.time, &mut self.stacks, &mut self.all);
                    process.info.last_seen = Some(free.time);
                    process.free(free, &mut self.all);
                }
            }
            Event::Realloc(realloc) => {
                self.seen_at(realloc.time);
                let index = self.index_of(realloc.pid);
                if let Some(process) = self.processes.get_mut(index) {
                    process.before(realloc.time, &mut self.stacks, &mut self.all);
                    process.info.last_seen = Some(realloc.time);
                    process.realloc(realloc, &mut self.stacks, &mut self.all);
                }
            }
            Event::Fault(fault) => {
                self.seen_at(fault.time);
                let index = self.index_of(fault.pid);
                if let Some(process) = self.processes.get_mut(index) {
                    process.before(fault.time, &mut self.stacks, &mut self.all);
                    process.info.last_seen = Some(fault.time);
                    process.fault(fault, &mut self.stacks);
                }
            }
            Event::Stack(stack) => self.stack(stack),
            Event::Code(code) => {
                let index = self.index_of(code.pid);
                if let Some(process) = self.processes.get_mut(index) {
                    process.info.version_hex.get_or_insert(code.version_hex);
                    process.symbolizer.code(code, &mut self.frames);
                }
            }
            Event::LineTable(piece) => {
                let index = self.index_of(piece.pid);
                if let Some(process) = self.processes.get_mut(index) {
                    process.symbolizer.line_table(piece);
                }
            }
            Event::Process(process) => self.process(process),
            Event::Gone(gone) => self.gone(gone),
        }
    }

    fn stack(&mut self, stack: &event::Stack<'_>) {
        let index = self.index_of(stack.pid);
        let Some(process) = self.processes.get_mut(index) else {
            return;
        };
        let memory = self.memory.as_deref_mut().map(|memory| memory as &mut dyn Memory);
        process
            .symbolizer
            .stack(stack, &mut self.frames, memory, &mut self.resolved);
        let id = self
            .stacks
            .intern(&self.resolved)
            .unwrap_or(self.stacks.overflow());
        process.stack(stack.id.0, id);
    }

    fn process(&mut self, event: &event::Process<'_>) {
        self.seen_at(event.time);
        let seen = ProcessInfo::from_event(event);
        if let Some(&index) = self.by_pid.get(&event.pid)
            && let Some(known) = self.processes.get_mut(index)
            && known.is_running()
        {
            if known.info.absorb(&seen) {
                return;
            }
            // Its end was not delivered.
            known.end(End::Unseen, &mut self.all);
        }
        self.start(seen);
    }

    fn gone(&mut self, event: &Gone) {
        self.seen_at(event.time);
        let index = self.index_of(event.pid);
        let end = match event.reason {
            GoneReason::Exec => End::Exec,
            GoneReason::Exit => End::Exit,
        };
        if let Some(process) = self.processes.get_mut(index) {
            process.before(event.time, &mut self.stacks, &mut self.all);
            process.counters = Some(*event.counters);
            process.info.last_seen = Some(event.time);
            process.end(end, &mut self.all);
        }
        self.last = None;
    }

    /// The running process of this pid; one whose start was not seen, if there is none.
    fn index_of(&mut self, pid: Pid) -> usize {
        if let Some((last, index)) = self.last
            && last == pid
        {
            return index;
        }
        let running = self.by_pid.get(&pid).copied();
        let running =
            running.filter(|&index| self.processes.get(index).is_some_and(ProcessState::is_running));
        let index = running.unwrap_or_else(|| self.start(ProcessInfo::unseen(pid)));
        self.last = Some((pid, index));
        index
    }

    fn start(&mut self, mut info: ProcessInfo) -> usize {
        let pid = info.key.pid;
        if let Some(before) = self.by_pid.get(&pid).and_then(|&index| self.processes.get(index)) {
            info.follow(&before.info);
        }
        let index = self.processes.len();
        let mut process = ProcessState::new(info, self.mode);
        let begin = process.info.first_seen;
        for open in &self.gaps {
            let from = begin.map_or(open.from, |begin| begin.max(open.from));
            process.gap(&GroupGap { from, ..*open }, &mut self.all);
        }
        self.processes.push(process);
        self.by_pid.insert(pid, index);
        self.last = None;
        index
    }

    /// Processes have other places now, or none.
    pub(super) fn forget_places(&mut self, places: &FxHashMap<usize, usize>) {
        self.last = None;
        self.by_pid.retain(|_, index| match places.get(index) {
            Some(place) => {
                *index = *place;
                true
            }
            None => false,
        });
    }

    fn seen_at(&mut self, time: MonotonicNs) {
        let (first, last) = self.times.get_or_insert((time, time));
        *first = (*first).min(time);
        *last = (*last).max(time);
    }
}

impl ProcessInfo {
    /// Sets the incarnation, knowing the process that had this pid before.
    fn follow(&mut self, before: &Self) {
        if self.key.start.is_none() && before.end == End::Exec {
            self.key.start = before.key.start;
        }
        if self.key.start == before.key.start {
            self.key = ProcessKey {
                incarnation: before.key.incarnation + 1,
                ..self.key
            };
        }
    }
}
