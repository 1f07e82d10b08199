//! The Python stack: one walk over the frames, which hashes them and notes them in the hit's memory; if the id is
//! new for the process, the code objects that are new are sent, and the stack behind them.
//!
//! Counters go through [`low_bits`]: states of the verifier that differ only in what it knows of a counter would
//! multiply.

use tracer_ebpf::{
    config::Config,
    layout::ImageLayout,
    limits::MAX_FRAMES,
    process::ProcessState,
    reason::Reason,
    record::{Frame, Head, StackHead, end, kind, stack_id},
};

use crate::{
    code,
    emit::{lose, output},
    loops::{Loops, Rounds},
    maps::{CODES, CodeKey, STACKS},
    memory::{Around, Memory},
    opaque::{less, low_bits},
    thread,
};

/// The low bits of a code pointer are a tag in 3.14 and newer; code objects are aligned in all versions.
/// <https://github.com/python/cpython/blob/3.14/Include/internal/pycore_stackref.h>
const TAG_MASK: u64 = 3;

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// Another odd number: far apart from each other are the products of two code objects' addresses.
const SPREAD: u64 = 0xd1b5_4a32_d192_ed03;

/// Who walks: everything that stays the same during a walk.
#[derive(Clone, Copy)]
pub(crate) struct Walker {
    pub(crate) config: &'static Config,
    pub(crate) layout: &'static ImageLayout,
    pub(crate) state: *mut ProcessState,
    pub(crate) memory: *mut Memory,
    pub(crate) pid: u32,
    /// Process and thread.
    pub(crate) thread: u64,
}

/// A frame as the walk meets it.
#[derive(Clone, Copy)]
pub(crate) struct Raw {
    code: u64,
    instr: u64,
    /// 1 for a Python frame, 0 for a C stub. A number and no `bool`: what hangs on it is computed, not
    /// branched on, so that the verifier follows one path through an iteration.
    counts: u64,
}

/// What the first pass found.
struct Summary {
    hash: u64,
    /// Python frames.
    depth: u32,
    /// The frame at which the walk stopped, or 0 at the end.
    rest: u64,
}

impl Summary {
    #[inline(always)]
    fn end(&self) -> u8 {
        if self.rest == 0 {
            end::COMPLETE
        } else if self.depth as usize == MAX_FRAMES {
            end::TRUNCATED
        } else {
            end::UNREADABLE
        }
    }
}

/// Id of the current thread's stack; sends it if the process has not sent it before.
///
/// One call in each program: every call is a walk of its own for the verifier.
#[inline(always)]
pub(crate) fn stack<L: Loops>(walker: &Walker, bias: u64) -> u64 {
    // SAFETY: the memory is that of this hit.
    unsafe { Memory::begin(walker.memory) };
    let top = thread::innermost_frame::<L>(walker, bias);
    if top <= thread::UNREADABLE {
        if top == thread::UNREADABLE {
            lose(walker.state, Reason::ThreadStateUnreadable);
            return stack_id::UNREADABLE;
        }
        return stack_id::NO_PYTHON;
    }
    let summary = summarize::<L>(walker, top);
    if summary.depth == 0 {
        return if summary.rest == 0 {
            stack_id::NO_PYTHON
        } else {
            stack_id::UNREADABLE
        };
    }
    let end = summary.end();
    let id = mix(summary.hash, u64::from(end)) | stack_id::FIRST_HASH;
    let key = id ^ u64::from(walker.pid).wrapping_mul(MIX);
    // SAFETY: the memory is that of this hit.
    if unsafe { !Memory::knows(walker.memory, key) } {
        // SAFETY: a lookup; the value is not kept.
        if unsafe { STACKS.get(key) }.is_some() {
            // SAFETY: as above.
            unsafe { Memory::remember(walker.memory, key) };
        } else {
            send::<L>(walker, summary.depth, id, key, end);
        }
    }
    id
}

/// Takes the frame at `at` and moves `at` to the one that called it. `None` at the end (`at` is 0) and where
/// memory cannot be read.
#[inline(always)]
fn step(walker: &Walker, at: &mut u64) -> Option<Raw> {
    // Not left to the read: one that fails is dear.
    if *at == 0 {
        return None;
    }
    let layout = walker.layout;
    // SAFETY: the memory is that of this hit.
    let (back, code, owner, instr) = unsafe {
        let from = at.wrapping_add(u64::from(layout.frame_window));
        let index = Memory::look(walker.memory, from, Around::Below)?;
        (
            Memory::word(walker.memory, index, layout.frame_back),
            Memory::word(walker.memory, index, layout.frame_code),
            Memory::word(walker.memory, index, layout.frame_owner),
            Memory::word(walker.memory, index, layout.frame_instr),
        )
    };
    *at = back;
    let owner = (owner >> ((layout.frame_owner & 7) * 8)) & 0xff;
    Some(Raw {
        code: code & !TAG_MASK,
        instr,
        counts: less(owner, u64::from(layout.frame_owner_skip)),
    })
}

