//! What the files that follow need of those before: of each process that runs its own record, its code objects and stacks.
//!
//! The kernel side sends each of these once. Here the records are kept as they came, and what an event names is repeated
//! in front of it where the file does not have it yet, so that a file has what its own events name and nothing else.
//! Invariants: a stack is repeated only with the code objects that it was sent with, for an address is no identity; what
//! is kept is bounded, and what was given up is counted.

use rustc_hash::FxHashMap;
use tracer_ebpf::record::stack_id;

use super::balance::Balance;
use crate::{
    capture::ProcessRecord,
    ingest::{
        decode::decode,
        encode::encode,
        event::{Counters, Event, Process, Stack},
    },
    units::{BootNs, MonotonicNs, Pid, ProcAddr, StackId},
};

/// Bytes of records kept of all processes together.
pub(super) const KEPT_BYTES: usize = 128 << 20;
/// Bytes by which a kept record costs more than its own, about.
const OVERHEAD: usize = 96;
/// Most records of its start kept of one process: one for each of its images.
const MAX_STARTS: usize = 4;
/// Longest records of one code object: what the kernel side sends, and the same once more from userspace.
const MAX_CODE_BYTES: usize = 256 << 10;

/// What is known of the processes that run.
#[derive(Debug)]
pub(super) struct Kept {
    processes: FxHashMap<Pid, Known>,
    /// The file that is being written; 0 before the first.
    file: u32,
    /// Of the newest event.
    time: MonotonicNs,
    /// Rises with every code object and stack, so that their order is known.
    clock: u64,
    bytes: usize,
    limit: usize,
    /// Whether anything was given up.
    gave_up: bool,
    missed: u64,
    /// The newest allocation's stack, if it is in the file: the next one often has the same.
    last: Option<(Pid, StackId)>,
    /// Processes whose records were repeated, and whose description is still to be.
    introduced: Vec<ProcessRecord>,
    scratch: Vec<ProcAddr>,
}

#[derive(Debug, Default)]
struct Known {
    start: Option<BootNs>,
    /// Records of its start.
    starts: Vec<Box<[u8]>>,
    described: Option<ProcessRecord>,
    /// The file in which it was first seen.
    first: u32,
    /// The newest file that has its start.
    in_file: u32,
    codes: FxHashMap<ProcAddr, Code>,
    stacks: FxHashMap<StackId, SentStack>,
    balance: Balance,
}

#[derive(Debug)]
struct Code {
    /// Its record, and those of its line table.
    records: Vec<u8>,
    /// Length of the first of them.
    own: usize,
    since: u64,
    in_file: u32,
}

#[derive(Debug)]
struct SentStack {
    record: Box<[u8]>,
    since: u64,
    in_file: u32,
}

impl Kept {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            processes: FxHashMap::default(),
            file: 0,
            time: MonotonicNs(0),
            clock: 0,
            bytes: 0,
            limit,
            gave_up: false,
            missed: 0,
            last: None,
            introduced: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// A file begins, in which there is nothing yet.
    pub(super) fn begin(&mut self, file: u32) {
        self.file = file;
        self.last = None;
        self.introduced.clear();
    }

    /// How often a stack was named that had to be given up. The kernel side forgets too, and sends what it forgot
    /// again: so this is rare.
    pub(super) fn missed(&self) -> u64 {
        self.missed
    }

    /// Descriptions that belong to what was repeated.
    pub(super) fn take_introduced(&mut self) -> Vec<ProcessRecord> {
        std::mem::take(&mut self.introduced)
    }

    /// Userspace's description of a process.
    pub(super) fn describe(&mut self, process: &ProcessRecord) {
        if let Some(known) = self.processes.get_mut(&process.pid) {
            known.described = Some(process.clone());
        }
    }

    /// Whether blocks of it can be from an earlier file.
    pub(super) fn is_older(&self, pid: Pid) -> bool {
        self.processes
            .get(&pid)
            .is_some_and(|known| known.first < self.file)
    }

    /// The file ends: what it accounts for, of each process that runs and did something.
    pub(super) fn close(&mut self) -> Vec<(Pid, BootNs, Counters)> {
        let file = self.file;
        let mut closed: Vec<_> = self
            .processes
            .iter_mut()
            .map(|(&pid, known)| {
                let of_file = known.balance.close();
                let start = known.start.unwrap_or(BootNs(0));
                (pid, start, of_file, known.in_file == file)
            })
            .filter(|(.., of_file, in_file)| *in_file || *of_file != Counters::default())
            .map(|(pid, start, of_file, _)| (pid, start, of_file))
            .collect();
        closed.sort_unstable_by_key(|(pid, ..)| *pid);
        closed
    }

    /// Whether the file has this process.
    pub(super) fn is_in_file(&self, pid: Pid) -> bool {
        self.processes
            .get(&pid)
            .is_some_and(|known| known.in_file == self.file)
    }

    /// Appends what the file needs in front of anything about this process.
    pub(super) fn mention(&mut self, pid: Pid, out: &mut Vec<u8>) {
        self.introduce(pid, self.time, out);
    }

