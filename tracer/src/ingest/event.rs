//! Events: the kernel side's records, decoded. Borrow from the bytes they were decoded from.
//!
//! One variant per record kind of `tracer_ebpf::record`; see there for what each field means.

use serde::{Deserialize, Serialize};
use tracer_ebpf::{
    reason::REASONS,
    site::group::{self, GROUPS},
};

use crate::units::{BootNs, ByteCount, ImageId, MonotonicNs, Pid, ProcAddr, StackId, Tid};

/// One thing that happened. Every event belongs to a process.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// A process was first seen (again, after an exec).
    Process(Process<'a>),
    /// A process became another program, or exited.
    Gone(Gone),
    /// A code object, before the first stack that names it.
    Code(Code<'a>),
    /// A piece of a code object's line table.
    LineTable(LineTable<'a>),
    /// A stack, before the first event that names it.
    Stack(Stack<'a>),
    /// A block was allocated.
    Alloc(Alloc),
    /// A block was freed.
    Free(Free),
    /// A block was reallocated.
    Realloc(Realloc),
    /// A page was touched for the first time, or a mapping made.
    Fault(Fault),
}

/// A process was first seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process<'a> {
    /// Process id.
    pub pid: Pid,
    /// When it was seen.
    pub time: MonotonicNs,
    /// When it started; with the pid it names the process.
    pub start: BootNs,
    /// Parent's process id.
    pub parent: Pid,
    /// Image whose site was hit.
    pub image: ImageId,
    /// Load bias of that image.
    pub bias: u64,
    /// Effective user id.
    pub uid: u32,
    /// Control group id (v2).
    pub cgroup: u64,
    /// Task name without the padding. Any bytes.
    pub comm: &'a [u8],
    /// `argv`, each argument ended by a NUL, perhaps cut. Any bytes.
    pub command_line: &'a [u8],
}

/// /proc has the start of a process in ticks of so many nanoseconds.
const START_TICK_NS: u64 = 10_000_000;

/// Whether two starts of a process may be the same moment, one of them as /proc has it.
pub fn same_start(a: BootNs, b: BootNs) -> bool {
    let is_rounded = |start: BootNs| start.get().is_multiple_of(START_TICK_NS);
    a == b || (is_rounded(a) || is_rounded(b)) && a.get() / START_TICK_NS == b.get() / START_TICK_NS
}

/// Why a process is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneReason {
    /// It called `execve`.
    Exec,
    /// Its last thread exited.
    Exit,
}

/// A process is gone; the counters are its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Process id.
    pub pid: Pid,
    /// Exec or exit.
    pub reason: GoneReason,
    /// When.
    pub time: MonotonicNs,
    /// What the kernel side counted for it.
    pub counters: Box<Counters>,
}

/// What the kernel side counted for one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Allocations that happened, delivered or lost.
    pub allocs: u64,
    /// Frees that happened.
    pub frees: u64,
    /// Reallocations that happened.
    pub reallocs: u64,
    /// Page faults that were reported or lost.
    pub faults: u64,
    /// Probe hits, by `tracer_ebpf::site::group`.
    pub hits_by_group: [u64; GROUPS],
    /// Nanoseconds that programs ran for them, by the same.
    pub run_ns_by_group: [u64; GROUPS],
    /// Losses, by the number of the `tracer_ebpf::reason::Reason`.
    pub losses: [u64; REASONS],
}

/// Hits of probes, and what they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hits {
    /// All of them.
    pub count: u64,
    /// Those that cost a trap into the kernel: page faults do not.
    pub traps: u64,
    /// Nanoseconds for which their programs ran, estimated from some of them.
    pub run_ns: u64,
}

/// A string of the target, in its own representation. Hostile: any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Width of a character.
    pub kind: TextKind,
    /// Whether it is only a part.
    pub cut: bool,
}

/// Width of a character in a [`Text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// One byte, below 128.
    Ascii,
    /// One byte.
    Latin1,
    /// Two bytes.
    Ucs2,
    /// Four bytes.
    Ucs4,
    /// The kernel side could not read it.
    Unreadable,
}

