//! Code objects: sent once per process, before the first stack that names them, with their line tables, so
//! that a process that is gone can still be symbolized.
//!
//! Code objects and pieces of line tables share one loop with one bound: nested loops would multiply what
//! the verifier has to follow.

use tracer_ebpf::{
    layout::ImageLayout,
    limits::{
        LINE_TABLE_CHUNK, LINE_TABLE_ROOM, MAX_FILE_NAME, MAX_FRAMES, MAX_LINE_TABLE_CHUNKS, MAX_QUALNAME,
    },
    process::ProcessState,
    reason::Reason,
    record::{Code, Frame, Head, LineTable, Text, kind},
};

use crate::{
    emit::{add, lose, reserve, submit_quietly},
    loops::{Loops, Rounds},
    maps::{CODES, CodeKey},
    opaque::{at_most, less, low_bits},
    read,
    walk::{Stack, Walker},
};

/// Most records sent for one stack, code objects and pieces of line tables together. What is left comes with
/// the next occurrence of the stack.
const MAX_STEPS: u32 = 64;

/// Mask for a length that a hostile process may have made up: no sum of it with an address overflows.
const SANE: u64 = (1 << 40) - 1;

/// How far the loop below is. In a map's memory: the verifier keeps no account of what that holds, so that the
/// iterations look alike to it. Hence every access is volatile.
#[repr(C)]
pub(crate) struct Progress {
    /// Index of the next frame.
    next: u32,
    /// Bytes of the line table that are still to be sent.
    left: u32,
    /// The code object whose line table is being sent.
    code: u64,
    /// Address of the next piece of the table.
    data: u64,
    /// Where the next piece starts in the table.
    offset: u32,
    reserved: u32,
}

/// Sends the first `count` code objects of the list in `stack`, with line tables, in at most [`MAX_STEPS`]
/// records. Whether that was enough.
#[inline(always)]
pub(crate) fn send_unknown<L: Loops>(walker: &Walker, stack: *mut Stack, count: u32) -> bool {
    // SAFETY: here and below, `stack` is in the hit's memory.
    let progress = unsafe { &raw mut (*stack).codes };
    // SAFETY: see above.
    unsafe {
        (&raw mut (*progress).next).write_volatile(0);
        (&raw mut (*progress).left).write_volatile(0);
    }
    let mut rounds = Rounds::<L>::new(MAX_STEPS, walker.config.zero);
    while rounds.next() {
        // SAFETY: see above.
        if unsafe { (&raw mut (*progress).left).read_volatile() } != 0 {
            if !send_piece(walker, progress) {
                return false;
            }
            continue;
        }
        // SAFETY: see above; the index is below MAX_FRAMES.
        let code = unsafe {
            let next = (&raw mut (*progress).next).read_volatile();
            if next >= low_bits::<511>(count) {
                return true;
            }
            (&raw mut (*progress).next).write_volatile(next + 1);
            let index = (next & (MAX_FRAMES as u32 - 1)) as usize;
            let frame = (&raw const (*stack).unknown)
                .cast::<u8>()
                .add(index)
                .read_volatile();
            let frame = (&raw const (*stack).frames).cast::<Frame>().add(frame.into());
            (&raw const (*frame).code).read_volatile()
        };
        let key = CodeKey {
            pid: u64::from(walker.pid),
            code,
        };
        // One that recurs in the stack is in the list more than once.
        // SAFETY: a lookup; the value is not kept.
        if unsafe { CODES.get(key) }.is_some() {
            continue;
        }
        if !send_code(walker, code, progress) {
            return false;
        }
        // Before its pieces are out: if one fails, this is taken back.
        let _ = CODES.insert(key, 1, 0);
    }
    // SAFETY: see above.
    if unsafe { (&raw mut (*progress).left).read_volatile() } != 0 {
        not_sent(walker, progress);
    }
    false
}

/// Takes it back that the current code object was sent.
#[inline(always)]
fn not_sent(walker: &Walker, progress: *mut Progress) {
    // SAFETY: `progress` is in the hit's memory.
    let code = unsafe { (&raw mut (*progress).code).read_volatile() };
    let _ = CODES.remove(CodeKey {
        pid: u64::from(walker.pid),
        code,
    });
}

/// A code object died: its address may come to name another one, so every stack is sent anew from here on.
#[inline(always)]
pub(crate) fn forget(state: *mut ProcessState, pid: u32, code: u64) {
    let _ = CODES.remove(CodeKey {
        pid: u64::from(pid),
        code,
    });
    // SAFETY: a map value.
    add(unsafe { &raw mut (*state).epoch }, 1);
}

