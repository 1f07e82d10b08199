//! Counts within windows of time, a word each: the window's number and what was counted in it.

use tracer_ebpf::limits::FAULT_WINDOW_BITS;

const COUNT_BITS: u32 = 32;

/// How often this was called for `word`, which is in a map value, in the window that `now` is in; counts this call. Two threads
/// that meet here can make a count one too small.
#[inline(always)]
pub(crate) fn count(word: *mut u64, now: u64) -> u64 {
    let window = now >> FAULT_WINDOW_BITS << COUNT_BITS;
    // SAFETY: a map value.
    let known = unsafe { word.read_volatile() };
    let count = if known >> COUNT_BITS << COUNT_BITS == window {
        known & u64::from(u32::MAX)
    } else {
        0
    };
    // SAFETY: a map value.
    unsafe { word.write_volatile(window | (count + 1) & u64::from(u32::MAX)) };
    count
}
