//! Records into rings, and counts of what could not be written.
//!
//! A process always uses the same ring, so its records stay in order. Userspace polls; it is woken only when
//! a ring fills past the configured mark.

use core::arch::asm;

use aya_ebpf::maps::ring_buf::RingBufEntry;
use tracer_ebpf::{process::ProcessState, reason::Reason};

use crate::maps::{RING0, RING1, RING2, RING3, UNATTRIBUTED, config};

const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;
const AVAILABLE_DATA: u64 = 0;

/// Adds to a counter that other CPUs add to as well.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, by: u64) {
    // Rust has no atomic read-modify-write for this target, BPF has.
    // SAFETY: the pointer is into a map value, which is aligned and lives as long as the program runs.
    unsafe { asm!("lock *(u64 *)({counter} + 0) += {by}", counter = in(reg) counter, by = in(reg) by) };
}

/// Counts a loss of a process.
#[inline(always)]
pub(crate) fn lose(state: *mut ProcessState, reason: Reason) {
    // SAFETY: `state` is a map value; the index is below REASONS by the type's definition.
    add(unsafe { &raw mut (*state).losses[reason as usize] }, 1);
}

/// Counts a loss that no process can be charged with.
#[inline(always)]
pub(crate) fn lose_unattributed(reason: Reason) {
    if let Some(counter) = UNATTRIBUTED.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU map value; a preempted increment may be lost, never torn.
        unsafe { *counter += 1 };
    }
}

/// Room for a record in the ring of `pid`.
#[inline(always)]
pub(crate) fn reserve<T: 'static>(pid: u32) -> Option<RingBufEntry<T>> {
    match pid & 3 {
        0 => RING0.reserve::<T>(0),
        1 => RING1.reserve::<T>(0),
        2 => RING2.reserve::<T>(0),
        _ => RING3.reserve::<T>(0),
    }
}

/// Hands a record over.
#[inline(always)]
pub(crate) fn submit<T>(entry: RingBufEntry<T>, pid: u32) {
    let waiting = match pid & 3 {
        0 => RING0.query(AVAILABLE_DATA),
        1 => RING1.query(AVAILABLE_DATA),
        2 => RING2.query(AVAILABLE_DATA),
        _ => RING3.query(AVAILABLE_DATA),
    };
    let wake = config().is_some_and(|config| waiting >= u64::from(config.wake_at));
    entry.submit(if wake { FORCE_WAKEUP } else { NO_WAKEUP });
}
