//! The Python stack, in passes without scratch memory: the first only hashes; if the id is new for the
//! process, the others send the code objects and write the frames straight into a ring record.
//!
//! A thread that is in a probe does not run, so every pass sees the same frames.

use tracer_ebpf::{
    config::Config,
    layout::{ImageLayout, flag},
    limits::{FRAME_WINDOW, MAX_FRAMES, MAX_WALK, STACK_CLASSES},
    process::ProcessState,
    reason::Reason,
    record::{Frame, Head, StackHead, end, kind, stack_id},
};

use crate::{
    code,
    emit::{lose, reserve, submit},
    maps::STACKS,
    read,
    thread::{self, Found},
};

/// Words of a frame window, rounded up to a power of two so that an index can be masked.
pub(crate) const WINDOW_WORDS: usize = 16;
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
    pub(crate) code: u64,
    pub(crate) instr: u64,
}

/// How one step of a walk went.
pub(crate) enum Step {
    Frame(Raw),
    /// A C stub without Python code.
    Stub,
    End,
    Unreadable,
}

/// What the first pass found.
struct Summary {
    hash: u64,
    depth: u32,
    end: u8,
}

/// Id of the current thread's stack; sends it if the process has not sent it before.
#[inline(always)]
pub(crate) fn stack(walker: Walker, bias: u64) -> u64 {
    let top = match thread::innermost_frame(walker.config, walker.layout, bias) {
        Found::Frame(top) => top,
        Found::Nothing => return stack_id::NO_PYTHON,
        Found::Unreadable => {
            lose(walker.state, Reason::ThreadStateUnreadable);
            return stack_id::UNREADABLE;
        }
    };
    let summary = summarize(walker, top);
    if summary.depth == 0 {
        return if summary.end == end::UNREADABLE {
            stack_id::UNREADABLE
        } else {
            stack_id::NO_PYTHON
        };
    }
    let id = summary.hash | stack_id::FIRST_HASH;
    let key = id ^ u64::from(walker.pid).wrapping_mul(MIX);
    // SAFETY: a lookup; the value is not kept.
    if unsafe { STACKS.get(key) }.is_none() {
        send(walker, top, id, key, &summary);
    }
    id
}

/// Reads the frame at `at` and moves `at` to the one that called it.
#[inline(always)]
pub(crate) fn step(layout: &ImageLayout, at: &mut u64, window: &mut [u64; WINDOW_WORDS]) -> Step {
    if *at == 0 {
        return Step::End;
    }
    // SAFETY: the window is larger than FRAME_WINDOW.
    let read = unsafe {
        read::user_bytes(
            window.as_mut_ptr().cast(),
            FRAME_WINDOW as u32,
            *at + u64::from(layout.frame_window),
        )
    };
    if !read {
        return Step::Unreadable;
    }
    *at = word(window, layout.frame_back);
    let code = word(window, layout.frame_code) & !TAG_MASK;
    if layout.flags & flag::FRAME_HAS_OWNER != 0 {
        let owner = word(window, layout.frame_owner) >> ((layout.frame_owner & 7) * 8);
        if owner as u8 >= layout.frame_owner_skip as u8 {
            return Step::Stub;
        }
    }
    if code == 0 {
        return Step::Stub;
    }
    Step::Frame(Raw {
        code,
        instr: word(window, layout.frame_instr),
    })
}

#[inline(always)]
fn word(window: &[u64; WINDOW_WORDS], offset: u32) -> u64 {
    window[(offset >> 3) as usize & (WINDOW_WORDS - 1)]
}

