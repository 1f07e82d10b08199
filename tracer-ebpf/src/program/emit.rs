//! Records into the ring, and counts of what could not be written.
//!
//! Userspace polls; it is woken only when the ring fills past the configured mark, or a process is new.

use core::arch::asm;

use aya_ebpf::{helpers::generated::bpf_ringbuf_output, maps::ring_buf::RingBufEntry};
use tracer_ebpf::{config::Config, process::ProcessState, reason::Reason};

use crate::maps::{RING, UNATTRIBUTED, config};

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

/// The same, and what the counter was.
#[inline(always)]
pub(crate) fn count(counter: *mut u64) -> u64 {
    let mut was = 1_u64;
    // SAFETY: as above.
    unsafe {
        asm!("{was} = atomic_fetch_add((u64 *)({counter} + 0), {was})", counter = in(reg) counter, was = inout(reg) was);
    }
    was
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

/// Room for a record.
#[inline(always)]
pub(crate) fn reserve<T: 'static>() -> Option<RingBufEntry<T>> {
    RING.reserve::<T>(0)
}

/// Hands a record over, one of many: only some look whether to wake. `number` counts them.
#[inline(always)]
pub(crate) fn submit_one_of<T>(entry: RingBufEntry<T>, config: &Config, number: u64) {
    if number & u64::from(config.wake_mask) == 0 {
        submit(entry);
    } else {
        submit_quietly(entry);
    }
}

/// Hands a record over.
#[inline(always)]
pub(crate) fn submit<T>(entry: RingBufEntry<T>) {
    entry.submit(wake());
}

/// Hands a record over that userspace is to see at once.
#[inline(always)]
pub(crate) fn submit_loudly<T>(entry: RingBufEntry<T>) {
    entry.submit(FORCE_WAKEUP);
}

/// Whether userspace is to be woken: the ring is past the mark.
#[inline(always)]
fn wake() -> u64 {
    let is_past = config().is_some_and(|config| RING.query(AVAILABLE_DATA) >= u64::from(config.wake_at));
    if is_past { FORCE_WAKEUP } else { NO_WAKEUP }
}

/// Hands a record over that others follow at once: whether to wake is decided with those.
#[inline(always)]
pub(crate) fn submit_quietly<T>(entry: RingBufEntry<T>) {
    entry.submit(NO_WAKEUP);
}

/// Copies `len` bytes into the ring. Whether there was room.
///
/// # Safety
/// `from` must be valid for reads of `len` bytes; the verifier checks it too.
#[inline(always)]
pub(crate) unsafe fn output(from: *const u8, len: u32) -> bool {
    let ring = (&raw const RING).cast_mut().cast();
    // SAFETY: a map, and memory that is the caller's promise.
    unsafe { bpf_ringbuf_output(ring, from.cast_mut().cast(), u64::from(len), wake()) == 0 }
}
