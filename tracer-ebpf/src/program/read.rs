//! Reads of the target's and the kernel's memory, typed, with failure as `None`.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_user, generated};

/// Reads a value of the current process.
#[inline(always)]
pub(crate) fn user<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address; a fault is an error, not a crash.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// Reads a value of the current process; zero if it cannot be read. Without a branch, so that the verifier
/// has one path to follow instead of two.
#[inline(always)]
pub(crate) fn user_or_zero<T: Zeroed>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address and fills the value with zeros if it fails; zeros are a `T`.
    unsafe {
        generated::bpf_probe_read_user(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        value.assume_init()
    }
}

/// Types of which all zeros is a value.
///
/// # Safety
/// It must be.
pub(crate) unsafe trait Zeroed {}
// SAFETY: integers.
unsafe impl Zeroed for i32 {}
// SAFETY: integers.
unsafe impl Zeroed for u32 {}
// SAFETY: integers.
unsafe impl Zeroed for u64 {}
// SAFETY: integers.
unsafe impl<const N: usize> Zeroed for [u64; N] {}

/// Reads a value of the kernel.
#[inline(always)]
pub(crate) fn kernel<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address; a fault is an error, not a crash.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// Reads `len` bytes of the current process to `to`; bytes read, which is `len` or 0.
///
/// # Safety
/// `to` must be valid for writes of `len` bytes; the verifier checks it too.
#[inline(always)]
pub(crate) unsafe fn user_bytes(to: *mut u8, len: u32, address: u64) -> u32 {
    // SAFETY: `to` and `len` are the caller's promise; the source address is checked by the helper.
    let error = unsafe { generated::bpf_probe_read_user(to.cast(), len, address as *const _) };
    // A failure is negative: its sign, spread out, clears the length without a branch.
    len & !((error >> 63) as u32)
}

/// The current task's `task_struct`.
#[inline(always)]
pub(crate) fn task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { generated::bpf_get_current_task() }
}

/// Monotonic time in nanoseconds. The coarse clock would be cheaper, but is not offered to probe programs.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { generated::bpf_ktime_get_ns() }
}