    /// The counts of a process, if it is the one that is meant.
    pub(super) fn balance(&mut self, pid: Pid, start: BootNs) -> Option<&mut Balance> {
        self.processes
            .get_mut(&pid)
            .filter(|known| known.start.is_none_or(|own| own == start))
            .map(|known| &mut known.balance)
    }

    /// Appends what the file needs in front of this event, and the event's record as this file is to have it. Does the
    /// same again if it is asked again, unless another file was begun.
    pub(super) fn write(&mut self, event: &Event<'_>, record: &[u8], out: &mut Vec<u8>) {
        let pid = event.pid();
        let time = time_of(event).unwrap_or(self.time);
        match event {
            Event::Alloc(alloc) => self.name(pid, alloc.stack, time, out),
            Event::Realloc(realloc) => self.name(pid, realloc.stack, time, out),
            Event::Fault(fault) => self.name(pid, fault.stack, time, out),
            // Another image of the same program.
            Event::Process(process) if self.processes.get(&pid).is_some_and(|known| known.is(process)) => {
                self.introduce(pid, time, out);
            }
            Event::Process(_) => {}
            Event::Gone(gone) => {
                self.introduce(pid, time, out);
                let mut gone = gone.clone();
                if let Some(known) = self.processes.get(&pid) {
                    *gone.counters = known.balance.since(&gone.counters);
                }
                encode(&Event::Gone(gone), out);
                return;
            }
            Event::Stack(stack) => {
                self.introduce(pid, time, out);
                self.codes_of(stack, u64::MAX, out);
            }
            Event::Free(_) | Event::Code(_) | Event::LineTable(_) => self.introduce(pid, time, out),
        }
        out.extend_from_slice(record);
    }

    /// The event was written: keeps what later files need of it. To be called once for each event.
    pub(super) fn learn(&mut self, event: &Event<'_>, record: &[u8]) {
        let (pid, file) = (event.pid(), self.file);
        match event {
            Event::Process(process) => self.start(process, record),
            Event::Gone(gone) => {
                self.last = None;
                self.time = gone.time;
                if let Some(known) = self.processes.remove(&pid) {
                    self.bytes = self.bytes.saturating_sub(known.bytes());
                }
            }
            Event::Alloc(alloc) => {
                self.time = alloc.time;
                self.known(pid).balance.delivered.allocs += 1;
            }
            Event::Free(free) => {
                self.time = free.time;
                self.known(pid).balance.delivered.frees += 1;
            }
            Event::Realloc(realloc) => {
                self.time = realloc.time;
                self.known(pid).balance.delivered.reallocs += 1;
            }
            Event::Fault(fault) => {
                self.time = fault.time;
                self.known(pid).balance.delivered.faults += 1;
            }
            Event::Code(code) => {
                self.clock += 1;
                let clock = self.clock;
                let known = self.known(pid);
                let same = known
                    .codes
                    .get(&code.code)
                    .filter(|old| old.records.get(..old.own) == Some(record))
                    .map(|old| old.since);
                let kept = Code {
                    records: record.to_vec(),
                    own: record.len(),
                    since: same.unwrap_or(clock),
                    in_file: file,
                };
                let replaced = known.codes.insert(code.code, kept).map_or(0, |old| old.bytes());
                self.bytes = (self.bytes + record.len() + OVERHEAD).saturating_sub(replaced);
                self.shrink();
            }
            Event::LineTable(piece) => {
                if let Some(code) = self.known(pid).codes.get_mut(&piece.code)
                    && code.records.len() + record.len() <= MAX_CODE_BYTES
                {
                    code.records.extend_from_slice(record);
                    self.bytes += record.len();
                    self.shrink();
                }
            }
            Event::Stack(stack) => {
                self.clock += 1;
                let kept = SentStack {
                    record: record.into(),
                    since: self.clock,
                    in_file: file,
                };
                let replaced = self
                    .known(pid)
                    .stacks
                    .insert(stack.id, kept)
                    .map_or(0, |old| old.bytes());
                self.bytes = (self.bytes + record.len() + OVERHEAD).saturating_sub(replaced);
                self.shrink();
            }
        }
    }

    fn known(&mut self, pid: Pid) -> &mut Known {
        let file = self.file;
        self.processes.entry(pid).or_insert_with(|| Known {
            first: file,
            in_file: file,
            ..Known::default()
        })
    }

    fn start(&mut self, process: &Process<'_>, record: &[u8]) {
        let file = self.file;
        let known = self.processes.entry(process.pid).or_default();
        if !known.is(process) {
            // The end of the one before was not delivered.
            self.bytes = self.bytes.saturating_sub(known.bytes());
            *known = Known::default();
            self.last = None;
        }
        known.start = Some(process.start);
        known.in_file = file;
        if known.first == 0 {
            known.first = file;
        }
        if known.starts.len() < MAX_STARTS {
            known.starts.push(record.into());
            self.bytes += record.len() + OVERHEAD;
        }
    }

