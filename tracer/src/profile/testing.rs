//! Builders of made-up events, so that a test reads as what happened.
//!
//! Shared by the tests of `profile` and `report`. A [`Story`] is a list of owned events of one or more
//! processes; a stack is written `main:1 work:2`, root first, and is sent before its first use.

use std::collections::HashSet;

use tracer_ebpf::{
    reason::{REASONS, Reason},
    site::group::GROUPS,
};

use super::{Context, Coverage, ImageInfo, Profile, ProfileSettings, Snapshot};
use crate::{
    ingest::event::{
        Alloc, AllocSite, BlockKind, Code, Counters, Event, Fault, FaultKind, Free, Gone, GoneReason,
        LineTable, Process, Realloc, Stack, StackEnd, Text, TextKind,
    },
    units::{BootNs, ByteCount, ImageId, MonotonicNs, Pid, ProcAddr, StackId, Tid},
};

/// 3.10: the format in which one table can give every line that a test asks for.
pub(crate) const VERSION: u32 = 0x030a_0df0;

/// Events, and what has been sent already.
#[derive(Default)]
pub(crate) struct Story {
    pub(crate) events: Vec<Event<'static>>,
    sent: HashSet<(u32, String)>,
    clock: u64,
    seed: u64,
}

/// Bytes that live as long as the test.
fn keep(bytes: Vec<u8>) -> &'static [u8] {
    Box::leak(bytes.into_boxed_slice())
}

fn text(text: &str) -> Text<'static> {
    Text {
        bytes: keep(text.as_bytes().to_vec()),
        kind: TextKind::Latin1,
        cut: false,
    }
}

/// A number for a name: any that is the same every time.
pub(crate) fn number(name: &str) -> u64 {
    name.bytes().fold(0x1000, |sum, byte| {
        sum.wrapping_mul(131).wrapping_add(u64::from(byte))
    })
}

impl Story {
    fn time(&mut self) -> MonotonicNs {
        self.clock += 1_000_000;
        MonotonicNs(self.clock)
    }

    /// A process with this command line starts.
    pub(crate) fn process(&mut self, pid: u32, command_line: &str) -> &mut Self {
        self.process_at(pid, 1000, command_line)
    }

    /// The same, with a start time of its own.
    pub(crate) fn process_at(&mut self, pid: u32, start: u64, command_line: &str) -> &mut Self {
        let time = self.time();
        let mut arguments = command_line.replace(' ', "\0").into_bytes();
        arguments.push(0);
        self.events.push(Event::Process(Process {
            pid: Pid(pid),
            time,
            start: BootNs(start),
            parent: Pid(1),
            image: ImageId(0),
            bias: 0,
            uid: 0,
            cgroup: 0,
            comm: b"python3",
            command_line: keep(arguments),
        }));
        self
    }

    /// A stack arrives, with its code objects; `frames` is `main:1 work:2`, root first. Gives its id.
    pub(crate) fn stack(&mut self, pid: u32, frames: &str) -> u64 {
        match frames {
            "" => return tracer_ebpf::record::stack_id::NO_PYTHON,
            "?" => return tracer_ebpf::record::stack_id::UNREADABLE,
            _ => {}
        }
        let id = (number(frames) | 1 << 32).wrapping_add(self.seed);
        if self.sent.insert((pid, frames.to_owned())) {
            let end = if frames.starts_with("... ") {
                StackEnd::Truncated
            } else {
                StackEnd::Complete
            };
            let mut raw_frames = Vec::new();
            for frame in frames.trim_start_matches("... ").split(' ').rev() {
                let (name, line) = frame.split_once(':').unwrap_or((frame, "0"));
                if name != "lost" && self.sent.insert((pid, format!("code {name}"))) {
                    self.code(pid, number(name), name, "/srv/app.py");
                }
                raw_frames.extend(number(name).to_le_bytes());
                raw_frames.extend(line.parse::<i32>().unwrap_or(0).to_le_bytes());
                raw_frames.extend([0; 4]);
            }
            let raw_frames = keep(raw_frames);
            self.events.push(Event::Stack(Stack {
                pid: Pid(pid),
                id: StackId(id),
                end,
                tid: Tid(pid),
                raw_frames,
            }));
        }
        id
    }

    /// Stacks and code objects of a process are sent again at their next use, the stacks with new ids.
    pub(crate) fn forget(&mut self, pid: u32) -> &mut Self {
        self.sent.retain(|(of, _)| *of != pid);
        self.seed += 1 << 33;
        self
    }

    /// A code object arrives whose instruction N is in line N.
    pub(crate) fn code(&mut self, pid: u32, address: u64, name: &str, file: &str) -> &mut Self {
        let table = [1, 0, 1, 1]
            .into_iter()
            .chain([1, 1].into_iter().cycle().take(200));
        let data = keep(table.collect());
        let code = ProcAddr(address);
        self.events.push(Event::Code(Code {
            pid: Pid(pid),
            code,
            first_line: 0,
            line_table_len: u32::try_from(data.len()).ok(),
            line_table: ProcAddr(0x10),
            version_hex: VERSION,
            filename: text(file),
            qualname: text(name),
        }));
        self.events.push(Event::LineTable(LineTable {
            pid: Pid(pid),
            code,
            offset: 0,
            data,
        }));
        self
    }

