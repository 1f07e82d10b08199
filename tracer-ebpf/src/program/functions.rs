//! What a hit of an allocator function means.
//!
//! Every block is reported once. The obj and mem domains end in pymalloc for 1 to 512 bytes and in the raw
//! domain for the rest, so `_PyObject_Malloc` reports only what pymalloc serves, and the raw functions
//! report the others, whichever way they were called. `_PyObject_Realloc` reports for everything it calls.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_attach_cookie},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracer_ebpf::{
    config::Config,
    process::ProcessState,
    reason::Reason,
    record::{Alloc, Free, Head, Realloc, block, kind, stack_id::UNREADABLE},
    site::{Role, Site, flag},
};

use crate::{
    emit::{add, lose, lose_unattributed, reserve, submit},
    maps::{CallKey, IMAGES, OpenRealloc, PENDING, REALLOCS, SITES, config},
    process, read, session,
    walk::{self, Walker},
};

/// Largest request that pymalloc serves, and the step of its size classes.
/// <https://github.com/python/cpython/blob/3.13/Include/internal/pycore_obmalloc.h>
const SMALL_REQUEST_THRESHOLD: u64 = 512;
const ALIGNMENT: u64 = 16;

/// glibc's chunk header: the size of the chunk, with three flag bits, in the word before the block.
/// <https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.c>
const CHUNK_FLAGS: u64 = 7;
const CHUNK_MMAPPED: u64 = 2;
const CHUNK_OVERHEAD: u64 = 8;
const CHUNK_MMAPPED_OVERHEAD: u64 = 16;
const CHUNK_LEAST: u64 = 32;
/// A chunk can be this much larger than asked for: a remainder too small to split, or a page's rest.
const CHUNK_SLACK: u64 = 8192;

/// Realloc nesting deeper than this in the stack is another call's left-over.
const REALLOC_REACH: u64 = 64 * 1024;

/// A hit: who, where.
struct Hit {
    config: &'static Config,
    site: &'static Site,
    index: u64,
    thread: u64,
    pid: u32,
}

impl Hit {
    #[inline(always)]
    fn new(cookie: u64) -> Option<Self> {
        let thread = bpf_get_current_pid_tgid();
        let (Some(config), Some(site)) = (config(), SITES.get(cookie as u32)) else {
            lose_unattributed(Reason::SiteUnknown);
            return None;
        };
        Some(Self {
            config,
            site,
            index: cookie,
            thread,
            pid: (thread >> 32) as u32,
        })
    }

    #[inline(always)]
    fn is(&self, role: Role) -> bool {
        self.site.role == role as u32
    }

    #[inline(always)]
    fn is_realloc(&self) -> bool {
        self.is(Role::ObjRealloc) || self.is(Role::RawRealloc)
    }

    #[inline(always)]
    fn head(&self, kind: u8, flags: u8, len: usize) -> Head {
        Head {
            kind,
            flags,
            len: len as u16,
            pid: self.pid,
        }
    }

    #[inline(always)]
    fn stack(&self, state: *mut ProcessState) -> u64 {
        let Some(layout) = IMAGES.get(self.site.image) else {
            lose(state, Reason::SiteUnknown);
            return UNREADABLE;
        };
        let walker = Walker {
            config: self.config,
            layout,
            state,
            pid: self.pid,
            tid: self.thread as u32,
        };
        walk::stack(&walker, process::bias_of(state, self.site.image))
    }
}