/// A code object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code<'a> {
    /// Process id.
    pub pid: Pid,
    /// Address of the code object; another `Code` with the same address replaces it.
    pub code: ProcAddr,
    /// `co_firstlineno`.
    pub first_line: i32,
    /// Bytes of the line table that follow in pieces; `None` if it could not be read.
    pub line_table_len: Option<u32>,
    /// Address of the line table's first byte in the process.
    pub line_table: ProcAddr,
    /// `PY_VERSION_HEX`.
    pub version_hex: u32,
    /// `co_filename`.
    pub filename: Text<'a>,
    /// `co_qualname`, or `co_name` before 3.11.
    pub qualname: Text<'a>,
}

/// A piece of a line table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineTable<'a> {
    /// Process id.
    pub pid: Pid,
    /// Address of the code object.
    pub code: ProcAddr,
    /// Where the piece starts.
    pub offset: u32,
    /// The piece.
    pub data: &'a [u8],
}

/// How a stack ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackEnd {
    /// At the outermost frame.
    Complete,
    /// At the limit; frames near the root are missing.
    Truncated,
    /// At a frame that could not be read.
    Unreadable,
}

/// A stack's frames, unresolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack<'a> {
    /// Process id.
    pub pid: Pid,
    /// Its id.
    pub id: StackId,
    /// How it ended.
    pub end: StackEnd,
    /// Thread that was first seen with it.
    pub tid: Tid,
    /// Frames, leaf first; 16 bytes each, see [`Stack::frames`].
    pub raw_frames: &'a [u8],
}

/// A frame: a code object and a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawFrame {
    /// Address of the code object.
    pub code: ProcAddr,
    /// Byte offset of the instruction; negative if the frame has not begun.
    pub instr: i32,
}

/// Which allocator a block came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// pymalloc.
    Pool,
    /// libc's malloc.
    Raw,
    /// Either (of a free or a realloc).
    Any,
    /// The bundled mimalloc.
    Mimalloc,
    /// An extension's own memory.
    Domain,
}

/// What an allocation's site says beside the block itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocSite {
    /// The slow path: its pool was acquired for this block.
    Refill,
    /// A copy of the fast path.
    Copy,
    /// Anything else.
    Other,
}

/// A block was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alloc {
    /// Process id.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// When.
    pub time: MonotonicNs,
    /// Whose block it is; never `Any`.
    pub kind: BlockKind,
    /// What kind of site saw it.
    pub site: AllocSite,
    /// Its address.
    pub addr: ProcAddr,
    /// Bytes it occupies; of a `Mimalloc` block the bytes asked for.
    pub size: ByteCount,
    /// Its stack.
    pub stack: StackId,
}

/// A block was freed (if it is live and the kinds agree).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Process id.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// When.
    pub time: MonotonicNs,
    /// Whose block this can free.
    pub kind: BlockKind,
    /// Its address.
    pub addr: ProcAddr,
}

/// A block was reallocated; see `tracer_ebpf::record::Realloc` for how its kind and size follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Realloc {
    /// Process id.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// When.
    pub time: MonotonicNs,
    /// `Raw`, `Any` or `Mimalloc`.
    pub kind: BlockKind,
    /// The old block, if there was one.
    pub old: Option<ProcAddr>,
    /// The new block.
    pub addr: ProcAddr,
    /// Bytes asked for.
    pub requested: ByteCount,
    /// Bytes it occupies if it is a raw block.
    pub raw_size: ByteCount,
    /// Its stack.
    pub stack: StackId,
}

/// How a process came to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A page was touched.
    Touch,
    /// Room was found for a mapping while no other event would have told of a block of libc's malloc there.
    Mapping,
    /// The same while one would have.
    Room,
}

/// A page of a process was touched that was not in memory, or there is a mapping, new or moved, that can be for a block of
/// libc's malloc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Process id.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// When.
    pub time: MonotonicNs,
    /// Which of the two.
    pub kind: FaultKind,
    /// What was touched, or where the room for the mapping begins.
    pub addr: ProcAddr,
    /// Faults that this one stands for, itself included, or pages of that room; at least 1.
    pub weight: u32,
    /// Its stack.
    pub stack: StackId,
}