    /// A pool block is allocated by the main thread.
    pub(crate) fn alloc(&mut self, pid: u32, addr: u64, size: u64, frames: &str) -> &mut Self {
        self.alloc_by(pid, pid, BlockKind::Pool, addr, size, frames)
    }

    /// A block is allocated.
    pub(crate) fn alloc_by(
        &mut self,
        pid: u32,
        tid: u32,
        kind: BlockKind,
        addr: u64,
        size: u64,
        frames: &str,
    ) -> &mut Self {
        let stack = self.stack(pid, frames);
        self.alloc_id(pid, tid, kind, addr, size, stack)
    }

    /// A block is allocated by a stack of which only the id is known.
    pub(crate) fn alloc_id(
        &mut self,
        pid: u32,
        tid: u32,
        kind: BlockKind,
        addr: u64,
        size: u64,
        stack: u64,
    ) -> &mut Self {
        let time = self.time();
        self.events.push(Event::Alloc(Alloc {
            pid: Pid(pid),
            tid: Tid(tid),
            time,
            kind,
            site: AllocSite::Other,
            addr: ProcAddr(addr),
            size: ByteCount(size),
            stack: StackId(stack),
        }));
        self
    }

    /// A block is freed by the main thread, by a free of any kind.
    pub(crate) fn free(&mut self, pid: u32, addr: u64) -> &mut Self {
        self.free_by(pid, pid, BlockKind::Any, addr)
    }

    /// A block is freed.
    pub(crate) fn free_by(&mut self, pid: u32, tid: u32, kind: BlockKind, addr: u64) -> &mut Self {
        let time = self.time();
        self.events.push(Event::Free(Free {
            pid: Pid(pid),
            tid: Tid(tid),
            time,
            kind,
            addr: ProcAddr(addr),
        }));
        self
    }

    /// A block is reallocated by the main thread.
    pub(crate) fn realloc(
        &mut self,
        pid: u32,
        old: u64,
        addr: u64,
        requested: u64,
        frames: &str,
    ) -> &mut Self {
        let (stack, time) = (self.stack(pid, frames), self.time());
        self.events.push(Event::Realloc(Realloc {
            pid: Pid(pid),
            tid: Tid(pid),
            time,
            kind: BlockKind::Any,
            old: (old != 0).then_some(ProcAddr(old)),
            addr: ProcAddr(addr),
            requested: ByteCount(requested),
            raw_size: ByteCount(requested + 8),
            stack: StackId(stack),
        }));
        self
    }

    /// Room for a mapping is found by the main thread.
    pub(crate) fn mapping(&mut self, pid: u32, addr: u64, pages: u32, frames: &str) -> &mut Self {
        let (stack, time) = (self.stack(pid, frames), self.time());
        self.events.push(Event::Fault(Fault {
            pid: Pid(pid),
            tid: Tid(pid),
            time,
            kind: FaultKind::Mapping,
            addr: ProcAddr(addr),
            weight: pages,
            stack: StackId(stack),
        }));
        self
    }

    /// A process exits, with these counters.
    pub(crate) fn exit(&mut self, pid: u32, counters: &Counters) -> &mut Self {
        self.gone(pid, GoneReason::Exit, counters)
    }

    /// A process exits or becomes another program.
    pub(crate) fn gone(&mut self, pid: u32, reason: GoneReason, counters: &Counters) -> &mut Self {
        let time = self.time();
        self.sent.retain(|(of, _)| *of != pid);
        self.events.push(Event::Gone(Gone {
            pid: Pid(pid),
            reason,
            time,
            counters: Box::new(*counters),
        }));
        self
    }

    /// The profile after all of it.
    pub(crate) fn profile(&self) -> Profile {
        let mut profile = Profile::new(ProfileSettings::default());
        for event in &self.events {
            profile.apply(event);
        }
        profile
    }

    /// The snapshot after all of it.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.profile().snapshot()
    }
}

/// Counters with some operations and losses.
pub(crate) fn counters(allocs: u64, frees: u64, reallocs: u64, lost: &[(Reason, u64)]) -> Counters {
    let mut losses = [0; REASONS];
    for (reason, count) in lost {
        if let Some(place) = losses.get_mut(*reason as usize) {
            *place = *count;
        }
    }
    let mut hits_by_group = [0; GROUPS];
    if let Some(hits) = hits_by_group.first_mut() {
        *hits = allocs.wrapping_add(frees).wrapping_add(reallocs).wrapping_mul(2);
    }
    Counters {
        allocs,
        frees,
        reallocs,
        faults: 0,
        hits_by_group,
        run_ns_by_group: [0; GROUPS],
        losses,
    }
}

/// A recording on one image with this coverage.
pub(crate) fn context(resolved: u32, copies: u32) -> Context {
    Context {
        tool_version: "0.1.0".to_owned(),
        host: "web-1".to_owned(),
        kernel: "6.18.0 x86_64".to_owned(),
        mode: "allocs".to_owned(),
        duration_ns: Some(2_500_000_000),
        cost_per_hit_ns: Some(600.0),
        images: vec![ImageInfo {
            id: 0,
            path: "/usr/bin/python3.10".to_owned(),
            version: "3.10.13".to_owned(),
            coverage: Coverage { resolved, copies },
            ..ImageInfo::default()
        }],
        ..Context::default()
    }
}
