//! Function sites: the calls of the allocator's functions, seen at their entry and their return.
//!
//! Every block is reported once. The obj and mem domains end in pymalloc for 1 to 512 bytes and in the raw
//! domain for the rest, so `_PyObject_Malloc` reports only what pymalloc serves, and the raw functions
//! report the others, whichever way they were called. `_PyObject_Realloc` reports for everything it calls.

use aya_ebpf::bindings::pt_regs;
use tracer_ebpf::{
    process::ProcessState,
    reason::Reason,
    record::block,
    site::{Role, flag},
};

use crate::{
    blocks::{ALIGNMENT, Block, send_free},
    emit::{add, lose},
    hit::Hit,
    loops::Loops,
    maps::{OpenRealloc, REALLOCS},
    process,
};

/// Largest request that pymalloc serves.
/// <https://github.com/python/cpython/blob/3.13/Include/internal/pycore_obmalloc.h>
const SMALL_REQUEST_THRESHOLD: u64 = 512;

/// Realloc nesting deeper than this in the stack is another call's left-over.
const REALLOC_REACH: u64 = 64 * 1024;

/// First half: how many bytes are asked for. `None` if the second half is not wanted.
#[inline(always)]
pub(crate) fn enter<L: Loops>(hit: &Hit, regs: &pt_regs) -> Option<u64> {
    if !hit.counts(regs) {
        return None;
    }
    let state = process::at_site::<L>(hit, regs.rip)?;
    if nested(hit, state, regs.rsp) {
        return None;
    }
    // The allocator's context is not counted: `first` and `second` are what follows it.
    let moved = |bit: u32, to: u64, from: u64| if hit.has(bit) { to } else { from };
    let first = moved(flag::FIRST_IN_RDI, regs.rdi, regs.rsi);
    let second = moved(flag::SECOND_IN_RSI, regs.rsi, regs.rdx);
    if is_realloc(hit) {
        let open = OpenRealloc {
            sp: regs.rsp,
            old: first,
            requested: second,
        };
        if REALLOCS.insert(hit.thread, open, 0).is_err() {
            lose(state, Reason::CallUnseen);
            return None;
        }
        // SAFETY: a map value.
        add(unsafe { &raw mut (*state).reallocs_open }, 1);
        return Some(second);
    }
    let calloc = hit.is(Role::ObjCalloc) || hit.is(Role::RawCalloc);
    let requested = if calloc { first.wrapping_mul(second) } else { first };
    if is_obj(hit) && !is_small(requested) && !hit.has(flag::LARGE_HERE) {
        return None;
    }
    Some(requested)
}

/// Second half: the block that the call returned.
#[inline(always)]
pub(crate) fn leave(hit: &Hit, requested: u64, address: u64) -> Block {
    Block {
        address,
        // mimalloc's classes are userspace's business.
        class: if hit.has(flag::MIMALLOC) {
            requested.max(1)
        } else if is_obj(hit) && is_small(requested) {
            class_size(requested)
        } else {
            0
        },
        requested,
    }
}

#[inline(always)]
pub(crate) fn is_realloc(hit: &Hit) -> bool {
    hit.is(Role::ObjRealloc) || hit.is(Role::RawRealloc)
}

#[inline(always)]
fn is_obj(hit: &Hit) -> bool {
    hit.is(Role::ObjMalloc) || hit.is(Role::ObjCalloc)
}

/// Whether this call was made by a `_PyObject_Realloc` that reports for it.
#[inline(always)]
fn nested(hit: &Hit, state: *mut ProcessState, sp: u64) -> bool {
    // SAFETY: a map value.
    if unsafe { (*state).reallocs_open } == 0 {
        return false;
    }
    // SAFETY: a lookup; the value is copied at once.
    match unsafe { REALLOCS.get(hit.thread) } {
        // Equal: it may end in a jump to the raw function.
        Some(outer) => sp <= outer.sp && outer.sp - sp < REALLOC_REACH,
        None => false,
    }
}

#[inline(always)]
fn is_small(requested: u64) -> bool {
    requested.wrapping_sub(1) < SMALL_REQUEST_THRESHOLD
}

/// Bytes of the size class that serves a small request.
#[inline(always)]
fn class_size(requested: u64) -> u64 {
    (requested + ALIGNMENT - 1) & !(ALIGNMENT - 1)
}

/// A call of which nothing but the entry counts: a free.
#[inline(always)]
pub(crate) fn free(hit: &Hit, state: *mut ProcessState, regs: &pt_regs) {
    let block = regs.rsi;
    if block == 0 || nested(hit, state, regs.rsp) {
        return;
    }
    let flags = if hit.is(Role::RawFree) {
        block::RAW
    } else if hit.has(flag::MIMALLOC) {
        block::MIMALLOC
    } else if hit.has(flag::LARGE_HERE) {
        block::ANY
    } else {
        block::POOL
    };
    send_free(hit, state, block, flags);
}
