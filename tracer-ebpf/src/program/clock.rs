//! The coarse clock: monotonic time, renewed once a tick of the kernel (1 to 10 ms).
//!
//! The kernel's own coarse clock is not offered to probe programs, and the plain one costs as much as half a read of
//! memory, at every event. The count of ticks is cheap.

use aya_ebpf::helpers::generated::bpf_jiffies64;

use crate::{maps::CLOCK, read};

/// Value of [`CLOCK`].
#[repr(C)]
pub(crate) struct Tick {
    /// The kernel's count of ticks.
    number: u64,
    /// Nanoseconds at the first event in it.
    time_ns: u64,
}

/// Nanoseconds; at most a tick too few.
#[inline(always)]
pub(crate) fn now() -> u64 {
    let Some(tick) = CLOCK.get_ptr_mut(0) else {
        return read::now();
    };
    // SAFETY: the helper has no preconditions.
    let number = unsafe { bpf_jiffies64() };
    // SAFETY: a map value. Two that meet here write times of the same tick; x86 keeps stores in order.
    unsafe {
        if (&raw const (*tick).number).read_volatile() == number {
            return (&raw const (*tick).time_ns).read_volatile();
        }
        let time = read::now();
        (&raw mut (*tick).time_ns).write_volatile(time);
        (&raw mut (*tick).number).write_volatile(number);
        time
    }
}
