//! Fork, exec and exit: state is passed on, replaced, taken away, and the last counters are sent.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::raw_tracepoint, programs::RawTracePointContext};
use aya_log_ebpf::debug;
use tracer_ebpf::{
    config::filter,
    process::ProcessState,
    reason::Reason,
    record::{Gone, Head, kind},
};

use crate::{
    clock,
    emit::{lose, lose_unattributed, reserve, submit},
    maps::{PROCESSES, REALLOCS, TARGETS, config},
    memory::forget_thread,
    read,
};

/// `sched_process_fork(parent, child)`.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn on_fork(ctx: RawTracePointContext) -> i32 {
    let _ = fork(&ctx);
    0
}

fn fork(ctx: &RawTracePointContext) -> Option<()> {
    let config = config()?;
    let (parent, child): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let tgid: u32 = read::kernel(child + u64::from(config.task_tgid))?;
    let pid: u32 = read::kernel(child + u64::from(config.task_pid))?;
    if tgid != pid {
        return None;
    }
    if PROCESSES.get_ptr(tgid).is_some() {
        // The end of an earlier process of this number could not be told: its ring was full.
        lose_unattributed(Reason::RingFullLifecycle);
        let _ = PROCESSES.remove(tgid);
    }
    if config.filter == filter::ALL {
        return None;
    }
    let parent: u32 = read::kernel(parent + u64::from(config.task_tgid))?;
    // SAFETY: a lookup; the value is copied at once.
    match unsafe { TARGETS.get(parent) }.copied() {
        // A child of a rejected program is that program, too, until it becomes another one.
        Some(verdict) => {
            let _ = TARGETS.insert(tgid, verdict, 0);
            debug!(ctx, "process {} is treated like its parent {}", tgid, parent);
        }
        // What was said of an earlier process of this number, perhaps after its end.
        None => drop(TARGETS.remove(tgid)),
    }
    None
}

/// `sched_process_exec(task, old_pid, binprm)`: in the context of the process.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn on_exec(ctx: RawTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    let old: u64 = ctx.arg(1);
    // The thread that execs takes the number of the first one, and leaves its own.
    forget_thread(thread & !u64::from(u32::MAX) | old & u64::from(u32::MAX));
    forget_thread(thread);
    gone(&ctx, kind::EXEC);
    0
}

/// `sched_process_exit(task, ...)`: for every thread; the last one counts.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn on_exit(ctx: RawTracePointContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    let _ = REALLOCS.remove(thread);
    forget_thread(thread);
    if last_thread().unwrap_or(false) {
        gone(&ctx, kind::EXIT);
        let _ = TARGETS.remove((thread >> 32) as u32);
    }
    0
}

/// Whether no other thread of the current process is alive. The count is taken down before the tracepoint.
fn last_thread() -> Option<bool> {
    let config = config()?;
    let signal: u64 = read::kernel(read::task() + u64::from(config.task_signal))?;
    let live: u32 = read::kernel(signal + u64::from(config.signal_live))?;
    Some(live == 0)
}

fn gone(ctx: &RawTracePointContext, kind: u8) {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(state) = PROCESSES.get_ptr_mut(pid) else {
        return;
    };
    let Some(mut entry) = reserve::<Gone>() else {
        // The state stays, so that userspace finds the counters.
        lose(state, Reason::RingFullLifecycle);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` is ring memory of this type, `state` a map value.
    unsafe { fill(record, state, kind, pid) };
    submit(entry);
    let _ = PROCESSES.remove(pid);
    debug!(ctx, "process {} is gone, record kind {}", pid, kind);
}

#[inline(always)]
unsafe fn fill(record: *mut Gone, state: *mut ProcessState, kind: u8, pid: u32) {
    // SAFETY: by contract of the only caller.
    unsafe {
        (*record).head = Head {
            kind,
            flags: 0,
            len: size_of::<Gone>() as u16,
            pid,
        };
        (*record).time_ns = clock::now();
        (*record).allocs = (*state).allocs;
        (*record).frees = (*state).frees;
        (*record).reallocs = (*state).reallocs;
        (*record).faults = (*state).faults;
        (*record).hits = (*state).hits;
        (*record).run_ns = (*state).run_ns;
        (*record).losses = (*state).losses;
    }
}