/// First half: how many bytes are asked for. `None` if the second half is not wanted.
#[inline(always)]
fn enter(hit: &Hit, regs: &pt_regs) -> Option<u64> {
    let state = process::at_site(hit.pid, hit.site, regs.rip)?;
    if nested(hit, state, regs.rsp) {
        return None;
    }
    // The allocator's context is not counted: `first` and `second` are what follows it.
    let moved = |bit: u32, to: u64, from: u64| if hit.site.flags & bit != 0 { to } else { from };
    let first = moved(flag::FIRST_IN_RDI, regs.rdi, regs.rsi);
    let second = moved(flag::SECOND_IN_RSI, regs.rsi, regs.rdx);
    if hit.is_realloc() {
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
    let obj = hit.is(Role::ObjMalloc) || hit.is(Role::ObjCalloc);
    if obj && !is_small(requested) && hit.site.flags & flag::LARGE_HERE == 0 {
        return None;
    }
    Some(requested)
}

/// Second half: what came of it.
#[inline(always)]
fn leave(hit: &Hit, requested: u64, block: u64) -> Option<()> {
    let state = process::known(hit.pid)?;
    // The stack first, whatever is to be reported: one walk for the verifier to follow.
    let stack = if block == 0 { UNREADABLE } else { hit.stack(state) };
    if !hit.is_realloc() {
        if block != 0 {
            let obj = hit.is(Role::ObjMalloc) || hit.is(Role::ObjCalloc);
            send_alloc(hit, state, requested, block, stack, obj && is_small(requested));
        }
        return None;
    }
    // SAFETY: a map value.
    add(unsafe { &raw mut (*state).reallocs_open }, u64::MAX);
    // SAFETY: a lookup; the value is copied at once.
    let Some(open) = unsafe { REALLOCS.get(hit.thread) }.copied() else {
        lose(state, Reason::CallUnseen);
        return None;
    };
    let _ = REALLOCS.remove(hit.thread);
    if block != 0 {
        send_realloc(hit, state, open, block, stack);
    }
    None
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

/// Usable bytes of a block of libc's malloc: from its header, or computed if that is not glibc's.
#[inline(always)]
fn usable_size(state: *mut ProcessState, block: u64, requested: u64) -> u64 {
    let computed =
        ((requested + CHUNK_OVERHEAD + ALIGNMENT - 1) & !(ALIGNMENT - 1)).max(CHUNK_LEAST) - CHUNK_OVERHEAD;
    let Some(header) = read::user::<u64>(block - CHUNK_OVERHEAD) else {
        lose(state, Reason::ChunkUnreadable);
        return computed;
    };
    let overhead = if header & CHUNK_MMAPPED != 0 {
        CHUNK_MMAPPED_OVERHEAD
    } else {
        CHUNK_OVERHEAD
    };
    let size = (header & !CHUNK_FLAGS).wrapping_sub(overhead);
    if size >= requested && size - requested <= CHUNK_SLACK {
        size
    } else {
        computed
    }
}

#[inline(always)]
fn send_alloc(hit: &Hit, state: *mut ProcessState, requested: u64, block: u64, stack: u64, pool: bool) {
    // SAFETY: a map value.
    add(unsafe { &raw mut (*state).allocs }, 1);
    let (flags, size) = if pool {
        (block::POOL, class_size(requested))
    } else {
        (block::RAW, usable_size(state, block, requested))
    };
    let Some(mut entry) = reserve::<Alloc>() else {
        lose(state, Reason::RingFullAlloc);
        return;
    };
    entry.write(Alloc {
        head: hit.head(kind::ALLOC, flags, size_of::<Alloc>()),
        tid: hit.thread as u32,
        reserved: 0,
        time_ns: read::now(),
        addr: block,
        size,
        stack,
    });
    submit(entry);
}

#[inline(always)]
fn send_realloc(hit: &Hit, state: *mut ProcessState, open: OpenRealloc, block: u64, stack: u64) {
    // SAFETY: a map value.
    add(unsafe { &raw mut (*state).reallocs }, 1);
    let raw_size = usable_size(state, block, open.requested);
    let Some(mut entry) = reserve::<Realloc>() else {
        lose(state, Reason::RingFullRealloc);
        return;
    };
    let flags = if hit.is(Role::RawRealloc) {
        block::RAW
    } else {
        block::ANY
    };
    entry.write(Realloc {
        head: hit.head(kind::REALLOC, flags, size_of::<Realloc>()),
        tid: hit.thread as u32,
        reserved: 0,
        time_ns: read::now(),
        old: open.old,
        addr: block,
        requested: open.requested,
        raw_size,
        stack,
    });
    submit(entry);
}

/// A free, or the death of a code object: nothing but the entry counts.
#[inline(always)]
fn entry_only(hit: &Hit, regs: &pt_regs) -> Option<()> {
    let state = process::at_site(hit.pid, hit.site, regs.rip)?;
    if hit.is(Role::CodeDealloc) {
        crate::code::forget(state, hit.pid, regs.rdi);
        return None;
    }
    let block = regs.rsi;
    if block == 0 || nested(hit, state, regs.rsp) {
        return None;
    }
    // SAFETY: a map value.
    add(unsafe { &raw mut (*state).frees }, 1);
    let Some(mut entry) = reserve::<Free>() else {
        lose(state, Reason::RingFullFree);
        return None;
    };
    let flags = if hit.is(Role::RawFree) {
        block::RAW
    } else if hit.site.flags & flag::LARGE_HERE != 0 {
        block::ANY
    } else {
        block::POOL
    };
    entry.write(Free {
        head: hit.head(kind::FREE, flags, size_of::<Free>()),
        tid: hit.thread as u32,
        reserved: 0,
        time_ns: read::now(),
        addr: block,
    });
    submit(entry);
    None
}

/// Does nothing: what a hit costs without us.
#[uprobe]
fn on_nothing(_ctx: ProbeContext) -> u32 {
    0
}

/// Frees and code deaths.
#[uprobe]
fn on_entry(ctx: ProbeContext) -> u32 {
    // SAFETY: the context of a uprobe is `pt_regs`.
    let (cookie, regs) = unsafe { (bpf_get_attach_cookie(ctx.as_ptr()), &*ctx.regs) };
    if let Some(hit) = Hit::new(cookie) {
        let _ = entry_only(&hit, regs);
    }
    0
}

/// Allocations and reallocations, both halves in one program (kernels with session links).
/// Returning 1 from the first half cancels the second. aya's macro would return 0 whatever we say, so this
/// program is declared without it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
extern "C" fn on_session(ctx: *mut c_void) -> u32 {
    // SAFETY: the context of a uprobe is `pt_regs`.
    let (cookie, regs) = unsafe { (bpf_get_attach_cookie(ctx), &*ctx.cast::<pt_regs>()) };
    let Some(hit) = Hit::new(cookie) else {
        return 1;
    };
    let kept = session::cookie();
    if session::is_return() {
        // SAFETY: the kernel gives a word that lives as long as the call.
        let _ = leave(&hit, unsafe { *kept }, regs.rax);
        return 0;
    }
    let Some(requested) = enter(&hit, regs) else {
        return 1;
    };
    // SAFETY: as above.
    unsafe { *kept = requested };
    0
}

/// First half, on kernels without session links.
#[uprobe]
fn on_call(ctx: ProbeContext) -> u32 {
    // SAFETY: the context of a uprobe is `pt_regs`.
    let (cookie, regs) = unsafe { (bpf_get_attach_cookie(ctx.as_ptr()), &*ctx.regs) };
    if let Some(hit) = Hit::new(cookie) {
        if let Some(requested) = enter(&hit, regs) {
            let _ = PENDING.insert(
                CallKey {
                    thread: hit.thread,
                    site: hit.index,
                },
                requested,
                0,
            );
        }
    }
    0
}

/// Second half, on kernels without session links.
#[uretprobe]
fn on_return(ctx: RetProbeContext) -> u32 {
    // SAFETY: the context of a uprobe is `pt_regs`.
    let (cookie, regs) = unsafe { (bpf_get_attach_cookie(ctx.as_ptr()), &*ctx.regs) };
    if let Some(hit) = Hit::new(cookie) {
        let key = CallKey {
            thread: hit.thread,
            site: hit.index,
        };
        // SAFETY: a lookup; the value is copied at once.
        if let Some(requested) = unsafe { PENDING.get(key) }.copied() {
            let _ = PENDING.remove(key);
            let _ = leave(&hit, requested, regs.rax);
        }
    }
    0
}
