//! Large mappings of traced processes: libc's malloc makes one for each block from a size on, so that it is known whose those are
//! while their sites are not traced. And what comes to one without a page fault, as it is moved there or the kernel is asked to fill it,
//! is of who made it.
//!
//! The tracepoint is where the kernel has found room in the address space for one, which is new or moved there. A mapping costs the
//! process much more than this: the system call, and a fault for each page. What it is for, what stands in it says later, to
//! userspace. Invariant: of one process in a window of time no more are told of than [`MAPPINGS_REPORTED`], or [`ROOMS_REPORTED`]; whose
//! the others are is known as far as page faults tell.
//! <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/mmap.h>

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_ebpf::{
    limits::{LEAST_MAPPING, LEAST_ROOM, MAPPINGS_REPORTED, ROOMS_REPORTED},
    record::growth,
    site::group,
};

use crate::{
    clock,
    faults::{KERNEL, PAGE_BITS, tell},
    loops::{Counted, Loops, MayGoto},
    maps::{PROCESSES, config},
    opaque::{at_most, forget},
    read,
    timing::Start,
    window,
};

/// `vm_unmapped_area(address, info)`.
#[raw_tracepoint(tracepoint = "vm_unmapped_area")]
fn on_mapping(ctx: RawTracePointContext) -> i32 {
    let _ = mapping::<MayGoto>(&ctx);
    0
}

/// The same on kernels without `may_goto`.
#[raw_tracepoint(tracepoint = "vm_unmapped_area")]
fn on_mapping_old(ctx: RawTracePointContext) -> i32 {
    let _ = mapping::<Counted>(&ctx);
    0
}

#[inline(always)]
fn mapping<L: Loops>(ctx: &RawTracePointContext) -> Option<()> {
    let config = config()?;
    if config.stopped != 0 {
        return None;
    }
    let is_silent = config.muted & (1 << group::LARGE | 1 << group::DOMAINS) != 0;
    let (least, most, kind) = if is_silent {
        (LEAST_MAPPING, MAPPINGS_REPORTED, growth::MAPPING)
    } else {
        (LEAST_ROOM, ROOMS_REPORTED, growth::ROOM)
    };
    let thread = bpf_get_current_pid_tgid();
    let state = PROCESSES.get_ptr_mut((thread >> 32) as u32)?;
    let (address, info): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let bytes: u64 = read::kernel(info + u64::from(config.unmapped_area_length))?;
    // An error is a small negative number.
    if bytes < least || address >= KERNEL {
        return None;
    }
    let now = clock::now();
    // SAFETY: a map value.
    if window::count(unsafe { &raw mut (*state).mapping_window }, now) >= most {
        return None;
    }
    let start = Start::now(config.nothing);
    let pages = forget(at_most(bytes >> PAGE_BITS, u64::from(u32::MAX)), config.nothing);
    tell::<L>(config, state, thread, now, address, kind, pages as u32);
    start.over(|| Some(state), group::FAULTS);
    None
}
