//! Numbered reasons for what was not delivered or not understood, counted in the kernel.
//!
//! The number is the index of a counter in [`crate::process::ProcessState::losses`] and is written into
//! captures: never reuse one, append only.

/// Why an event, a stack or a code object did not reach userspace whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Ring full: an allocation was not delivered.
    RingFullAlloc = 0,
    /// Ring full: a free was not delivered.
    RingFullFree = 1,
    /// Ring full: a reallocation was not delivered.
    RingFullRealloc = 2,
    /// Ring full: a stack was not delivered (it is sent again with its next event).
    RingFullStack = 3,
    /// Ring full: a code object was not delivered (it is sent again with its next new stack).
    RingFullCode = 4,
    /// A frame could not be read; the stack ends there.
    FrameUnreadable = 5,
    /// A code object or its line table could not be read.
    CodeUnreadable = 6,
    /// A function returned whose call was not seen, so its arguments are unknown.
    CallUnseen = 7,
    /// The process maps more Python images than are tracked.
    TooManyImages = 8,
    /// A record of the process's life (start, exec, exit) was not delivered.
    RingFullLifecycle = 9,
    /// More processes than [`crate::limits::MAX_PROCESSES`].
    ProcessTableFull = 10,
    /// The site or image a probe names is not in the tables.
    SiteUnknown = 11,
    /// A thread state was found but could not be read.
    ThreadStateUnreadable = 12,
    /// The header of a block of libc's malloc could not be read; its size was computed instead.
    ChunkUnreadable = 13,
    /// The header of a pool could not be read or is none: the block is not reported.
    PoolUnreadable = 14,
    /// More hits at the same time than [`crate::limits::WORKPLACES`]: the stack is not known, or the first hit of a process not
    /// counted.
    NoWorkplace = 15,
    /// Ring full: a page fault was not delivered.
    RingFullFault = 16,
}

/// How many reasons there are; the length of every table of loss counters.
pub const REASONS: usize = 17;

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; REASONS] = [
        Self::RingFullAlloc,
        Self::RingFullFree,
        Self::RingFullRealloc,
        Self::RingFullStack,
        Self::RingFullCode,
        Self::FrameUnreadable,
        Self::CodeUnreadable,
        Self::CallUnseen,
        Self::TooManyImages,
        Self::RingFullLifecycle,
        Self::ProcessTableFull,
        Self::SiteUnknown,
        Self::ThreadStateUnreadable,
        Self::ChunkUnreadable,
        Self::PoolUnreadable,
        Self::NoWorkplace,
        Self::RingFullFault,
    ];

    /// The stable name used in JSON and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFullAlloc => "ring_full_alloc",
            Self::RingFullFree => "ring_full_free",
            Self::RingFullRealloc => "ring_full_realloc",
            Self::RingFullStack => "ring_full_stack",
            Self::RingFullCode => "ring_full_code",
            Self::FrameUnreadable => "frame_unreadable",
            Self::CodeUnreadable => "code_unreadable",
            Self::CallUnseen => "call_unseen",
            Self::TooManyImages => "too_many_images",
            Self::RingFullLifecycle => "ring_full_lifecycle",
            Self::ProcessTableFull => "process_table_full",
            Self::SiteUnknown => "site_unknown",
            Self::ThreadStateUnreadable => "thread_state_unreadable",
            Self::ChunkUnreadable => "chunk_unreadable",
            Self::PoolUnreadable => "pool_unreadable",
            Self::NoWorkplace => "no_workplace",
            Self::RingFullFault => "ring_full_fault",
        }
    }
}
