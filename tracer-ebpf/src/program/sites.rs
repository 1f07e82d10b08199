//! Sites within functions: the places where a copy of the allocator, inlined or not, has a block in hand.
//!
//! Nothing is kept between two hits, but for libc's realloc: one place tells the block, and what is not in a register
//! is in the header of its pool or chunk. Where that is asked, it is the header before the allocation: the site stands
//! before the first store into it.

use aya_ebpf::bindings::pt_regs;
use tracer_ebpf::{
    process::ProcessState,
    reason::Reason,
    record::block,
    site::{Operand, Role, flag, operand},
};

use crate::{
    blocks::{ALIGNMENT, Block, send_free},
    emit::lose,
    hit::{Hit, value},
    maps::{IMAGES, OpenRealloc, REALLOCS},
    read,
};

/// `struct pool_header`: `freeblock`, and the word whose upper half is `szidx`; the same from 3.5 to 3.15.
/// <https://github.com/python/cpython/blob/3.13/Include/internal/pycore_obmalloc.h>
const POOL_FREEBLOCK: u64 = 8;
const POOL_OVERHEAD: u64 = 48;
/// Size classes of 16 to 512 bytes.
const CLASSES: u64 = 32;

/// The part of a pool's header from `freeblock` to `szidx`.
#[repr(C)]
struct PoolHeader {
    freeblock: u64,
    nextpool: u64,
    prevpool: u64,
    arena: u32,
    size_class: u32,
}

/// Whether the call that the site is behind has just returned, if other ways lead there, too. Nothing is pushed
/// between the two, and signals are delivered further down.
#[inline(always)]
fn is_behind_call(operand: Operand, regs: &pt_regs) -> bool {
    let returned_to = regs.rip.wrapping_sub(u64::from(operand.behind));
    operand.behind == 0 || read::user_or_zero::<u64>(regs.rsp.wrapping_sub(8)) == returned_to
}

/// What a place within a function says of the block that has been, or is about to be, handed out.
#[inline(always)]
pub(crate) fn block(hit: &Hit, state: *mut ProcessState, regs: &pt_regs) -> Option<Block> {
    let operand = value(hit.site.operand, regs);
    let second = value(hit.site.second, regs);
    if hit.is(Role::RawResult) || hit.is(Role::ReallocResult) {
        if !is_behind_call(hit.site.operand, regs) {
            return None;
        }
        return Some(Block {
            address: operand,
            class: 0,
            requested: second,
        });
    }
    if hit.is(Role::PoolRefill) {
        if !is_behind_call(hit.site.operand, regs) {
            return None;
        }
        return refilled(hit, state, operand);
    }
    if hit.is(Role::Track) {
        return Some(Block {
            address: operand,
            class: second.max(1),
            requested: second,
        });
    }
    let index = second & u64::from(u32::MAX);
    if hit.is(Role::PoolTaken) {
        let more = i64::from(hit.site.second.displacement) as u64;
        let class = (index * ALIGNMENT).wrapping_add(more);
        // Of a class of no bytes this makes one that there is not.
        return pooled(state, operand, (class / ALIGNMENT).wrapping_sub(1));
    }
    let Some(header) = read::user::<PoolHeader>(operand + POOL_FREEBLOCK) else {
        lose(state, Reason::PoolUnreadable);
        return None;
    };
    let (address, index) = if hit.is(Role::PoolInit) {
        if u64::from(header.size_class) == index {
            (header.freeblock, index)
        } else {
            (operand + POOL_OVERHEAD, index)
        }
    } else {
        (header.freeblock, u64::from(header.size_class))
    };
    pooled(state, address, index)
}

/// The block that `allocate_from_new_pool` returned. Its pool says the class.
#[inline(always)]
pub(crate) fn refilled(hit: &Hit, state: *mut ProcessState, address: u64) -> Option<Block> {
    if address == 0 {
        return None;
    }
    let layout = IMAGES.get(hit.site.image)?;
    let pool = address & !(u64::from(layout.pool_bytes).wrapping_sub(1));
    let Some(header) = read::user::<PoolHeader>(pool + POOL_FREEBLOCK) else {
        lose(state, Reason::PoolUnreadable);
        return None;
    };
    pooled(state, address, u64::from(header.size_class))
}

#[inline(always)]
fn pooled(state: *mut ProcessState, address: u64, index: u64) -> Option<Block> {
    if index >= CLASSES {
        lose(state, Reason::PoolUnreadable);
        return None;
    }
    Some(Block {
        address,
        class: (index + 1) * ALIGNMENT,
        requested: 0,
    })
}

/// A copy of a free.
#[inline(always)]
pub(crate) fn free(hit: &Hit, state: *mut ProcessState, regs: &pt_regs) {
    let (address, flags) = if hit.is(Role::LibcFree) {
        (regs.rdi, block::RAW)
    } else {
        let kind = if hit.has(flag::DOMAIN) {
            block::DOMAIN
        } else if hit.has(flag::POOL_ONLY) {
            block::POOL
        } else {
            block::ANY
        };
        (value(hit.site.operand, regs), kind)
    };
    if address != 0 {
        send_free(hit, state, address, flags);
    }
}

/// A copy of the raw domain's realloc is about to call libc's. What comes of it is seen behind the call.
#[inline(always)]
pub(crate) fn realloc(hit: &Hit, state: *mut ProcessState, regs: &pt_regs) {
    let open = OpenRealloc {
        sp: regs.rsp,
        old: regs.rdi,
        requested: regs.rsi,
    };
    if REALLOCS.insert(hit.thread, open, 0).is_err() {
        lose(state, Reason::CallUnseen);
    }
}

/// Whether a place has a value at all.
#[inline(always)]
pub(crate) fn is_within(hit: &Hit) -> bool {
    hit.site.operand.kind != operand::NONE
}
