//! Processes that run an interpreter with probes in it and are not recorded: they pay a trap at each hit, so their hits are
//! counted, for whoever bounds what that costs.

use aya_ebpf::bindings::BPF_NOEXIST;
use tracer_ebpf::site::group::GROUPS;

use crate::{emit::add, maps::BYSTANDERS};

/// Counts a hit of the current process. The first is not counted. Not inlined: its stack is not that of the programs, see
/// `process::create`.
#[inline(never)]
pub(crate) fn count(pid: u32, group: u32) {
    let Some(hits) = BYSTANDERS.get_ptr_mut(pid) else {
        let _ = BYSTANDERS.insert(pid, [0; GROUPS], u64::from(BPF_NOEXIST));
        return;
    };
    let group = group as usize & (GROUPS - 1);
    // SAFETY: a map value; the index is masked.
    add(unsafe { hits.cast::<u64>().add(group) }, 1);
}