/// Walks, hashes the frames and writes them to the hit's memory.
#[inline(always)]
fn summarize<L: Loops>(walker: &Walker, top: u64) -> Summary {
    // SAFETY: the memory is that of this hit.
    let frames = unsafe { (&raw mut (*walker.memory).stack.frames).cast::<Frame>() };
    let mut at = top;
    // Spread out: two epochs differ in a few bits, and so do the addresses of two code objects.
    // SAFETY: a map value.
    let mut hash = mix(0, unsafe { (*walker.state).epoch });
    let mut depth = low_bits::<511>(walker.config.zero);
    let mut rounds = Rounds::<L>::new(MAX_FRAMES as u32, walker.config.zero);
    while rounds.next() {
        let Some(frame) = step(walker, &mut at) else {
            break;
        };
        let to = low_bits::<{ MAX_FRAMES as i32 - 1 }>(depth) as usize;
        // SAFETY: the index is below MAX_FRAMES. A stub is overwritten by the frame after it; `reserved` stays 0.
        unsafe {
            (*frames.add(to)).code = frame.code;
            (*frames.add(to)).instr = offset(walker.layout, frame);
        }
        // What waits for the hash of the frames before is one multiplication, not two.
        let mixed = mix(hash, frame.code.wrapping_mul(SPREAD).wrapping_add(frame.instr));
        hash ^= (hash ^ mixed) & frame.counts.wrapping_neg();
        depth = low_bits::<511>(depth + frame.counts as u32);
    }
    Summary {
        hash,
        depth,
        rest: at,
    }
}

#[inline(always)]
fn mix(hash: u64, value: u64) -> u64 {
    let mixed = (hash ^ value).wrapping_mul(MIX);
    mixed ^ (mixed >> 29)
}

/// A stack as it is sent, and what is needed to send its code objects first. In the hit's memory.
#[repr(C)]
pub(crate) struct Stack {
    pub(crate) head: StackHead,
    pub(crate) frames: [Frame; MAX_FRAMES],
    /// Frames whose code objects were not sent before; one that recurs may stand here more than once.
    pub(crate) unknown: [u8; MAX_FRAMES],
    pub(crate) codes: code::Progress,
}

const _: () = assert!(MAX_FRAMES == 256);

/// Sends the code objects that are new, and the stack.
#[inline(never)]
fn send<L: Loops>(walker: &Walker, depth: u32, id: u64, key: u64, end: u8) {
    // SAFETY: the memory is that of this hit.
    let stack = unsafe { &raw mut (*walker.memory).stack };
    let unknown = find_unknown::<L>(walker, stack, depth);
    let codes_sent = code::send_unknown::<L>(walker, stack, unknown);
    let mut frames = low_bits::<511>(depth);
    if frames > MAX_FRAMES as u32 {
        frames = MAX_FRAMES as u32;
    }
    let len = size_of::<StackHead>() as u32 + frames * size_of::<Frame>() as u32;
    // SAFETY: see above; `len` is at most the size of the head and all frames.
    let sent = unsafe {
        (*stack).head = StackHead {
            head: Head {
                kind: kind::STACK,
                flags: 0,
                len: len as u16,
                pid: walker.pid,
            },
            id,
            depth: depth as u16,
            end,
            reserved: 0,
            tid: walker.thread as u32,
        };
        output(stack.cast(), len)
    };
    if !sent {
        lose(walker.state, Reason::RingFullStack);
    } else if codes_sent {
        // Not if a code object is still owed: then the stack comes again, behind the code object.
        let _ = STACKS.insert(key, 1, 0);
        // SAFETY: as above.
        unsafe { Memory::remember(walker.memory, key) };
    }
}

/// Lists the frames whose code objects are new; how many.
#[inline(always)]
fn find_unknown<L: Loops>(walker: &Walker, stack: *mut Stack, depth: u32) -> u32 {
    let mut unknown = low_bits::<511>(walker.config.zero);
    let mut rounds = Rounds::<L>::new(MAX_FRAMES as u32, walker.config.zero);
    let mut index = low_bits::<511>(walker.config.zero);
    while rounds.next() {
        if index >= low_bits::<511>(depth) {
            break;
        }
        let at = low_bits::<{ MAX_FRAMES as i32 - 1 }>(index) as usize;
        // SAFETY: `stack` is in a map value, the index is below MAX_FRAMES.
        let code = unsafe { (&raw const (*stack).frames).cast::<Frame>().add(at).read().code };
        let key = CodeKey {
            pid: u64::from(walker.pid),
            code,
        };
        // SAFETY: a lookup; the value is not kept.
        let is_new = u32::from(unsafe { CODES.get(key) }.is_none());
        let next = low_bits::<{ MAX_FRAMES as i32 - 1 }>(unknown) as usize;
        // SAFETY: as above; what is not new is overwritten by the next.
        unsafe {
            (&raw mut (*stack).unknown)
                .cast::<u8>()
                .add(next)
                .write_volatile(at as u8);
        }
        unknown = low_bits::<511>(unknown + is_new);
        index = low_bits::<511>(index + 1);
    }
    unknown
}

/// Byte offset of a frame's instruction from the first one of its code. Computed without a branch.
#[inline(always)]
fn offset(layout: &ImageLayout, frame: Raw) -> i32 {
    let instr = (frame.instr as u32) << (layout.frame_instr_shift & 1);
    let first = (frame.code as u32).wrapping_add(layout.code_first_instr);
    instr.wrapping_sub(first & layout.frame_instr_is_pointer) as i32
}
