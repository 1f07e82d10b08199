//! What programs take: the time of one run in [`TIMED_HITS`], whichever chance picks.
//!
//! In a loop a run takes a third of what it takes in a program at work, which has filled the caches with its own; so what
//! tracing costs can be told only where it happens.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use tracer_ebpf::{
    limits::{MOST_TIMED_NS, TIMED_HITS},
    process::ProcessState,
    site::group::GROUPS,
};

use crate::{
    emit::add,
    opaque::{at_most, forget},
    read,
};

/// When a run began, if it is one that is timed.
#[derive(Clone, Copy)]
pub(crate) struct Start(u64);

impl Start {
    /// `nothing` is `Config::nothing`: whether a run is timed is no reason to follow its program twice.
    #[inline(always)]
    pub(crate) fn now(nothing: u64) -> Self {
        // SAFETY: the helper has no preconditions.
        let number = unsafe { bpf_get_prandom_u32() };
        let time = if number & (TIMED_HITS - 1) == 0 {
            read::now()
        } else {
            0
        };
        Self(forget(time, nothing))
    }

    /// The run is over, whose hit belongs to a group.
    #[inline(always)]
    pub(crate) fn over(self, state: impl FnOnce() -> Option<*mut ProcessState>, group: u32) {
        if self.0 == 0 {
            return;
        }
        let Some(state) = state() else {
            return;
        };
        let took = at_most(read::now().wrapping_sub(self.0), MOST_TIMED_NS) * u64::from(TIMED_HITS);
        let group = group as usize & (GROUPS - 1);
        // SAFETY: a map value; the index is masked.
        add(
            unsafe { (&raw mut (*state).run_ns).cast::<u64>().add(group) },
            took,
        );
    }
}
