//! The records of a ring buffer, which are also the records of a capture's event blocks.
//!
//! Every record starts with a [`Head`] that names its kind and length, so a block of bytes is
//! self-delimiting. All integers are little endian; times are nanoseconds of `CLOCK_MONOTONIC`.

use crate::{
    limits::{LINE_TABLE_ROOM, MAX_COMMAND_LINE, MAX_FILE_NAME, MAX_QUALNAME},
    reason::REASONS,
    site::group::GROUPS,
};

/// Values of [`Head::kind`].
pub mod kind {
    /// [`super::Process`].
    pub const PROCESS: u8 = 1;
    /// [`super::Gone`], because of an exec: what follows under this pid is another program.
    pub const EXEC: u8 = 2;
    /// [`super::Gone`], because the process exited.
    pub const EXIT: u8 = 3;
    /// [`super::Code`].
    pub const CODE: u8 = 4;
    /// [`super::LineTable`].
    pub const LINE_TABLE: u8 = 5;
    /// [`super::StackHead`] and its frames.
    pub const STACK: u8 = 6;
    /// [`super::Alloc`].
    pub const ALLOC: u8 = 7;
    /// [`super::Free`].
    pub const FREE: u8 = 8;
    /// [`super::Realloc`].
    pub const REALLOC: u8 = 9;
    /// [`super::Fault`].
    pub const FAULT: u8 = 10;
}

/// Values of [`Head::flags`] of process records.
pub mod chosen {
    /// It is to be recorded.
    pub const SELECTED: u8 = 0;
    /// Userspace has yet to judge its executable.
    pub const PROVISIONAL: u8 = 1;
}

/// Values of [`Head::flags`] of allocation records: which allocator's block it is.
pub mod block {
    /// A pymalloc block (a free: frees it only if it is one).
    pub const POOL: u8 = 0;
    /// A block of libc's malloc.
    pub const RAW: u8 = 1;
    /// Whichever it is (a free or realloc whose raw half is inlined).
    pub const ANY: u8 = 2;
    /// A block of the bundled mimalloc. The size is what was asked for: what that occupies follows from it.
    pub const MIMALLOC: u8 = 3;
    /// Memory that an extension tells of; the size is what it says.
    pub const DOMAIN: u8 = 4;
}

/// Values of [`Head::flags`] of [`Fault`] records: how a process came to the memory.
pub mod growth {
    /// A page was touched.
    pub const TOUCH: u8 = 0;
    /// Room was found for a mapping, new or moved there. Where the kernel aligns it, more room than it takes, by a huge page.
    pub const MAPPING: u8 = 1;
    /// The same while the sites of large blocks are traced, which tell of those that libc makes mappings for.
    pub const ROOM: u8 = 2;
}

/// Values of [`StackHead::end`]: how the walk ended.
pub mod end {
    /// At the outermost Python frame.
    pub const COMPLETE: u8 = 0;
    /// At [`crate::limits::MAX_FRAMES`]; the frames nearest to the root are missing.
    pub const TRUNCATED: u8 = 1;
    /// A frame could not be read; the frames nearer to the root are missing.
    pub const UNREADABLE: u8 = 2;
}

/// Stack ids below this are not hashes but say why there are no frames; no stack record is sent for them.
pub mod stack_id {
    /// The thread has no Python thread state, or a thread state with no frame: `[no Python frame]`.
    pub const NO_PYTHON: u64 = 1;
    /// The thread state could not be read.
    pub const UNREADABLE: u64 = 2;
    /// First value that a hash can have.
    pub const FIRST_HASH: u64 = 256;
}

/// Start of every record, 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Head {
    /// One of [`kind`]'s constants.
    pub kind: u8,
    /// Meaning depends on the kind.
    pub flags: u8,
    /// Bytes of the whole record, head included; a multiple of 8.
    pub len: u16,
    /// Process id (`tgid`) in the initial pid namespace.
    pub pid: u32,
}