/// First pass.
#[inline(always)]
fn summarize(walker: Walker, top: u64) -> Summary {
    let mut window = [0; WINDOW_WORDS];
    let mut at = top;
    // SAFETY: a map value.
    let mut hash = unsafe { (*walker.state).epoch };
    let mut depth = walker.config.zero;
    let mut end = end::TRUNCATED;
    for _ in 0..MAX_WALK {
        if depth >= MAX_FRAMES as u32 {
            break;
        }
        match step(walker.layout, &mut at, &mut window) {
            Step::Frame(frame) => {
                hash = mix(mix(hash, frame.code), frame.instr);
                depth = (depth + 1) & 511;
            }
            Step::Stub => {}
            Step::End => {
                end = end::COMPLETE;
                break;
            }
            Step::Unreadable => {
                end = end::UNREADABLE;
                lose(walker.state, Reason::FrameUnreadable);
                break;
            }
        }
    }
    Summary {
        hash: mix(hash, u64::from(end)),
        depth,
        end,
    }
}

#[inline(always)]
fn mix(hash: u64, value: u64) -> u64 {
    let mixed = (hash ^ value).wrapping_mul(MIX);
    mixed ^ (mixed >> 29)
}

/// Later passes: code objects, then the frames.
#[inline(never)]
fn send(walker: Walker, top: u64, id: u64, key: u64, summary: &Summary) {
    let codes_sent = code::send_unknown(walker, top);
    let sent = if summary.depth <= STACK_CLASSES[0] as u32 {
        write::<{ STACK_CLASSES[0] }>(walker, top, id, summary)
    } else if summary.depth <= STACK_CLASSES[1] as u32 {
        write::<{ STACK_CLASSES[1] }>(walker, top, id, summary)
    } else {
        write::<{ STACK_CLASSES[2] }>(walker, top, id, summary)
    };
    if !sent {
        lose(walker.state, Reason::RingFullStack);
    } else if codes_sent {
        // Not if a code object is still owed: then the stack comes again, behind the code object.
        let _ = STACKS.insert(key, 1, 0);
    }
}

#[repr(C)]
struct StackRecord<const N: usize> {
    head: StackHead,
    frames: [Frame; N],
}

#[inline(always)]
fn write<const N: usize>(walker: Walker, top: u64, id: u64, summary: &Summary) -> bool {
    let Some(mut entry) = reserve::<StackRecord<N>>(walker.pid) else {
        return false;
    };
    let record = entry.as_mut_ptr();
    let mut window = [0; WINDOW_WORDS];
    let mut at = top;
    let mut depth = walker.config.zero as usize;
    for _ in 0..MAX_WALK {
        match step(walker.layout, &mut at, &mut window) {
            Step::Frame(frame) => {
                if depth >= N {
                    break;
                }
                // SAFETY: ring memory of this type, index checked.
                unsafe {
                    (*record).frames[depth] = Frame {
                        code: frame.code,
                        instr: offset(walker.layout, frame),
                        reserved: 0,
                    };
                }
                depth = (depth + 1) & 511;
            }
            Step::Stub => {}
            Step::End | Step::Unreadable => break,
        }
    }
    // Frames past `depth` stay unwritten: the record's length leaves them out.
    let len = (size_of::<StackHead>() + depth * size_of::<Frame>()) as u16;
    // SAFETY: ring memory of this type.
    unsafe {
        (*record).head = StackHead {
            head: Head {
                kind: kind::STACK,
                flags: 0,
                len,
                pid: walker.pid,
            },
            id,
            depth: depth as u16,
            end: summary.end,
            reserved: 0,
            tid: walker.tid,
        };
    }
    submit(entry, walker.pid);
    true
}

/// Byte offset of a frame's instruction from the first one of its code.
#[inline(always)]
fn offset(layout: &ImageLayout, frame: Raw) -> i32 {
    if layout.flags & flag::LASTI_INDEX == 0 {
        return frame
            .instr
            .wrapping_sub(frame.code + u64::from(layout.code_first_instr)) as i32;
    }
    let index = frame.instr as i32;
    if layout.flags & flag::LASTI_CODE_UNITS != 0 {
        index.wrapping_mul(2)
    } else {
        index
    }
}
