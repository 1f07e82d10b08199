//! The current thread's Python thread state.
//!
//! The fast ways are in `tracer_ebpf::layout::tstate`. A thread that does not hold the GIL has none of them
//! (3.12 and newer clear the TLS variable, older versions show another thread's state): then the
//! interpreters' thread lists are searched for a state with our thread id, in a bounded number of steps.

use tracer_ebpf::{
    layout::{ImageLayout, flag, tstate},
    limits::{MAX_INTERPRETERS_SEARCHED, MAX_THREADS_SEARCHED},
};

use crate::{memory::Memory, opaque::at_most, read, walk::Walker};

/// Offset of the DTV pointer in the thread control block, x86-64.
/// <https://sourceware.org/git/?p=glibc.git;a=blob;f=sysdeps/x86_64/nptl/tls.h>
const TCB_DTV: u64 = 8;
/// Bytes of one DTV entry.
const DTV_ENTRY: u64 = 16;
/// Bytes of a pointer.
const WORD: u32 = 8;

/// No thread state, or one without a frame.
pub(crate) const NOTHING: u64 = 0;
/// A thread state that could not be read.
pub(crate) const UNREADABLE: u64 = 1;

/// The innermost frame of the current thread, or one of the two values above. Plain numbers, because an enum
/// would be a path of its own, through all that follows, for each variant.
#[inline(never)]
pub(crate) fn innermost_frame(walker: &Walker, bias: u64) -> u64 {
    let layout = walker.layout;
    let Some(fs) = read::kernel::<u64>(read::task() + u64::from(walker.config.task_fs_base)) else {
        return UNREADABLE;
    };
    let frame = current(walker, bias, fs);
    if frame <= UNREADABLE || layout.flags & flag::FRAME_VIA_CFRAME == 0 {
        return frame;
    }
    read::user(frame + u64::from(layout.cframe_current)).unwrap_or(UNREADABLE)
}

/// What the current thread state says of its frame, or one of the two values above.
///
/// The way to the place that holds the state's address is long, so that place is remembered. It stays where it is until
/// the thread ends, or its library is unloaded: what is found there must name this thread, or the way is gone again. (It
/// may lead to the same state: one that another thread has made names that one.)
#[inline(always)]
fn current(walker: &Walker, bias: u64, fs: u64) -> u64 {
    let (layout, memory) = (walker.layout, walker.memory);
    let mut slot = 0;
    // SAFETY: the memory is that of the current thread.
    unsafe {
        if (*memory).fs == fs && (*memory).bias == bias {
            slot = (*memory).slot;
        }
    }
    let mut state = 0;
    if slot != 0 {
        state = read::user_or_zero(slot);
        if state != 0 {
            let (owner, frame) = owner_and_frame(walker, state);
            if owner == fs {
                return frame;
            }
            if layout.tstate_access == tstate::RUNTIME {
                // Another thread holds the GIL.
                state = 0;
            } else {
                slot = 0;
            }
        }
    }
    if slot == 0 {
        slot = find_slot(layout, bias, fs);
        // SAFETY: as above.
        unsafe {
            (*memory).fs = fs;
            (*memory).bias = bias;
            (*memory).slot = slot;
        }
        if slot != 0 {
            state = read::user_or_zero(slot);
        }
        if state != 0 && layout.tstate_access == tstate::RUNTIME && owner_and_frame(walker, state).0 != fs {
            state = 0;
        }
    }
    if state == 0 {
        state = search(layout, bias, fs);
    }
    if state == 0 {
        return NOTHING;
    }
    read::user(state + u64::from(layout.tstate_frame)).unwrap_or(UNREADABLE)
}

/// Thread id and frame of a thread state, in one read; zeros if it fails.
#[inline(always)]
fn owner_and_frame(walker: &Walker, state: u64) -> (u64, u64) {
    let (owner, frame) = (walker.layout.tstate_thread_id, walker.layout.tstate_frame);
    let low = at_most(owner.into(), frame.into()) as u32;
    let len = owner + frame - low - low + WORD;
    // SAFETY: the memory is that of the current thread.
    unsafe {
        if Memory::read(walker.memory, state.wrapping_add(low.into()), len) != 0 {
            return (0, 0);
        }
        (
            Memory::fetched(walker.memory, owner - low),
            Memory::fetched(walker.memory, frame - low),
        )
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

/// The state whose thread id is `fs`, or 0.
#[inline(never)]
fn search(layout: &ImageLayout, bias: u64, fs: u64) -> u64 {
    let head = layout
        .runtime
        .wrapping_add(bias)
        .wrapping_add(u64::from(layout.runtime_interp_head));
    let mut interpreter: u64 = read::user_or_zero(head);
    let mut state: u64 = 0;
    // One loop for both lists: a step goes to the next thread, or to the next interpreter.
    for _ in 0..MAX_INTERPRETERS_SEARCHED + MAX_THREADS_SEARCHED {
        if state == 0 {
            if interpreter == 0 {
                return 0;
            }
            state = read::user_or_zero(interpreter + u64::from(layout.interp_threads));
            interpreter = read::user_or_zero(interpreter + u64::from(layout.interp_next));
            continue;
        }
        let Some(owner) = read::user::<u64>(state + u64::from(layout.tstate_thread_id)) else {
            return 0;
        };
        if owner == fs {
            return state;
        }
        state = read::user_or_zero(state + u64::from(layout.tstate_next));
    }
    0
}
