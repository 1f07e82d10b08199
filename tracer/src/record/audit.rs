//! The truth check: now and then the used-block counts that the interpreter keeps in its pools are read and put into
//! the capture, where a report compares them with the blocks that the events leave alive.
//!
//! Apart from `reading`, which reads one process; here is decided when, of whom, and from where. Invariants: nothing is
//! judged here; a reading costs the owner a bounded time; an audit is written before any event that is later than it.

use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::site::group;

use super::{
    account::Account,
    attach::now,
    large,
    left_out::LeftOut,
    pages,
    pool_changes::Grown,
    pool_scan::Part,
    reading::{Gaps, Known, POOLS_IN_ALL, Reading, read},
    survey::{AFTER_WINDOW, survey},
    survivors::{self, Of},
    window::WORTH,
};
use crate::{
    capture::{Gap, ImageRecord},
    discover::{cpu_time, own_time},
    ingest::event::{AllocSite, BlockKind, Event, FaultKind, Realloc, same_start},
    mode::Mode,
    units::{ImageId, MonotonicNs, Pid, ProcAddr},
};

/// Headers read in one turn, after which the other processes wait for the next one: 1 GiB of pools. A header costs half a
/// microsecond to one, as each is in a page of its own; the ring holds what comes meanwhile many times over.
const HEADERS_PER_TURN: usize = 1 << 16;
/// Headers read in the turn that ends a recording.
const HEADERS_AT_END: usize = 1 << 20;
/// Larger requests are not served from pools.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L157>
const SMALL_REQUEST_THRESHOLD: u64 = 512;
/// Age of a process at its first audit. The time between two doubles from there to the interval, so that short lives
/// are audited too.
const FIRST: Duration = Duration::from_secs(1);
/// The same in heap mode, where an unread heap is an unknown one.
const FIRST_OF_HEAP: Duration = Duration::from_millis(200);
/// Heap mode reads more often than that, as its figures are from these readings: after so many parts of an age.
const AGES: u32 = 8;

/// Which processes are audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Those whose time has come.
    Due,
    /// All, at the end of the recording.
    All,
}

/// Knows where each process was seen to have pool blocks.
pub(super) struct Auditor {
    mode: Mode,
    /// Zero: never.
    interval: Duration,
    processes: FxHashMap<Pid, Known>,
    /// Where the last block was: the next one is often beside it.
    last: (Pid, Part),
    problem: Option<String>,
    /// Blocks that came into use, and addresses at which sampling windows saw an allocation, since somebody asked.
    grown: Grown,
    sampled: u64,
    account: Account,
    /// What is not traced.
    gaps: Gaps,
    /// How many more large blocks are remembered, of all processes.
    room: usize,
    /// What limits left out, without what they leave out of processes that run.
    left_out: LeftOut,
}

impl Auditor {
    pub(super) fn new(mode: Mode, interval: Duration) -> Self {
        Self {
            mode,
            interval,
            processes: FxHashMap::default(),
            last: (Pid(0), Part::of(ProcAddr(0))),
            problem: None,
            grown: Grown::default(),
            sampled: 0,
            account: Account::of_readings(),
            gaps: Gaps::default(),
            room: large::MOST_IN_ALL,
            left_out: LeftOut::default(),
        }
    }

    /// What limits left out so far, each from the first time on.
    pub(super) fn left_out(&self, now: MonotonicNs) -> Vec<Gap> {
        let mut all = self.left_out;
        for known in self.processes.values() {
            all.add(&known.left_out());
        }
        all.gaps(now)
    }

    /// Images that traced processes run.
    pub(super) fn images(&self) -> FxHashSet<ImageId> {
        self.processes.values().map(|known| known.image).collect()
    }

    /// Blocks that came into use, as far as readings tell.
    pub(super) fn grown(&self) -> Grown {
        self.grown
    }

    /// Counts anew what [`Auditor::grown`] tells; addresses at which sampling windows saw an allocation since the last time.
    pub(super) fn start_anew(&mut self) -> u64 {
        self.grown = Grown::default();
        std::mem::take(&mut self.sampled)
    }

    /// A sampling window is over in which this process was hit, and which the budget may have cut short: what is left of the blocks that
    /// were seen in it is to be read soon.
    pub(super) fn window_closed(&mut self, pid: Pid, now: MonotonicNs, was_cut: bool) {
        let most = survivors::MOST_IN_ALL / self.processes.len().max(1);
        if let Some(known) = self.processes.get_mut(&pid) {
            let due = later(now, AFTER_WINDOW);
            known.after_window = Some(due);
            known.wake(due);
            known.survivors.window_over(now, was_cut, most);
            if std::mem::take(&mut known.refilled) >= WORTH {
                known.looks.begin(now);
            }
        }
    }