/// A process was seen for the first time (or for the first time after an exec).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Process {
    /// Kind [`kind::PROCESS`], flags one of [`chosen`]'s.
    pub head: Head,
    /// When this record was made.
    pub time_ns: u64,
    /// Start of the process, nanoseconds since boot.
    pub start_ns: u64,
    /// Parent's process id.
    pub parent: u32,
    /// Index of the image whose site was hit.
    pub image: u32,
    /// Load bias of that image.
    pub bias: u64,
    /// User id, effective, initial user namespace.
    pub uid: u32,
    /// Bytes used of `command_line`.
    pub command_line_len: u32,
    /// Control group id (v2).
    pub cgroup: u64,
    /// Task name, NUL padded.
    pub comm: [u8; 16],
    /// `argv`, each argument ended by a NUL, cut at the end of the array.
    pub command_line: [u8; MAX_COMMAND_LINE],
}

/// A process exited or became another program.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Gone {
    /// Kind [`kind::EXEC`] or [`kind::EXIT`].
    pub head: Head,
    /// When.
    pub time_ns: u64,
    /// Allocations that happened, delivered or lost.
    pub allocs: u64,
    /// Frees that happened.
    pub frees: u64,
    /// Reallocations that happened.
    pub reallocs: u64,
    /// Page faults that were reported or lost.
    pub faults: u64,
    /// Probe hits by [`crate::site::group`].
    pub hits: [u64; GROUPS],
    /// Nanoseconds that programs ran for them, by the same.
    pub run_ns: [u64; GROUPS],
    /// Losses by [`crate::reason::Reason`].
    pub losses: [u64; REASONS],
}

/// Values of [`Text::kind`], the width of a character as in `PyUnicodeObject.state.kind`, plus ASCII.
pub mod text {
    /// UTF-8 that is ASCII only, one byte a character.
    pub const ASCII: u8 = 0;
    /// Latin-1, one byte a character.
    pub const LATIN1: u8 = 1;
    /// UCS-2, two bytes a character.
    pub const UCS2: u8 = 2;
    /// UCS-4, four bytes a character.
    pub const UCS4: u8 = 4;
    /// The string could not be read; its length is 0.
    pub const UNREADABLE: u8 = 255;
}

/// How the bytes of a string that stands elsewhere in the record are to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Text {
    /// Bytes present.
    pub len: u16,
    /// One of [`text`]'s constants.
    pub kind: u8,
    /// Not 0 if the string was longer than what is present.
    pub cut: u8,
}

/// A code object, sent before the first stack that names it; its line table follows in pieces.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Code {
    /// Kind [`kind::CODE`].
    pub head: Head,
    /// Address of the code object: its name until an [`kind::EXEC`], [`kind::EXIT`] or another record with this address.
    pub code: u64,
    /// `co_firstlineno`.
    pub first_line: i32,
    /// Bytes of the line table; `u32::MAX` if it could not be read.
    pub line_table_len: u32,
    /// Describes `filename`.
    pub filename_text: Text,
    /// Describes `qualname`.
    pub qualname_text: Text,
    /// `PY_VERSION_HEX` of the interpreter: decides the format of the line table.
    pub version_hex: u32,
    /// Address of the line table's first byte, for a reader that can still look into the process.
    pub line_table: u64,
    /// Always 0.
    pub reserved: u32,
    /// File name; the last bytes if it was cut.
    pub filename: [u8; MAX_FILE_NAME],
    /// Qualified name; the first bytes if it was cut.
    pub qualname: [u8; MAX_QUALNAME],
}

/// A piece of a code object's line table.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct LineTable {
    /// Kind [`kind::LINE_TABLE`].
    pub head: Head,
    /// Address of the code object.
    pub code: u64,
    /// Where this piece starts in the table.
    pub offset: u32,
    /// Bytes used of `data`.
    pub used: u32,
    /// The bytes.
    pub data: [u8; LINE_TABLE_ROOM],
}

/// A Python frame, unresolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    /// Address of the code object.
    pub code: u64,
    /// Byte offset of the current instruction from the first one; negative if the frame has not begun.
    pub instr: i32,
    /// Always 0.
    pub reserved: u32,
}

