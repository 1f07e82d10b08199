//! The two kernel functions of a session program: which half this is, and the word kept between them.
//!
//! They are kfuncs (kernel >= 6.13), which neither rustc nor aya can name. They are called here as helpers
//! with numbers no helper has; the loader replaces those calls by the kfuncs of the running kernel.
//! <https://github.com/torvalds/linux/blob/v6.13/kernel/trace/bpf_trace.c>
//!
//! Newer kernels (7.2 is one) want the context as an argument; older ones take none and do not look at it.

use core::ffi::c_void;

use tracer_ebpf::kfunc;

/// Whether this is the second half.
#[inline(always)]
pub(crate) fn is_return(ctx: *mut c_void) -> bool {
    // SAFETY: the loader puts `bool bpf_session_is_return(void *ctx)` in this call's place.
    let call: extern "C" fn(*mut c_void) -> u64 =
        unsafe { core::mem::transmute(kfunc::SESSION_IS_RETURN as usize) };
    call(ctx) & 1 != 0
}

/// The word kept from the first half to the second.
#[inline(always)]
pub(crate) fn cookie(ctx: *mut c_void) -> *mut u64 {
    // SAFETY: the loader puts `__u64 *bpf_session_cookie(void *ctx)` in this call's place.
    let call: extern "C" fn(*mut c_void) -> *mut u64 =
        unsafe { core::mem::transmute(kfunc::SESSION_COOKIE as usize) };
    call(ctx)
}