    /// The next reading of each process tells of all its pools.
    pub(super) fn tell_all_anew(&mut self) {
        for known in self.processes.values_mut() {
            known.pools.clear();
        }
    }

    /// Looks whether processes work of which nothing was told; once a second.
    pub(super) fn look_for_work(&mut self) {
        for (&pid, known) in &mut self.processes {
            known.look(|| cpu_time(pid));
        }
    }

    fn first(&self) -> Duration {
        match self.mode {
            Mode::Allocs => FIRST,
            Mode::Heap => FIRST_OF_HEAP,
        }
    }

    /// What kept audits from being made, told once.
    pub(super) fn take_problem(&mut self) -> Option<String> {
        self.problem.take()
    }

    /// Learns from an event that goes into the capture.
    #[inline]
    pub(super) fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Alloc(alloc) if alloc.kind == BlockKind::Pool => {
                self.block(alloc.pid, alloc.addr, alloc.time);
                if self.mode == Mode::Heap {
                    let is_sample = alloc.site == AllocSite::Copy;
                    if let Some(known) = self.processes.get_mut(&alloc.pid) {
                        known.wake(later(alloc.time, self.interval));
                        if is_sample {
                            self.sampled +=
                                u64::from(known.survivors.add(alloc.addr, alloc.size, alloc.time));
                        }
                    }
                }
            }
            Event::Realloc(realloc) => self.realloc(realloc),
            Event::Alloc(alloc) if self.mode == Mode::Heap && alloc.kind == BlockKind::Raw => {
                if let Some(known) = self.processes.get_mut(&alloc.pid) {
                    known.wake(later(alloc.time, self.interval));
                    known.large_block(alloc.addr, alloc.size.get(), alloc.time, &mut self.room);
                }
            }
            Event::Free(free) if self.mode == Mode::Heap => {
                if let Some(known) = self.processes.get_mut(&free.pid) {
                    known.large_gone(free.addr, &mut self.room);
                }
            }
            Event::Fault(fault) => {
                let most = pages::MOST_IN_ALL / self.processes.len().max(1);
                if let Some(known) = self.processes.get_mut(&fault.pid) {
                    if self.gaps.pools {
                        known.touched(Part::of(fault.addr));
                    }
                    match fault.kind {
                        FaultKind::Touch => known.pages.touched(fault, most),
                        FaultKind::Mapping => {
                            known.wake(later(fault.time, self.interval));
                            known.mapped.add(fault);
                            known.pages.mapped(fault);
                        }
                        FaultKind::Room => known.pages.mapped(fault),
                    }
                }
            }
            Event::Process(process) => {
                self.last = (Pid(0), Part::of(ProcAddr(0)));
                if let Some(known) = self.processes.get_mut(&process.pid)
                    && same_start(known.start, process.start)
                {
                    known.start = process.start;
                    return;
                }
                let due = later(process.time, self.first().min(self.interval));
                let known = Known::new(process, due, self.gaps);
                if let Some(before) = self.processes.insert(process.pid, known) {
                    self.left_out.add(&before.left_out());
                }
            }
            Event::Gone(gone) => {
                if let Some(known) = self.processes.remove(&gone.pid) {
                    self.left_out.add(&known.left_out());
                }
            }
            _ => {}
        }
    }

    fn realloc(&mut self, realloc: &Realloc) {
        let is_small = realloc.requested.get() <= SMALL_REQUEST_THRESHOLD;
        // Some of these are blocks of libc's malloc; then there is no pool around.
        if realloc.kind == BlockKind::Any && is_small {
            self.block(realloc.pid, realloc.addr, realloc.time);
        }
        if self.mode == Mode::Heap
            && let Some(known) = self.processes.get_mut(&realloc.pid)
        {
            if let Some(old) = realloc.old {
                known.large_gone(old, &mut self.room);
            }
            let may_be_raw = realloc.kind == BlockKind::Raw || realloc.kind == BlockKind::Any && !is_small;
            if may_be_raw {
                let size = realloc.raw_size.get();
                known.large_block(realloc.addr, size, realloc.time, &mut self.room);
            }
        }
    }

    /// A group of sites is not traced from here on, or was not up to now.
    pub(super) fn gap(&mut self, group: u32, begins: bool) {
        let of = |gaps: &mut Gaps, is_off: bool| match group {
            group::POOLS => gaps.pools = is_off,
            group::LARGE => gaps.large = is_off,
            _ => {}
        };
        of(&mut self.gaps, begins);
        for known in self.processes.values_mut() {
            of(&mut known.gaps, true);
        }
    }

    #[inline]
    fn block(&mut self, pid: Pid, addr: ProcAddr, time: MonotonicNs) {
        let part = Part::of(addr);
        if self.last == (pid, part) {
            return;
        }
        self.last = (pid, part);
        if let Some(known) = self.processes.get_mut(&pid) {
            known.block(part, time);
        }
    }

    /// When the blocks of a sampling window are to be looked at.
    pub(super) fn next_look(&self) -> Option<MonotonicNs> {
        self.processes
            .values()
            .filter_map(|known| known.looks.due())
            .min()
    }

    /// What readings may take until now.
    fn earn(&mut self, now: MonotonicNs) {
        self.account.share_of_readings(self.processes.len());
        self.account.grow(now);
    }

    /// Looks at the blocks of the newest window whose time has come. The same rules hold as for [`Auditor::run`].
    pub(super) fn look(&mut self, images: &[ImageRecord]) -> Vec<Reading> {
        let turn = now();
        self.earn(turn);
        let mut surveys = Vec::new();
        for (&pid, known) in &mut self.processes {
            if known.looks.due().is_none_or(|due| due > turn) {
                continue;
            }
            known.looks.done(turn);
            let image = images.iter().find(|image| image.id == known.image);
            // What cannot be paid is left out: the next reading looks at it.
            if let Some(image) = image.filter(|_| !self.account.is_empty()) {
                let before = own_time();
                // One that is gone has said so in the ring, and of one that cannot be read the next reading tells.
                let found = survey(pid, known, Of::NewestWindow, image.pool_bytes);
                self.account.pay(own_time().saturating_sub(before));
                surveys.extend(found.ok().flatten().map(Reading::Survey));
            }
        }
        surveys
    }

    /// Makes the audits whose time has come. Every event handed to [`Auditor::event`] so far was made before they
    /// begin; none may be written between that and the audits.
    pub(super) fn run(&mut self, which: Which, images: &[ImageRecord]) -> Vec<Reading> {
        if self.interval.is_zero() {
            return Vec::new();
        }
        let turn = now();
        self.earn(turn);
        let remembered = self.processes.values().map(|known| known.large.len()).sum();
        self.room = large::MOST_IN_ALL.saturating_sub(remembered);
        let mut pools: usize = self.processes.values().map(|known| known.pools.len()).sum();
        let mut due: Vec<(MonotonicNs, Pid)> = self
            .processes
            .iter()
            .filter(|(_, known)| which == Which::All || known.due <= turn)
            .map(|(&pid, known)| (known.due, pid))
            .collect();
        due.sort_unstable();
        let limit = match which {
            Which::Due => HEADERS_PER_TURN,
            Which::All => HEADERS_AT_END,
        };
        let (mut audits, mut headers) = (Vec::new(), 0);
        for (_, pid) in due {
            let Some(known) = self.processes.get_mut(&pid) else {
                continue;
            };
            if headers >= limit {
                if which == Which::Due {
                    break;
                }
                let since = known.last_read.unwrap_or(known.first_seen);
                self.left_out.heaps.add(1, since);
                continue;
            }
            let Some(image) = images.iter().find(|image| image.id == known.image) else {
                continue;
            };
            let is_new = known.since_start.is_none();
            if which == Which::Due && self.mode == Mode::Heap && self.account.is_empty() && !is_new {
                continue;
            }
            let before = own_time();
            pools -= known.pools.len();
            let room = POOLS_IN_ALL.saturating_sub(pools + known.pools.len());
            let made = read(pid, known, image, self.mode, room, &mut self.room);
            pools += known.pools.len();
            known.last_read = Some(turn);
            known.gaps = self.gaps;
            self.account.pay(own_time().saturating_sub(before));
            let age = Duration::from_nanos(turn.get().saturating_sub(known.first_seen.get()));
            let wait = match self.mode {
                Mode::Allocs => self.interval.min(age.max(FIRST)),
                Mode::Heap => self.interval.min((age / AGES).max(FIRST_OF_HEAP * 2)),
            };
            known.due_at_work = later(turn, wait);
            known.due = later(turn, wait * (1 << known.quiet));
            // One that was made before its time does not take the place of the one behind a window.
            match known.after_window.filter(|&after| turn < after) {
                Some(after) => known.due = known.due.min(after),
                None => known.after_window = None,
            }
            match made {
                Ok(Some(made)) => {
                    headers += made.headers;
                    self.grown.refilled += made.grown.refilled;
                    known.refilled += made.grown.refilled;
                    self.grown.first += made.grown.first;
                    audits.extend(made.survey.map(Reading::Survey));
                    audits.push(made.reading);
                }
                Ok(None) => {}
                // It is gone, and has said so in the ring.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => {}
                Err(error) => {
                    let problem = format!("no audit of process {pid}, whose memory cannot be read: {error}");
                    self.problem.get_or_insert(problem);
                }
            }
        }
        // Parts without a pool were forgotten; the next block in one must be noted again.
        self.last = (Pid(0), Part::of(ProcAddr(0)));
        audits
    }
}

pub(super) fn later(time: MonotonicNs, by: Duration) -> MonotonicNs {
    MonotonicNs(
        time.get()
            .saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
    )
}
