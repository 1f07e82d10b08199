//! The probe programs: what a hit of each kind of site leads to.
//!
//! `on_entry` serves what needs no stack; all others go through [`report`], which walks the stack in one place.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::generated::bpf_get_attach_cookie,
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::{
    config::sampled,
    process::ProcessState,
    reason::Reason,
    record::{block, stack_id::UNREADABLE},
    site::{Role, flag, group},
};

use crate::{
    blocks::{Block, send_alloc, send_realloc},
    emit::{add, lose},
    functions,
    hit::Hit,
    loops::{Counted, Loops, MayGoto},
    maps::{CallKey, PENDING, REALLOCS},
    opaque::forget,
    process, session, sites,
};

/// Where a program's run comes from, and the registers there.
#[inline(always)]
fn hit<'a>(ctx: *mut c_void) -> Option<(Hit, &'a pt_regs)> {
    // SAFETY: the context of a uprobe is `pt_regs`, for as long as the program runs.
    let (cookie, regs) = unsafe { (bpf_get_attach_cookie(ctx), &*ctx.cast::<pt_regs>()) };
    Some((Hit::new(cookie)?, regs))
}

/// Frees, code deaths, and the calls of libc's realloc.
#[uprobe]
fn on_entry(ctx: ProbeContext) -> u32 {
    entered::<MayGoto>(&ctx)
}

/// The same on kernels without session links.
#[uprobe]
fn on_entry_old(ctx: ProbeContext) -> u32 {
    entered::<Counted>(&ctx)
}

#[inline(always)]
fn entered<L: Loops>(ctx: &ProbeContext) -> u32 {
    if let Some((hit, regs)) = hit(ctx.as_ptr()) {
        let _ = entry::<L>(&hit, regs);
        hit.over();
    }
    0
}

#[inline(always)]
fn entry<L: Loops>(hit: &Hit, regs: &pt_regs) -> Option<()> {
    let state = process::at_site::<L>(hit, regs.rip)?;
    if hit.is(Role::CodeDealloc) {
        crate::code::forget(state, hit.pid, regs.rdi);
    } else if hit.is(Role::LibcRealloc) {
        sites::realloc(hit, state, regs);
    } else if hit.is(Role::GuardedFree) || hit.is(Role::LibcFree) || hit.is(Role::Untrack) {
        if hit.counts(regs) {
            sites::free(hit, state, regs);
        }
    } else {
        functions::free(hit, state, regs);
    }
    None
}

/// Both halves of calls, in one program (kernels with session links). Returning 1 from the first half cancels the second.
/// aya's macro would return 0 whatever we say, so this program is declared without it.
///
/// Never at a place within a function: there the kernel would take the word on top of the stack for a return address if
/// the second half were not cancelled.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn on_session(ctx: *mut c_void) -> u32 {
    let Some((hit, regs)) = hit(ctx) else {
        return 1;
    };
    let kept = session::cookie(ctx);
    if session::is_return(ctx) {
        // SAFETY: the kernel gives a word that lives as long as the call.
        let requested = unsafe { *kept };
        let _ = report::<MayGoto>(&hit, regs, requested);
        hit.over();
        return 1;
    }
    if hit.is(Role::PoolRefill) {
        return 0;
    }
    let requested = functions::enter::<MayGoto>(&hit, regs);
    hit.over();
    let Some(requested) = requested else {
        return 1;
    };
    // SAFETY: as above.
    unsafe { *kept = requested };
    0
}

/// Places within functions.
#[uprobe]
fn on_place(ctx: ProbeContext) -> u32 {
    within::<MayGoto>(&ctx)
}

/// The same on kernels without session links.
#[uprobe]
fn on_place_old(ctx: ProbeContext) -> u32 {
    within::<Counted>(&ctx)
}

#[inline(always)]
fn within<L: Loops>(ctx: &ProbeContext) -> u32 {
    if let Some((hit, regs)) = hit(ctx.as_ptr()) {
        let _ = report::<L>(&hit, regs, 0);
        hit.over();
    }
    0
}