/// Sends a code object without its line table, and notes what is to follow.
#[inline(always)]
fn send_code(walker: &Walker, code: u64, progress: *mut Progress) -> bool {
    let Some(mut entry) = reserve::<Code>() else {
        lose(walker.state, Reason::RingFullCode);
        return false;
    };
    let layout = walker.layout;
    let record = entry.as_mut_ptr();
    let first_line: i32 = read::user_or_zero(code + u64::from(layout.code_first_line));
    let line_table: u64 = read::user_or_zero(code + u64::from(layout.code_line_table));
    const MOST: u64 = (LINE_TABLE_CHUNK * MAX_LINE_TABLE_CHUNKS) as u64;
    let len = at_most(
        read::user_or_zero::<u64>(line_table + u64::from(layout.bytes_size)) & SANE,
        MOST,
    );
    let filename: u64 = read::user_or_zero(code + u64::from(layout.code_filename));
    let qualname: u64 = read::user_or_zero(code + u64::from(layout.code_qualname));
    // SAFETY: `record` is reserved ring memory of this type.
    unsafe {
        (*record).head = Head {
            kind: kind::CODE,
            flags: 0,
            len: size_of::<Code>() as u16,
            pid: walker.pid,
        };
        (*record).code = code;
        (*record).first_line = first_line;
        // No table at all: `u32::MAX`. An empty one is usual in 3.9.
        (*record).line_table_len = len as u32 | (less(line_table, 1) as u32).wrapping_neg();
        (*record).version_hex = layout.version_hex;
        (*record).line_table = line_table + u64::from(layout.bytes_data);
        (*record).reserved = 0;
        (*record).filename_text =
            send_text::<MAX_FILE_NAME>(layout, filename, Keep::End, &raw mut (*record).filename);
        (*record).qualname_text =
            send_text::<MAX_QUALNAME>(layout, qualname, Keep::Start, &raw mut (*record).qualname);
    }
    submit_quietly(entry);
    // SAFETY: `progress` is in the hit's memory.
    unsafe {
        (&raw mut (*progress).code).write_volatile(code);
        (&raw mut (*progress).data).write_volatile(line_table + u64::from(layout.bytes_data));
        (&raw mut (*progress).left).write_volatile(len as u32);
        (&raw mut (*progress).offset).write_volatile(0);
    }
    true
}

/// Which part of a string is kept if it is too long.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Start,
    End,
}

/// Copies the characters of a `str` object; what is behind them in `to` is left as it is. Only compact strings exist in code objects.
///
/// # Safety
/// `to` must be valid for writes of `N` bytes.
#[inline(always)]
unsafe fn send_text<const N: usize>(layout: &ImageLayout, string: u64, keep: Keep, to: *mut [u8; N]) -> Text {
    let length: u64 = read::user_or_zero(string + u64::from(layout.str_length));
    let state: u32 = read::user_or_zero(string + u64::from(layout.str_state));
    // No match on the width: each arm would be another path through all that follows. A width that does not
    // exist is refused by the reader.
    let ascii = state >> layout.str_ascii_bit & 1;
    let width = state >> layout.str_kind_shift & 7;
    let kind = width.wrapping_mul(ascii ^ 1);
    let data = layout.str_compact_data.wrapping_sub(
        layout
            .str_compact_data
            .wrapping_sub(layout.str_ascii_data)
            .wrapping_mul(ascii),
    );
    let bytes = (length & SANE).wrapping_mul(u64::from(width));
    let kept = at_most(bytes, N as u64 - 1);
    let from = match keep {
        Keep::Start => string + u64::from(data),
        Keep::End => string + u64::from(data) + bytes - kept,
    };
    let kept = match N {
        MAX_FILE_NAME => low_bits::<{ MAX_FILE_NAME as i32 - 1 }>(kept as u32),
        _ => low_bits::<{ MAX_QUALNAME as i32 - 1 }>(kept as u32),
    };
    const { assert!(N == MAX_FILE_NAME || N == MAX_QUALNAME) };
    // SAFETY: `kept` is less than N.
    let len = unsafe { read::user_bytes(to.cast(), kept, from) };
    Text {
        len: len as u16,
        kind: kind as u8,
        cut: less(kept.into(), bytes) as u8,
    }
}

/// Sends the next piece of a line table. After a failure the code object counts as not sent.
#[inline(always)]
fn send_piece(walker: &Walker, progress: *mut Progress) -> bool {
    let Some(mut entry) = reserve::<LineTable>() else {
        lose(walker.state, Reason::RingFullCode);
        not_sent(walker, progress);
        return false;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `progress` is in the hit's memory.
    let (left, data, offset, code) = unsafe {
        (
            (&raw mut (*progress).left).read_volatile(),
            (&raw mut (*progress).data).read_volatile(),
            (&raw mut (*progress).offset).read_volatile(),
            (&raw mut (*progress).code).read_volatile(),
        )
    };
    let size = at_most(left.into(), LINE_TABLE_CHUNK as u64) as u32;
    let size = low_bits::<{ LINE_TABLE_ROOM as i32 - 1 }>(size);
    // A piece that cannot be read is sent empty: nothing is owed, and userspace can still try.
    // SAFETY: ring memory of this type; `size` is less than the size of `data`.
    let used = unsafe { read::user_bytes((&raw mut (*record).data).cast(), size, data) };
    const HEAD: u32 = (size_of::<LineTable>() - LINE_TABLE_ROOM) as u32;
    let len = (HEAD + ((used + 7) & !7)) as u16;
    // SAFETY: ring memory of these types; what is behind `len` is left out by the reader.
    unsafe {
        (*record).head = Head {
            kind: kind::LINE_TABLE,
            flags: 0,
            len,
            pid: walker.pid,
        };
        (*record).code = code;
        (*record).offset = offset;
        (*record).used = used;
        (&raw mut (*progress).left).write_volatile(left - size);
        (&raw mut (*progress).offset).write_volatile(offset + size);
        (&raw mut (*progress).data).write_volatile(data + u64::from(size));
    }
    submit_quietly(entry);
    true
}