    /// Repeats a stack that an allocation names.
    fn name(&mut self, pid: Pid, id: StackId, time: MonotonicNs, out: &mut Vec<u8>) {
        if self.last == Some((pid, id)) {
            return;
        }
        self.introduce(pid, time, out);
        self.last = Some((pid, id));
        if id.get() < stack_id::FIRST_HASH {
            return;
        }
        let file = self.file;
        let Some(sent) = self
            .processes
            .get_mut(&pid)
            .and_then(|known| known.stacks.get_mut(&id))
        else {
            self.missed += u64::from(self.gave_up);
            return;
        };
        if sent.in_file == file {
            return;
        }
        sent.in_file = file;
        let (since, record) = (sent.since, std::mem::take(&mut sent.record));
        let repeated = match decode(&record) {
            Ok(Event::Stack(stack)) => self.codes_of(&stack, since, out),
            _ => false,
        };
        if repeated {
            out.extend_from_slice(&record);
        }
        if let Some(known) = self.processes.get_mut(&pid) {
            if repeated {
                if let Some(sent) = known.stacks.get_mut(&id) {
                    sent.record = record;
                }
            } else {
                // A code object of it is gone: what it meant can no longer be said, and it will not come again.
                known.stacks.remove(&id);
                self.bytes = self.bytes.saturating_sub(record.len() + OVERHEAD);
            }
        }
    }

    /// Repeats the code objects of a stack that was sent at `since`. `false`, and nothing, if another one has taken the
    /// place of one of them since.
    fn codes_of(&mut self, stack: &Stack<'_>, since: u64, out: &mut Vec<u8>) -> bool {
        let file = self.file;
        let Some(known) = self.processes.get_mut(&stack.pid) else {
            return true;
        };
        self.scratch.clear();
        for frame in stack.frames() {
            match known.codes.get(&frame.code) {
                Some(code) if code.since > since => return false,
                Some(code) if code.in_file != file && !self.scratch.contains(&frame.code) => {
                    self.scratch.push(frame.code);
                }
                _ => {}
            }
        }
        for address in &self.scratch {
            if let Some(code) = known.codes.get_mut(address) {
                code.in_file = file;
                out.extend_from_slice(&code.records);
            }
        }
        true
    }

    /// Repeats the start of a process, as of this time.
    fn introduce(&mut self, pid: Pid, time: MonotonicNs, out: &mut Vec<u8>) {
        let file = self.file;
        let Some(known) = self.processes.get_mut(&pid) else {
            return;
        };
        if known.in_file == file {
            return;
        }
        known.in_file = file;
        for record in &known.starts {
            if let Ok(Event::Process(process)) = decode(record) {
                let time = time.max(process.time);
                encode(&Event::Process(Process { time, ..process }), out);
            }
        }
        self.introduced.extend(known.described.clone());
    }

    /// Gives up what was used longest ago, until there is room again.
    fn shrink(&mut self) {
        if self.bytes <= self.limit {
            return;
        }
        let mut by_file = std::collections::BTreeMap::<u32, usize>::new();
        for known in self.processes.values() {
            for code in known.codes.values() {
                *by_file.entry(code.in_file).or_default() += code.bytes();
            }
            for stack in known.stacks.values() {
                *by_file.entry(stack.in_file).or_default() += stack.bytes();
            }
        }
        let wanted = self.bytes.saturating_sub(self.limit / 4 * 3);
        let (mut newest, mut freed) = (0, 0);
        for (file, bytes) in by_file {
            if freed >= wanted {
                break;
            }
            newest = file;
            freed += bytes;
        }
        self.gave_up = true;
        for known in self.processes.values_mut() {
            known.codes.retain(|_, code| code.in_file > newest);
            known.stacks.retain(|_, stack| stack.in_file > newest);
        }
        self.bytes = self.bytes.saturating_sub(freed);
    }
}

impl Known {
    /// Whether this is about the same program, as far as is known.
    fn is(&self, process: &Process<'_>) -> bool {
        let same = self.starts.first().is_none_or(|record| {
            matches!(decode(record), Ok(Event::Process(known))
                if known.comm == process.comm && known.command_line == process.command_line)
        });
        same && self.start.is_none_or(|start| start == process.start)
    }

    fn bytes(&self) -> usize {
        let starts = self.starts.iter().map(|record| record.len() + OVERHEAD);
        let codes = self.codes.values().map(Code::bytes);
        starts
            .chain(codes)
            .chain(self.stacks.values().map(SentStack::bytes))
            .sum()
    }
}

impl Code {
    fn bytes(&self) -> usize {
        self.records.len() + OVERHEAD
    }
}

impl SentStack {
    fn bytes(&self) -> usize {
        self.record.len() + OVERHEAD
    }
}

/// When an event happened, if it says so.
fn time_of(event: &Event<'_>) -> Option<MonotonicNs> {
    match event {
        Event::Alloc(event) => Some(event.time),
        Event::Free(event) => Some(event.time),
        Event::Realloc(event) => Some(event.time),
        Event::Fault(event) => Some(event.time),
        Event::Gone(event) => Some(event.time),
        Event::Process(event) => Some(event.time),
        Event::Code(_) | Event::LineTable(_) | Event::Stack(_) => None,
    }
}
