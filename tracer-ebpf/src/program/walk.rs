//! The Python stack, in passes without scratch memory: the first only hashes; if the id is new for the
//! process, the others send the code objects and write the frames straight into a ring record.
//!
//! A thread that is in a probe does not run, so every pass sees the same frames.
//!
//! Counters of loops go through [`low_bits`]: the verifier follows every iteration, and states that differ only
//! in what it knows of a counter would multiply.

use core::mem::MaybeUninit;

use tracer_ebpf::{
    config::Config,
    layout::ImageLayout,
    limits::{FRAME_WINDOW, MAX_FRAMES},
    process::ProcessState,
    reason::Reason,
    record::{Frame, Head, StackHead, end, kind, stack_id},
};

use crate::{
    code,
    emit::{lose, output, reserve},
    maps::{CODES, CodeKey, STACKS},
    opaque::{less, low_bits},
    read, thread,
};

/// Words of a frame window, rounded up to a power of two so that an index can be masked.
const WINDOW_WORDS: usize = 16;
const _: () = assert!(FRAME_WINDOW <= WINDOW_WORDS * 8);

/// The low bits of a code pointer are a tag in 3.14 and newer; code objects are aligned in all versions.
/// <https://github.com/python/cpython/blob/3.14/Include/internal/pycore_stackref.h>
const TAG_MASK: u64 = 3;

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Who walks: everything that stays the same during a walk.
#[derive(Clone, Copy)]
pub(crate) struct Walker {
    pub(crate) config: &'static Config,
    pub(crate) layout: &'static ImageLayout,
    pub(crate) state: *mut ProcessState,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
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
#[inline(never)]
pub(crate) fn stack(walker: &Walker, bias: u64) -> u64 {
    let top = thread::innermost_frame(walker.config, walker.layout, bias);
    if top <= thread::UNREADABLE {
        if top == thread::UNREADABLE {
            lose(walker.state, Reason::ThreadStateUnreadable);
            return stack_id::UNREADABLE;
        }
        return stack_id::NO_PYTHON;
    }
    let summary = summarize(walker, top);
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
    // SAFETY: a lookup; the value is not kept.
    if unsafe { STACKS.get(key) }.is_none() {
        send(walker, top, id, key, end);
    }
    id
}

/// Reads the frame at `at` and moves `at` to the one that called it. `None` at the end (`at` is 0) and where
/// memory cannot be read.
#[inline(always)]
fn step(layout: &ImageLayout, at: &mut u64, window: &mut [u64; WINDOW_WORDS]) -> Option<Raw> {
    let from = *at + u64::from(layout.frame_window);
    // SAFETY: the window is larger than FRAME_WINDOW.
    if unsafe { read::user_bytes(window.as_mut_ptr().cast(), FRAME_WINDOW as u32, from) } == 0 {
        return None;
    }
    *at = word(window, layout.frame_back);
    let code = word(window, layout.frame_code) & !TAG_MASK;
    let owner = (word(window, layout.frame_owner) >> ((layout.frame_owner & 7) * 8)) & 0xff;
    let counts = less(owner, u64::from(layout.frame_owner_skip));
    Some(Raw {
        code,
        instr: word(window, layout.frame_instr),
        counts,
    })
}

/// A window of zeros, word by word: the compiler's way is a call of a function that stores bytes.
#[inline(always)]
fn zeroed_window() -> [u64; WINDOW_WORDS] {
    let mut window = MaybeUninit::<[u64; WINDOW_WORDS]>::uninit();
    let words = window.as_mut_ptr().cast::<u64>();
    let mut index = 0;
    while index < WINDOW_WORDS {
        // SAFETY: the index is in the array.
        unsafe { words.add(index).write_volatile(0) };
        index += 1;
    }
    // SAFETY: every word is written.
    unsafe { window.assume_init() }
}

#[inline(always)]
fn word(window: &[u64; WINDOW_WORDS], offset: u32) -> u64 {
    window[(offset >> 3) as usize & (WINDOW_WORDS - 1)]
}

/// First pass.
#[inline(never)]
fn summarize(walker: &Walker, top: u64) -> Summary {
    let mut window = zeroed_window();
    let mut at = top;
    // SAFETY: a map value.
    let mut hash = unsafe { (*walker.state).epoch };
    let mut depth = low_bits::<511>(walker.config.zero);
    for _ in 0..MAX_FRAMES {
        let Some(frame) = step(walker.layout, &mut at, &mut window) else {
            break;
        };
        let mixed = mix(mix(hash, frame.code), frame.instr);
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

/// A stack in ring memory that is given back: there is no other memory that a preemptible program could use.
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) head: StackHead,
    pub(crate) frames: [Frame; MAX_FRAMES],
    /// Code objects of the frames that were not sent before; one that recurs may stand here more than once.
    pub(crate) unknown: [u64; MAX_FRAMES],
    pub(crate) codes: code::Progress,
}

/// Second pass: the frames into scratch memory, from there the code objects that are new, and the stack.
#[inline(never)]
fn send(walker: &Walker, top: u64, id: u64, key: u64, end: u8) {
    let Some(mut entry) = reserve::<Scratch>() else {
        lose(walker.state, Reason::RingFullStack);
        return;
    };
    let scratch = entry.as_mut_ptr();
    let (depth, unknown) = collect(walker, top, scratch);
    let codes_sent = code::send_unknown(walker, scratch, unknown);
    let mut frames = low_bits::<511>(depth);
    if frames > MAX_FRAMES as u32 {
        frames = MAX_FRAMES as u32;
    }
    let len = size_of::<StackHead>() as u32 + frames * size_of::<Frame>() as u32;
    // SAFETY: `scratch` is reserved ring memory.
    unsafe {
        (*scratch).head = StackHead {
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
            tid: walker.tid,
        };
    }
    // SAFETY: `len` is at most the size of the head and all frames.
    let sent = unsafe { output(scratch.cast(), len) };
    entry.discard(0);
    if !sent {
        lose(walker.state, Reason::RingFullStack);
    } else if codes_sent {
        // Not if a code object is still owed: then the stack comes again, behind the code object.
        let _ = STACKS.insert(key, 1, 0);
    }
}

/// Writes the frames and the code objects that are new to `scratch`; how many of either.
#[inline(always)]
fn collect(walker: &Walker, top: u64, scratch: *mut Scratch) -> (u32, u32) {
    let mut window = zeroed_window();
    let mut at = top;
    let mut depth = low_bits::<511>(walker.config.zero);
    let mut unknown = depth;
    for _ in 0..MAX_FRAMES {
        let Some(frame) = step(walker.layout, &mut at, &mut window) else {
            break;
        };
        let to = low_bits::<511>(depth) & (MAX_FRAMES as u32 - 1);
        // SAFETY: `scratch` is reserved ring memory, the index is below MAX_FRAMES. A stub is overwritten by
        // the frame after it.
        unsafe {
            let to = (&raw mut (*scratch).frames).cast::<Frame>().add(to as usize);
            (*to).code = frame.code;
            (*to).instr = offset(walker.layout, frame);
            (*to).reserved = 0;
        }
        let key = CodeKey {
            pid: u64::from(walker.pid),
            code: frame.code,
        };
        // SAFETY: a lookup; the value is not kept.
        let is_new = unsafe { CODES.get(key) }.is_none() as u32 & frame.counts as u32;
        let next = low_bits::<511>(unknown) & (MAX_FRAMES as u32 - 1);
        // SAFETY: as above; what does not count is overwritten by the next.
        unsafe { *(&raw mut (*scratch).unknown).cast::<u64>().add(next as usize) = frame.code };
        depth = low_bits::<511>(depth + frame.counts as u32);
        unknown = low_bits::<511>(unknown + is_new);
    }
    (depth, unknown)
}

/// Byte offset of a frame's instruction from the first one of its code. Computed without a branch.
#[inline(always)]
fn offset(layout: &ImageLayout, frame: Raw) -> i32 {
    let instr = (frame.instr as u32) << (layout.frame_instr_shift & 1);
    let first = (frame.code as u32).wrapping_add(layout.code_first_instr);
    instr.wrapping_sub(first & layout.frame_instr_is_pointer) as i32
}