/// A stack; `depth` [`Frame`]s follow, leaf first, then unused bytes up to the record's length.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct StackHead {
    /// Kind [`kind::STACK`].
    pub head: Head,
    /// Id that allocation records name; unique within the process.
    pub id: u64,
    /// Frames that follow.
    pub depth: u16,
    /// One of [`end`]'s constants.
    pub end: u8,
    /// Always 0.
    pub reserved: u8,
    /// Thread that was first seen with this stack.
    pub tid: u32,
}

/// A block was allocated.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Alloc {
    /// Kind [`kind::ALLOC`], flags [`block::POOL`], [`block::RAW`] or [`block::MIMALLOC`].
    pub head: Head,
    /// Thread.
    pub tid: u32,
    /// The [`crate::site::Role`] of the site, as its number.
    pub role: u32,
    /// When.
    pub time_ns: u64,
    /// Address of the block.
    pub addr: u64,
    /// Bytes the block occupies (size class, or usable size); of [`block::MIMALLOC`] the bytes asked for.
    pub size: u64,
    /// Stack id.
    pub stack: u64,
}

/// A block was freed.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Free {
    /// Kind [`kind::FREE`], flags any of [`block`]'s: a free frees a live block only if the kinds agree.
    pub head: Head,
    /// Thread.
    pub tid: u32,
    /// Always 0.
    pub reserved: u32,
    /// When.
    pub time_ns: u64,
    /// Address of the block.
    pub addr: u64,
}

/// A block was reallocated: the old one is freed, a new one allocated, perhaps at the same address.
///
/// Nested calls are not reported. Which allocator's block the new one is follows from the old one:
/// old POOL or none: POOL if `0 < requested <= 512`, otherwise RAW; old RAW: RAW. A POOL block that stays
/// where it is keeps its size class.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Realloc {
    /// Kind [`kind::REALLOC`], flags [`block::RAW`] (the raw domain), [`block::ANY`] (obj and mem domains) or
    /// [`block::MIMALLOC`] (the same in builds without the GIL).
    pub head: Head,
    /// Thread.
    pub tid: u32,
    /// Always 0.
    pub reserved: u32,
    /// When.
    pub time_ns: u64,
    /// Address of the old block, or 0.
    pub old: u64,
    /// Address of the new block.
    pub addr: u64,
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes the new block occupies if it is one of libc's malloc.
    pub raw_size: u64,
    /// Stack id.
    pub stack: u64,
}

/// A page of the process was first touched (again), or a mapping was made that can be for a block of libc's malloc (told of
/// only while the sites of such blocks are silent).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Fault {
    /// Kind [`kind::FAULT`], flags one of [`growth`]'s.
    pub head: Head,
    /// Thread.
    pub tid: u32,
    /// Faults that this one stands for, itself included; of a mapping the pages of its room.
    pub weight: u32,
    /// When.
    pub time_ns: u64,
    /// The address that was touched, or where the room for the mapping begins.
    pub addr: u64,
    /// Stack id.
    pub stack: u64,
}

const _: () = assert!(size_of::<Head>() == 8);
const _: () = assert!(size_of::<Process>() == 8 + 8 + 8 + 8 + 8 + 8 + 8 + 16 + MAX_COMMAND_LINE);
const _: () = assert!(size_of::<Gone>() == 48 + 2 * 8 * GROUPS + 8 * REASONS);
const _: () = assert!(size_of::<Code>() == 56 + MAX_FILE_NAME + MAX_QUALNAME);
const _: () = assert!(size_of::<LineTable>() == 24 + LINE_TABLE_ROOM);
const _: () = assert!(size_of::<Frame>() == 16);
const _: () = assert!(size_of::<StackHead>() == 24);
const _: () = assert!(size_of::<Alloc>() == 48);
const _: () = assert!(size_of::<Free>() == 32);
const _: () = assert!(size_of::<Realloc>() == 64);
const _: () = assert!(size_of::<Fault>() == 40);
