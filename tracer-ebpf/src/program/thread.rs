//! The current thread's Python thread state.
//!
//! The fast ways are in `tracer_ebpf::layout::tstate`. A thread that does not hold the GIL has none of them
//! (3.12 and newer clear the TLS variable, older versions show another thread's state): then the
//! interpreters' thread lists are searched for a state with our thread id, in a bounded number of steps.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use tracer_ebpf::{
    layout::{ImageLayout, NO_STUBS, flag, tstate},
    limits::{MAX_INTERPRETERS_SEARCHED, MAX_THREADS_SEARCHED, STATE_WINDOW},
};

use crate::{
    loops::{Loops, Rounds},
    memory::{Around, Memory},
    read,
    walk::Walker,
};

/// Offset of the DTV pointer in the thread control block, x86-64.
/// <https://sourceware.org/git/?p=glibc.git;a=blob;f=sysdeps/x86_64/nptl/tls.h>
const TCB_DTV: u64 = 8;
/// Bytes of one DTV entry.
const DTV_ENTRY: u64 = 16;
/// `PyThreadState._status.active`, 3.12 and newer: the state is the current one of its thread.
/// <https://github.com/python/cpython/blob/3.13/Include/cpython/pystate.h>
const ACTIVE: u64 = 1 << 4;

/// No thread state, or one without a frame.
pub(crate) const NOTHING: u64 = 0;
/// A thread state that could not be read.
pub(crate) const UNREADABLE: u64 = 1;
/// A thread state that is in the interpreters' lists only.
const ELSEWHERE: u64 = 2;

/// What is remembered of a thread.
#[repr(C)]
pub(crate) struct Thread {
    /// Process and thread, as `bpf_get_current_pid_tgid` gives them.
    pub(crate) number: u64,
    /// FS base; it stays what it is until the thread ends or execs.
    fs: u64,
    /// Load bias of the image that `state` belongs to.
    bias: u64,
    /// The thread state that was current at the last hit, or 0.
    state: u64,
}

/// What is remembered of the current thread, in the memory of this hit; `None` if the kernel's memory cannot be read.
#[inline(always)]
fn remembered(walker: &Walker) -> Option<*mut Thread> {
    // SAFETY: the memory is that of this hit.
    unsafe {
        let thread = &raw mut (*walker.memory).thread;
        if (*thread).number != walker.thread {
            (*thread).fs = read::kernel(read::task() + u64::from(walker.config.task_fs_base))?;
            (*thread).state = 0;
            (*thread).number = walker.thread;
        }
        Some(thread)
    }
}

/// The innermost frame of the current thread, or one of the two values above. Plain numbers, because an enum
/// would be a path of its own, through all that follows, for each variant.
#[inline(always)]
pub(crate) fn innermost_frame<L: Loops>(walker: &Walker, bias: u64) -> u64 {
    let layout = walker.layout;
    let mut frame = current(walker, bias);
    if frame == ELSEWHERE {
        frame = search::<L>(walker, bias);
    }
    if frame <= UNREADABLE || layout.flags & flag::FRAME_VIA_CFRAME == 0 {
        return frame;
    }
    let at = frame.wrapping_add(u64::from(layout.cframe_current));
    if layout.frame_owner_skip == NO_STUBS {
        return read::user(at).unwrap_or(UNREADABLE);
    }
    // It is a variable of the C function that also has the frame of its stub: one piece for both.
    // SAFETY: the memory is that of this hit.
    unsafe {
        match Memory::look(walker.memory, at, Around::Both) {
            Some(index) => Memory::word(walker.memory, index, 0),
            None => UNREADABLE,
        }
    }
}

/// What the current thread state says of its frame, or one of the values above; [`ELSEWHERE`] if it is not where the
/// interpreter would look.
///
/// From 3.12 on a thread state says itself whether it is the current one of its thread, so that the one of the last hit
/// needs no other look than at itself.
#[inline(never)]
fn current(walker: &Walker, bias: u64) -> u64 {
    let layout = walker.layout;
    let Some(thread) = remembered(walker) else {
        return UNREADABLE;
    };
    // SAFETY: the memory is that of this hit.
    let (fs, of, mut state) = unsafe { ((*thread).fs, (*thread).bias, (*thread).state) };
    if state != 0 && of == bias && layout.flags & flag::STATE_SAYS_ACTIVE != 0 {
        let seen = Seen::of(layout, state);
        if seen.owner == fs && seen.status & ACTIVE != 0 {
            return seen.frame;
        }
    }
    let slot = find_slot(layout, bias, fs);
    state = 0;
    if slot != 0 {
        state = read::user_or_zero(slot);
    }
    if state != 0 {
        let seen = Seen::of(layout, state);
        if seen.owner == fs {
            // SAFETY: as above.
            unsafe {
                (*thread).bias = bias;
                (*thread).state = state;
            }
            return seen.frame;
        }
        if layout.tstate_access != tstate::RUNTIME {
            // One that another thread has made names that one.
            return seen.frame;
        }
    }
    // Another thread holds the GIL, or none of this process does.
    ELSEWHERE
}

