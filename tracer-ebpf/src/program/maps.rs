//! All maps. Userspace sizes the rings and fills `CONFIG`, `IMAGES`, `SITES`, `POINTS`, `TARGETS` and
//! `RULES`.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use tracer_ebpf::{
    config::{Config, RuleKey},
    layout::ImageLayout,
    limits::{
        DEFAULT_RING_BYTES, MAX_BYSTANDERS, MAX_IMAGES, MAX_PROCESSES, MAX_RULES, MAX_SITES, WORKPLACES,
    },
    process::ProcessState,
    reason::REASONS,
    site::{PointKey, Site, group::GROUPS},
};

use crate::{clock::Tick, memory::Memory};

/// Key of [`CODES`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CodeKey {
    /// Process.
    pub(crate) pid: u64,
    /// Address of the code object.
    pub(crate) code: u64,
}

/// Key of [`PENDING`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CallKey {
    /// Process and thread, as `bpf_get_current_pid_tgid` gives them.
    pub(crate) thread: u64,
    /// Index of the site: a function does not call itself before it returns.
    pub(crate) site: u64,
}

/// Value of [`REALLOCS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct OpenRealloc {
    /// Stack pointer at the entry: what it calls is below.
    pub(crate) sp: u64,
    /// The old block.
    pub(crate) old: u64,
    /// Bytes asked for.
    pub(crate) requested: u64,
}

#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static IMAGES: Array<ImageLayout> = Array::with_max_entries(MAX_IMAGES as u32, 0);

#[map]
pub(crate) static SITES: Array<Site> = Array::with_max_entries(MAX_SITES as u32, 0);

/// Probes of events to indices of sites. Userspace makes room for them where it attaches so.
#[map]
pub(crate) static POINTS: HashMap<PointKey, u32> = HashMap::with_max_entries(1, 0);

/// Process id to state; made at the first hit.
#[map]
pub(crate) static PROCESSES: HashMap<u32, ProcessState> = HashMap::with_max_entries(MAX_PROCESSES as u32, 0);

/// Hits of processes that are not traced, by group; those that were hit last.
#[map]
pub(crate) static BYSTANDERS: LruHashMap<u32, [u64; GROUPS]> =
    LruHashMap::with_max_entries(MAX_BYSTANDERS, 0);

/// Process ids that are traced if the filter is on, or that userspace has rejected; children are added here.
#[map]
pub(crate) static TARGETS: HashMap<u32, u64> = HashMap::with_max_entries(65_536, 0);

/// Users and control groups whose processes are traced, filled by userspace.
#[map]
pub(crate) static RULES: HashMap<RuleKey, u32> = HashMap::with_max_entries(MAX_RULES as u32, 0);

/// Code objects that were sent. An entry that is pushed out only means that one is sent again.
#[map]
pub(crate) static CODES: LruHashMap<CodeKey, u32> = LruHashMap::with_max_entries(131_072, 0);

/// Stacks that were sent, by id mixed with the process id.
#[map]
pub(crate) static STACKS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(131_072, 0);

/// Reallocations that have not returned, by thread. One at a time: neither kind calls the other while it is
/// looked at, since what `_PyObject_Realloc` calls is left out. A thread that exits takes its entry away.
#[map]
pub(crate) static REALLOCS: HashMap<u64, OpenRealloc> = HashMap::with_max_entries(16_384, 0);

/// Working memory of hits.
#[map]
pub(crate) static WORKPLACE: Array<Memory> = Array::with_max_entries(WORKPLACES as u32, 0);

/// The clock as it was when its tick began.
#[map]
pub(crate) static CLOCK: Array<Tick> = Array::with_max_entries(1, 0);

/// Arguments of calls that have not returned, where the kernel has no session links.
#[map]
pub(crate) static PENDING: LruHashMap<CallKey, u64> = LruHashMap::with_max_entries(65_536, 0);

/// Losses that no process could be charged with, by reason.
#[map]
pub(crate) static UNATTRIBUTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(REASONS as u32, 0);

/// All records of all processes: one ring, so that they are in order. Its lock is held for the length of a
/// few instructions; the reader's side is what limits a host long before that.
#[map]
pub(crate) static RING: RingBuf = RingBuf::with_byte_size(DEFAULT_RING_BYTES, 0);

/// The settings; always there, the verifier wants the check.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}