/// First halves of calls, on kernels without session links.
#[uprobe]
fn on_call(ctx: ProbeContext) -> u32 {
    if let Some((hit, regs)) = hit(ctx.as_ptr()) {
        if let Some(requested) = functions::enter::<Counted>(&hit, regs) {
            let _ = PENDING.insert(key(&hit), requested, 0);
        }
        hit.over();
    }
    0
}

/// Second halves of calls, on kernels without session links.
#[uretprobe]
fn on_return(ctx: RetProbeContext) -> u32 {
    if let Some((hit, regs)) = hit(ctx.as_ptr()) {
        let mut requested = 0;
        if !hit.is(Role::PoolRefill) {
            let key = key(&hit);
            // SAFETY: a lookup; the value is copied at once.
            let Some(pending) = unsafe { PENDING.get(key) }.copied() else {
                return 0;
            };
            let _ = PENDING.remove(key);
            requested = pending;
        }
        let _ = report::<Counted>(&hit, regs, requested);
        hit.over();
    }
    0
}

#[inline(always)]
fn key(hit: &Hit) -> CallKey {
    CallKey {
        thread: hit.thread,
        site: hit.index,
    }
}

/// What is to be sent; plain numbers, see [`report`].
mod outcome {
    /// The block is new.
    pub(super) const ALLOC: u64 = 1;
    /// It takes the place of another, in the obj or mem domain.
    pub(super) const REALLOC: u64 = 2;
    /// The same in the raw domain.
    pub(super) const REALLOC_RAW: u64 = 3;
}

/// A block has come into being, or is about to: at a place within a function, or by a call's return.
///
/// Many kinds of sites lead to one walk of the stack. What they differ in is made unknown to the verifier before
/// it, so that it follows the walk once and not once for each.
#[inline(always)]
fn report<L: Loops>(hit: &Hit, regs: &pt_regs, requested: u64) -> Option<()> {
    let within = sites::is_within(hit);
    let state = if within {
        process::at_site::<L>(hit, regs.rip)?
    } else {
        process::known(hit.pid, hit.site)?
    };
    let new = if within {
        if !hit.counts(regs) {
            return None;
        }
        let new = sites::block(hit, state, regs)?;
        if hit.site.group == group::BLOCKS && !sampled(new.address, hit.config.sample_mask) {
            return None;
        }
        new
    } else if hit.is(Role::PoolRefill) {
        // No first half has looked.
        if hit.is_muted() {
            return None;
        }
        sites::refilled(hit, state, regs.rax)?
    } else {
        functions::leave(hit, requested, regs.rax)
    };
    let outcome = if hit.is(Role::ObjRealloc) {
        outcome::REALLOC
    } else if hit.is(Role::RawRealloc) || hit.is(Role::ReallocResult) {
        outcome::REALLOC_RAW
    } else {
        outcome::ALLOC
    };
    if functions::is_realloc(hit) {
        // SAFETY: a map value.
        add(unsafe { &raw mut (*state).reallocs_open }, u64::MAX);
    }
    let nothing = hit.config.nothing;
    let new = Block {
        address: forget(new.address, nothing),
        class: forget(new.class, nothing),
        requested: forget(new.requested, nothing),
    };
    let outcome = forget(outcome, nothing);
    let stack = if new.address == 0 {
        UNREADABLE
    } else {
        hit.stack::<L>(state)
    };
    if outcome == outcome::ALLOC {
        if new.address != 0 {
            send_alloc(hit, state, new, stack);
        }
        return None;
    }
    let flags = if hit.has(flag::MIMALLOC) {
        block::MIMALLOC
    } else if outcome == outcome::REALLOC {
        block::ANY
    } else {
        block::RAW
    };
    reallocated(hit, state, new, flags, stack)
}

#[inline(always)]
fn reallocated(hit: &Hit, state: *mut ProcessState, new: Block, flags: u8, stack: u64) -> Option<()> {
    // SAFETY: a lookup; the value is copied at once.
    let Some(open) = unsafe { REALLOCS.get(hit.thread) }.copied() else {
        lose(state, Reason::CallUnseen);
        return None;
    };
    let _ = REALLOCS.remove(hit.thread);
    if new.address != 0 {
        send_realloc(hit, state, open, new.address, flags, stack);
    }
    None
}