/// What a thread state says.
struct Seen {
    /// FS base of its thread.
    owner: u64,
    /// Its frame, or what leads to it; [`UNREADABLE`] if the state cannot be read.
    frame: u64,
    /// The word that [`ACTIVE`] is in.
    status: u64,
}

impl Seen {
    /// One read.
    #[inline(always)]
    fn of(layout: &ImageLayout, state: u64) -> Self {
        let mut window = MaybeUninit::<[u64; STATE_WINDOW / 8]>::uninit();
        let window = window.as_mut_ptr().cast::<u8>();
        let from = state + u64::from(layout.tstate_window);
        // SAFETY: the memory is as long as the window.
        if unsafe { bpf_probe_read_user(window.cast(), STATE_WINDOW as u32, from as *const _) } != 0 {
            return Self {
                owner: 0,
                frame: UNREADABLE,
                status: 0,
            };
        }
        let word = |offset: u32| {
            let at = (offset & (STATE_WINDOW as u32 - 8)) as usize;
            // SAFETY: masked so that the word is in the window.
            unsafe { window.add(at).cast::<u64>().read_volatile() }
        };
        Self {
            owner: word(layout.tstate_thread_id),
            frame: word(layout.tstate_frame),
            status: word(layout.tstate_status) >> (layout.tstate_status & 4) * 8,
        }
    }
}

/// The address at which the interpreter itself would look for the current state, or 0.
#[inline(always)]
fn find_slot(layout: &ImageLayout, bias: u64, fs: u64) -> u64 {
    let slot = (layout.tstate_arg as u64).wrapping_add(bias);
    match layout.tstate_access {
        tstate::FS_OFFSET => fs.wrapping_add(layout.tstate_arg as u64),
        tstate::GOT_OFFSET => at_fs_offset(fs, read::user_or_zero(slot)),
        tstate::DTV => {
            let [module, offset] = read::user_or_zero::<[u64; 2]>(slot);
            in_module(fs, module, offset)
        }
        tstate::DTV_LOCAL => {
            let (pair, distance) = tstate::unpack_local(layout.tstate_arg);
            let [module, offset] = read::user_or_zero::<[u64; 2]>(pair.wrapping_add(bias));
            in_module(fs, module, offset.wrapping_add(distance))
        }
        tstate::DESCRIPTOR => descriptor(fs, read::user_or_zero(slot + 8)),
        tstate::RUNTIME => layout
            .runtime
            .wrapping_add(bias)
            .wrapping_add(layout.tstate_arg as u64),
        _ => 0,
    }
}

#[inline(always)]
fn at_fs_offset(fs: u64, offset: u64) -> u64 {
    if offset == 0 { 0 } else { fs.wrapping_add(offset) }
}

/// The argument of a TLS descriptor is the FS offset where the variable is in the static block (negative), or
/// points to `{module, offset}` where it is not.
#[inline(always)]
fn descriptor(fs: u64, argument: u64) -> u64 {
    if (argument as i64) < 0 {
        return at_fs_offset(fs, argument);
    }
    let [module, offset] = read::user_or_zero::<[u64; 2]>(argument);
    in_module(fs, module, offset)
}

#[inline(always)]
fn in_module(fs: u64, module: u64, offset: u64) -> u64 {
    if module == 0 || module > 4096 {
        return 0;
    }
    let dtv: u64 = read::user_or_zero(fs + TCB_DTV);
    let block: u64 = read::user_or_zero(dtv.wrapping_add(module * DTV_ENTRY));
    // A block that this thread has not touched is marked with all ones.
    if block == 0 || block == u64::MAX {
        0
    } else {
        block.wrapping_add(offset)
    }
}

/// What the first state in the lists that names this thread says of its frame, or one of the values above.
#[inline(never)]
fn search<L: Loops>(walker: &Walker, bias: u64) -> u64 {
    let layout = walker.layout;
    // SAFETY: the memory is that of this hit.
    let fs = unsafe { (*walker.memory).thread.fs };
    let head = layout
        .runtime
        .wrapping_add(bias)
        .wrapping_add(u64::from(layout.runtime_interp_head));
    let mut interpreter: u64 = read::user_or_zero(head);
    let mut state: u64 = 0;
    let mut rounds = Rounds::<L>::new(
        MAX_INTERPRETERS_SEARCHED + MAX_THREADS_SEARCHED,
        walker.config.zero,
    );
    // One loop for both lists: a step goes to the next thread, or to the next interpreter.
    while rounds.next() {
        if state == 0 {
            if interpreter == 0 {
                return NOTHING;
            }
            state = read::user_or_zero(interpreter + u64::from(layout.interp_threads));
            interpreter = read::user_or_zero(interpreter + u64::from(layout.interp_next));
            continue;
        }
        let window = state + u64::from(layout.tstate_window);
        let Some(owner) = read::user::<u64>(window + u64::from(layout.tstate_thread_id)) else {
            return NOTHING;
        };
        if owner == fs {
            return read::user(window + u64::from(layout.tstate_frame)).unwrap_or(UNREADABLE);
        }
        state = read::user_or_zero(state + u64::from(layout.tstate_next));
    }
    NOTHING
}
