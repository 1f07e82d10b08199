//! Reads of the target's and the kernel's memory, typed, with failure as `None`.

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_user, generated};

/// Reads a value of the current process.
#[inline(always)]
pub(crate) fn user<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address; a fault is an error, not a crash.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// Reads a value of the kernel.
#[inline(always)]
pub(crate) fn kernel<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address; a fault is an error, not a crash.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// Reads `len` bytes of the current process to `to`.
///
/// # Safety
/// `to` must be valid for writes of `len` bytes; the verifier checks it too.
#[inline(always)]
pub(crate) unsafe fn user_bytes(to: *mut u8, len: u32, address: u64) -> bool {
    // SAFETY: `to` and `len` are the caller's promise; the source address is checked by the helper.
    unsafe { generated::bpf_probe_read_user(to.cast(), len, address as *const _) == 0 }
}

/// The current task's `task_struct`.
#[inline(always)]
pub(crate) fn task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { generated::bpf_get_current_task() }
}

/// Coarse monotonic time in nanoseconds: a tick's resolution, a fifth of the fine clock's price.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { generated::bpf_ktime_get_coarse_ns() }
}
