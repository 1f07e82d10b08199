//! What userspace tells the kernel side once, at load: kernel structure offsets from BTF, and the filter.

/// Which processes are traced; userspace narrows with it and never enables.
pub mod filter {
    /// Every process that maps a known image.
    pub const ALL: u32 = 0;
    /// Only the processes in the target table, and their children.
    pub const LISTED: u32 = 1;
    /// Those too that meet every kind of rule in [`super::Config::rules`], at whichever hit that is.
    pub const RULES: u32 = 2;
}

/// Kinds of rules: the bits of [`Config::rules`], and the kinds of the rule table's keys.
pub mod rule {
    /// The effective user is in the rule table.
    pub const USER: u32 = 1;
    /// The control group, or one above it, is in the rule table.
    pub const CGROUP: u32 = 2;
    /// The same for the control groups of containers: a kind of its own, since both kinds must be met.
    pub const CONTAINER: u32 = 4;
    /// Userspace judges the executable. Until it has, the process is recorded; it throws away what it does not want.
    pub const EXECUTABLE: u32 = 8;
}

/// Values of the target table. Any other value is the `mm_struct.arg_start` of a program that userspace has
/// rejected: a process that has become another program since does not match it.
pub mod target {
    /// Traced, and its children.
    pub const SELECTED: u64 = 1;
}

/// Key of the rule table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RuleKey {
    /// One of [`rule`]'s constants.
    pub kind: u32,
    /// Always 0.
    pub reserved: u32,
    /// User id, or id of a control group.
    pub value: u64,
}

/// The single entry of the `CONFIG` map. Offsets in bytes, from the running kernel's BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// `task_struct.thread.fsbase`.
    pub task_fs_base: u32,
    /// `task_struct.group_leader`.
    pub task_group_leader: u32,
    /// `task_struct.start_boottime`.
    pub task_start: u32,
    /// `task_struct.real_parent`.
    pub task_real_parent: u32,
    /// `task_struct.tgid`.
    pub task_tgid: u32,
    /// `task_struct.pid`.
    pub task_pid: u32,
    /// `task_struct.mm`.
    pub task_mm: u32,
    /// `mm_struct.arg_start`; `arg_end` is the word behind it.
    pub mm_arg_start: u32,
    /// One of [`filter`]'s constants.
    pub filter: u32,
    /// Bytes of unread data in the ring past which userspace is woken.
    pub wake_at: u32,
    /// `task_struct.signal`.
    pub task_signal: u32,
    /// `signal_struct.live`, the number of threads that have not begun to exit.
    pub signal_live: u32,
    /// Always 0. A zero that the verifier cannot know: it merges states that differ only in a counter.
    pub zero: u32,
    /// Process id of pyrobe itself, never traced.
    pub own_pid: u32,
    /// Always 0, like [`Self::zero`], 64 bits wide.
    pub nothing: u64,
    /// `task_struct.cred`.
    pub task_cred: u32,
    /// `cred.euid`.
    pub cred_euid: u32,
    /// The bits of [`rule`] that a process must meet if the filter is [`filter::RULES`].
    pub rules: u32,
    /// Frees of a process after which one looks whether userspace is to be woken, less one; a power of two, less one.
    pub wake_mask: u32,
    /// Not 0 once the recording has ended: probes that still stand do nothing.
    pub stopped: u32,
    /// `task_struct.utask`. This and the next two are for per-point links only.
    pub task_utask: u32,
    /// `uprobe_task.vaddr`: during a hit of a probe event, where its `uprobe_dispatch_data` is.
    pub utask_vaddr: u32,
    /// `trace_uprobe.offset`: where in the file the probe stands.
    pub probe_offset: u32,
    /// Groups of sites ([`crate::site::group`], a bit each) whose hits are counted and tell of no block: their probes are
    /// being put in place or taken off, which takes long, and what is looked at begins and ends at once.
    pub muted: u32,
    /// Of small blocks, those whose address comes to 0 under this mask ([`sampled`]) are told of; 0: all.
    pub sample_mask: u32,
    /// `vm_unmapped_area_info.length`.
    pub unmapped_area_length: u32,
    /// Always 0.
    pub reserved: u32,
}

/// What says whether a block is in the sample, by its address: who has it next is in the sample, too.
#[inline]
pub const fn sampled(addr: u64, mask: u32) -> bool {
    // Fibonacci hashing: the blocks of a pool lie at equal distances.
    let hash = (addr >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 32) as u32 & mask == 0
}

const _: () = assert!(size_of::<Config>() == 112);
const _: () = assert!(size_of::<RuleKey>() == 16);
