//! Page faults of traced processes: who makes the resident memory grow that the interpreter's allocator does not hold.
//!
//! A tracepoint costs no trap, but there can be a hundred thousand a second. So one page in [`FAULTED_PAGES`] is looked at,
//! which page says; of these the rare fault is reported with its stack, and of many only a part: the more there are within a
//! second, the fewer, each with the number of faults that it stands for. The first page of each 2 MiB is always reported: its fault
//! may have brought them all, which takes a hundred times as long. Invariant: on average the weights of the faults of a window sum
//! up to the faults in it.

use aya_ebpf::{
    EbpfContext as _, helpers::bpf_get_current_pid_tgid, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_ebpf::{
    config::Config,
    limits::{FAULTED_PAGES, FAULTS_REPORTED},
    process::ProcessState,
    reason::Reason,
    record::{Fault, Head, growth, kind},
    site::group,
};

use crate::{
    clock,
    emit::{add, lose, reserve, submit},
    hit::stack_of,
    loops::{Counted, Loops, MayGoto},
    maps::{PROCESSES, config},
    opaque::forget,
    timing::Start,
    window,
};

/// Where the kernel's half of the address space begins.
pub(crate) const KERNEL: u64 = 1 << 63;
pub(crate) const PAGE_BITS: u32 = 12;
/// As many pages as a huge page has.
const HUGE_PAGE_BITS: u32 = 21;
/// An odd number: its products with the numbers of neighbouring pages lie far apart.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// `page_fault_user(address, regs, error_code)`, and `page_fault_kernel`, where a system call writes to the process's
/// memory.
#[raw_tracepoint(tracepoint = "page_fault_user")]
fn on_fault(ctx: RawTracePointContext) -> i32 {
    let _ = fault::<MayGoto>(&ctx);
    0
}

/// The same on kernels without `may_goto`.
#[raw_tracepoint(tracepoint = "page_fault_user")]
fn on_fault_old(ctx: RawTracePointContext) -> i32 {
    let _ = fault::<Counted>(&ctx);
    0
}

#[inline(always)]
fn fault<L: Loops>(ctx: &RawTracePointContext) -> Option<()> {
    // SAFETY: the tracepoint's first argument.
    let address = unsafe { *ctx.as_ptr().cast::<u64>() };
    // Before anything that costs more.
    let is_first = address >> PAGE_BITS << PAGE_BITS == address >> HUGE_PAGE_BITS << HUGE_PAGE_BITS;
    if !(is_first || is_looked_at(address)) || address >= KERNEL {
        return None;
    }
    let thread = bpf_get_current_pid_tgid();
    let pid = (thread >> 32) as u32;
    let state = PROCESSES.get_ptr_mut(pid)?;
    let now = clock::now();
    let config = config()?;
    if config.stopped != 0 {
        return None;
    }
    // One of twenty numbers: none of them is a reason to follow the walk once more.
    let weight = if is_first { 1 } else { weight(state, now)? };
    let weight = forget(weight, config.nothing) as u32;
    let start = Start::now(config.nothing);
    tell::<L>(config, state, thread, now, address, growth::TOUCH, weight);
    start.over(|| Some(state), group::FAULTS);
    None
}

/// Tells of memory that the current thread has come to; `flags`: one of [`growth`]'s.
#[inline(always)]
pub(crate) fn tell<L: Loops>(
    config: &'static Config,
    state: *mut ProcessState,
    thread: u64,
    now: u64,
    address: u64,
    flags: u8,
    weight: u32,
) {
    let pid = (thread >> 32) as u32;
    // SAFETY: a map value.
    let image = unsafe { (*state).images[0].id_plus_one }.wrapping_sub(1);
    // SAFETY: a map value.
    unsafe {
        add(&raw mut (*state).faults, 1);
        add(&raw mut (*state).hits[group::FAULTS as usize], 1);
    }
    let stack = stack_of::<L>(config, state, image, thread);
    // SAFETY: a map value.
    if unsafe { (*state).unannounced } != 0 {
        lose(state, Reason::RingFullFault);
        return;
    }
    let Some(mut entry) = reserve::<Fault>() else {
        lose(state, Reason::RingFullFault);
        return;
    };
    entry.write(Fault {
        head: Head {
            kind: kind::FAULT,
            flags,
            len: size_of::<Fault>() as u16,
            pid,
        },
        tid: thread as u32,
        weight,
        time_ns: now,
        addr: address,
        stack,
    });
    submit(entry);
}

/// Pages beside each other are as likely as any: what is touched at one go is seen in its share.
#[inline(always)]
fn is_looked_at(address: u64) -> bool {
    let spread = (address >> PAGE_BITS).wrapping_mul(SPREAD);
    spread >> (u64::BITS - FAULTED_PAGES.trailing_zeros()) == 0
}

/// How many faults this one stands for; `None` if it is left out.
#[inline(always)]
fn weight(state: *mut ProcessState, now: u64) -> Option<u64> {
    // SAFETY: a map value.
    let count = window::count(unsafe { &raw mut (*state).fault_window }, now);
    let mut step = 1_u64;
    let mut passed = FAULTS_REPORTED;
    while step < 1 << 20 && count >= passed {
        step *= 2;
        passed += passed;
    }
    (count & (step - 1) == 0).then_some(step * u64::from(FAULTED_PAGES))
}