/// What a program at work loses by a hit beyond the trap, as a multiple of what the hit's program took: where that found the
/// caches cold, the trap did, too, and so does what comes after it. `cargo xtask bench peers` holds the estimate against the
/// time that was lost. Where nothing but hits happens it is 1.
const COLD: f64 = 2.2;

impl Counters {
    /// Each together with the other's.
    #[must_use]
    pub fn combine(&self, other: &Self, each: impl Fn(u64, u64) -> u64) -> Self {
        fn tables<const N: usize>(a: &[u64; N], b: &[u64; N], each: impl Fn(u64, u64) -> u64) -> [u64; N] {
            let mut sums = *a;
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = each(*sum, *b);
            }
            sums
        }
        Self {
            allocs: each(self.allocs, other.allocs),
            frees: each(self.frees, other.frees),
            reallocs: each(self.reallocs, other.reallocs),
            faults: each(self.faults, other.faults),
            hits_by_group: tables(&self.hits_by_group, &other.hits_by_group, &each),
            run_ns_by_group: tables(&self.run_ns_by_group, &other.run_ns_by_group, &each),
            losses: tables(&self.losses, &other.losses, &each),
        }
    }

    /// Probe hits of all groups.
    pub fn hits(&self) -> Hits {
        let groups = 0..GROUPS;
        groups.fold(Hits::default(), |sum, group| sum.plus(self.hits_of(group)))
    }

    /// Those of one group.
    pub fn hits_of(&self, group: usize) -> Hits {
        let of = |numbers: &[u64; GROUPS]| numbers.get(group).copied().unwrap_or(0);
        let count = of(&self.hits_by_group);
        Hits {
            count,
            traps: if group == group::FAULTS as usize { 0 } else { count },
            run_ns: of(&self.run_ns_by_group),
        }
    }
}

impl Hits {
    /// What they took from the processes, nanoseconds, if an empty program on an emulated instruction takes so much in a loop.
    pub fn cost_ns(&self, loop_ns: f64) -> f64 {
        loop_ns.mul_add(self.traps as f64, COLD * self.run_ns as f64)
    }

    /// Both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_add(other.count),
            traps: self.traps.saturating_add(other.traps),
            run_ns: self.run_ns.saturating_add(other.run_ns),
        }
    }

    /// What came since.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            count: self.count.saturating_sub(before.count),
            traps: self.traps.saturating_sub(before.traps),
            run_ns: self.run_ns.saturating_sub(before.run_ns),
        }
    }
}

impl Event<'_> {
    /// The process it belongs to.
    pub fn pid(&self) -> Pid {
        match self {
            Self::Process(e) => e.pid,
            Self::Gone(e) => e.pid,
            Self::Code(e) => e.pid,
            Self::LineTable(e) => e.pid,
            Self::Stack(e) => e.pid,
            Self::Alloc(e) => e.pid,
            Self::Free(e) => e.pid,
            Self::Realloc(e) => e.pid,
            Self::Fault(e) => e.pid,
        }
    }
}

impl Stack<'_> {
    /// The frames, leaf first. A trailing piece shorter than a frame is ignored.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = RawFrame> + '_ {
        let (frames, _) = self.raw_frames.as_chunks::<16>();
        frames.iter().map(|bytes| {
            let [c0, c1, c2, c3, c4, c5, c6, c7, i0, i1, i2, i3, ..] = *bytes;
            RawFrame {
                code: ProcAddr(u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7])),
                instr: i32::from_le_bytes([i0, i1, i2, i3]),
            }
        })
    }
}

#[cfg(test)]
impl Fault {
    /// One of some process and stack.
    pub(crate) fn of_test(kind: FaultKind, addr: u64, weight: u32, time: u64) -> Self {
        Self {
            pid: Pid(7),
            tid: Tid(7),
            time: MonotonicNs(time),
            kind,
            addr: ProcAddr(addr),
            weight,
            stack: StackId(1),
        }
    }
}
