//! Bounds shared by both sides: how deep, how long, how many. Each is a limit that a report can name.

/// Python frames kept per stack, counted from the leaf; deeper stacks are marked truncated.
pub const MAX_FRAMES: usize = 256;
/// Bytes of room for a file name in a [`crate::record::Code`] record, one more than it carries (see
/// [`LINE_TABLE_CHUNK`]); the tail is kept when it is longer.
pub const MAX_FILE_NAME: usize = 256;
/// Bytes of room for a qualified name, one more than is carried; the start is kept when it is longer.
pub const MAX_QUALNAME: usize = 128;
/// Bytes of a line table in one [`crate::record::LineTable`] record; a multiple of 8 below the room for it,
/// which is a power of two so that a bound can be shown to the verifier with a mask.
pub const LINE_TABLE_CHUNK: usize = LINE_TABLE_ROOM - 8;
/// Bytes of room in that record.
pub const LINE_TABLE_ROOM: usize = 512;
/// Most line table records for one code object (63 KiB in all).
pub const MAX_LINE_TABLE_CHUNKS: usize = 128;
/// Bytes of a command line that a [`crate::record::Process`] record carries.
pub const MAX_COMMAND_LINE: usize = 256;
/// Images (ELF files with a CPython runtime) known at one time.
pub const MAX_IMAGES: usize = 256;
/// Probe sites of all images together.
pub const MAX_SITES: usize = 65_536;
/// Python images that one process can map at one time.
pub const IMAGES_PER_PROCESS: usize = 2;
/// Levels of control groups that are looked at, from the root.
pub const MAX_CGROUP_DEPTH: u32 = 32;
/// Users and control groups that processes can be selected by.
pub const MAX_RULES: usize = 1024;
/// The time of an event is at most so much before its own, nanoseconds: a tick of the kernel's clock, at 100 a second.
pub const MOST_TICK_NS: u64 = 10_000_000;
/// Processes traced at one time.
pub const MAX_PROCESSES: usize = 16_384;
/// Processes that are not traced and whose hits are counted.
pub const MAX_BYSTANDERS: u32 = 1024;
/// Bytes of the ring unless the user says otherwise.
pub const DEFAULT_RING_BYTES: u32 = 32 << 20;
/// The same where only some events are looked at. Its pages are mapped twice, and count as memory of the reader's.
pub const HEAP_RING_BYTES: u32 = 8 << 20;
/// Hits that can walk a stack at one time, those included that were preempted; each takes 9 KiB of kernel memory.
pub const WORKPLACES: usize = 512;
/// Bytes of the window that one read fetches of a thread state; a power of two.
pub const STATE_WINDOW: usize = 256;
/// Bytes of the window that one read fetches of an interpreter frame.
pub const FRAME_WINDOW: usize = 88;
/// Threads looked at, per interpreter, when a thread state is searched for in the interpreter's list.
pub const MAX_THREADS_SEARCHED: u32 = 64;
/// Interpreters looked at in the same search.
pub const MAX_INTERPRETERS_SEARCHED: u32 = 16;
/// One page in so many is looked at when it is touched; a power of two.
pub const FAULTED_PAGES: u32 = 4;
/// One small block in so many is told of while every allocation is looked at (heap mode); a power of two.
pub const SAMPLED_BLOCKS: u32 = 4;
/// The programs of one hit in so many are timed; a power of two.
pub const TIMED_HITS: u32 = 16;
/// The most that is taken down of one, nanoseconds: what takes longer was interrupted, by what is not its own.
pub const MOST_TIMED_NS: u64 = 50_000;
/// Page faults of one process are thinned out within windows of so many nanoseconds, as a power of two (1.07 s).
pub const FAULT_WINDOW_BITS: u32 = 30;
/// Page faults of one process in a window that are all reported; of as many again every second one is, of twice as many
/// every fourth, and so on.
pub const FAULTS_REPORTED: u64 = 256;
/// Mappings of fewer bytes are not told of: libc's malloc makes its own for requests from here on, unless a program has it do
/// otherwise. <https://sourceware.org/glibc/manual/2.36/html_node/Malloc-Tunable-Parameters.html>
pub const LEAST_MAPPING: u64 = 128 << 10;
/// Mappings of one process in such a window of time that are told of.
pub const MAPPINGS_REPORTED: u64 = 1024;
/// The same while the sites of large blocks are traced: what is of interest then is memory that comes without a page fault, moved or
/// filled by the kernel.
pub const LEAST_ROOM: u64 = 1 << 20;
/// Mappings of one process in such a window of time that are told of then.
pub const ROOMS_REPORTED: u64 = 64;
