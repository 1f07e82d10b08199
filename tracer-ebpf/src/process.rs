//! Per-process state that the kernel side keeps while a process is traced, read by userspace for its counters.
//!
//! The kernel side creates it at a process's first hit: userspace enables nothing (no set-up race).

use crate::{limits::IMAGES_PER_PROCESS, reason::REASONS, site::group::GROUPS};

/// One image as a process maps it. `id_plus_one` is 0 for a free place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mapped {
    /// Index into the image table, plus one.
    pub id_plus_one: u32,
    /// Always 0.
    pub reserved: u32,
    /// Load bias: run-time address minus link-time address, bytes.
    pub bias: u64,
}

/// Value of the process table; the key is the process id (`tgid`, initial pid namespace).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessState {
    /// Start time of the process, nanoseconds since boot (`task_struct.start_boottime`).
    pub start_ns: u64,
    /// Images with their load bias.
    pub images: [Mapped; IMAGES_PER_PROCESS],
    /// Changes whenever a code object dies, so that stack ids of a reused address differ.
    pub epoch: u64,
    /// Allocations that happened (delivered or lost).
    pub allocs: u64,
    /// Frees that happened.
    pub frees: u64,
    /// Reallocations that happened.
    pub reallocs: u64,
    /// Reallocations that have not returned: while it is not 0, nested calls are looked for.
    pub reallocs_open: u64,
    /// Not 0 while its own record has not been delivered: then nothing else of it is, but all is counted.
    pub unannounced: u64,
    /// Page faults that were reported or lost, not those that were left out.
    pub faults: u64,
    /// Page faults in the current [`crate::limits::FAULT_WINDOW_BITS`] window of time: the number of that window above
    /// the low 32 bits, their count in them.
    pub fault_window: u64,
    /// The same for its mappings.
    pub mapping_window: u64,
    /// Probe hits by [`crate::site::group`], whatever came of them (both halves of a session count).
    pub hits: [u64; GROUPS],
    /// Nanoseconds that programs ran for these hits, by the same groups: the time of one in
    /// [`crate::limits::TIMED_HITS`], times that.
    pub run_ns: [u64; GROUPS],
    /// What was lost, by [`crate::reason::Reason`].
    pub losses: [u64; REASONS],
}

const _: () = assert!(size_of::<Mapped>() == 16);
const _: () = assert!(size_of::<ProcessState>() == 8 + 32 + 9 * 8 + 2 * 8 * GROUPS + 8 * REASONS);
