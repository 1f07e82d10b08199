//! Code objects: sent once per process, before the first stack that names them, with their line tables, so
//! that a process that is gone can still be symbolized.
//!
//! Frames and pieces of line tables share one loop with one bound: nested loops would multiply what the
//! verifier has to follow.

use tracer_ebpf::{
    layout::ImageLayout,
    limits::{LINE_TABLE_CHUNK, MAX_FILE_NAME, MAX_FRAMES, MAX_LINE_TABLE_CHUNKS, MAX_QUALNAME},
    process::ProcessState,
    reason::Reason,
    record::{Code, Head, LineTable, Text, kind, text},
};

use crate::{
    emit::{add, lose, reserve, submit},
    maps::{CODES, CodeKey},
    read,
    walk::{Step, WINDOW_WORDS, Walker, step},
};

/// Most steps of the loop: frames, stubs and line table pieces together. What is left comes with the next
/// occurrence of the stack.
const MAX_STEPS: u32 = 640;

/// `PyBytesObject`: `ob_size`, then (behind the hash) the bytes; the same in every supported version.
/// <https://github.com/python/cpython/blob/3.13/Include/cpython/bytesobject.h>
const BYTES_SIZE: u64 = 16;
const BYTES_DATA: u64 = 32;

/// `PyASCIIObject`: `length`, `hash`, `state`.
/// <https://github.com/python/cpython/blob/3.13/Include/cpython/unicodeobject.h>
const STR_LENGTH: u64 = 16;
const STR_STATE: u64 = 32;

/// A line table that is being sent.
#[derive(Clone, Copy)]
struct Table {
    code: u64,
    data: u64,
    len: u32,
    offset: u32,
}

/// Sends the code objects of a stack that were not sent before. Whether all that the stack names is sent.
#[inline(never)]
pub(crate) fn send_unknown(walker: Walker, top: u64) -> bool {
    let mut window = [0; WINDOW_WORDS];
    let mut at = top;
    let mut depth = walker.config.zero;
    let mut table = Table {
        code: 0,
        data: 0,
        len: 0,
        offset: 0,
    };
    let mut complete = true;
    for _ in 0..MAX_STEPS {
        if table.offset < table.len {
            if !send_piece(walker, &mut table) {
                complete = false;
            }
            if table.offset >= table.len && complete {
                sent(walker, table.code);
            }
            continue;
        }
        if depth >= MAX_FRAMES as u32 {
            return complete;
        }
        match step(walker.layout, &mut at, &mut window) {
            Step::Frame(frame) => {
                depth = (depth + 1) & 511;
                let key = CodeKey {
                    pid: u64::from(walker.pid),
                    code: frame.code,
                };
                // SAFETY: a lookup; the value is not kept.
                if unsafe { CODES.get(key) }.is_some() {
                    continue;
                }
                if !send_code(walker, frame.code, &mut table) {
                    complete = false;
                } else if table.len == 0 {
                    sent(walker, frame.code);
                }
            }
            Step::Stub => {}
            Step::End | Step::Unreadable => return complete,
        }
    }
    false
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

#[inline(always)]
fn sent(walker: Walker, code: u64) {
    let key = CodeKey {
        pid: u64::from(walker.pid),
        code,
    };
    let _ = CODES.insert(key, 1, 0);
}

/// Sends a code object without its line table, and says in `table` what is to follow.
#[inline(always)]
fn send_code(walker: Walker, code: u64, table: &mut Table) -> bool {
    let Some(mut entry) = reserve::<Code>(walker.pid) else {
        lose(walker.state, Reason::RingFullCode);
        return false;
    };
    let layout = walker.layout;
    let record = entry.as_mut_ptr();
    let first_line: Option<i32> = read::user(code + u64::from(layout.code_first_line));
    let line_table: u64 = read::user(code + u64::from(layout.code_line_table)).unwrap_or(0);
    let line_table_len = read::user::<u64>(line_table + BYTES_SIZE);
    if first_line.is_none() || line_table_len.is_none() {
        lose(walker.state, Reason::CodeUnreadable);
    }
    const MOST: u64 = (LINE_TABLE_CHUNK * MAX_LINE_TABLE_CHUNKS) as u64;
    let wanted = match line_table_len {
        Some(len) if len > MOST => MOST as u32,
        Some(len) => len as u32,
        None => 0,
    };
    let filename: u64 = read::user(code + u64::from(layout.code_filename)).unwrap_or(0);
    let qualname: u64 = read::user(code + u64::from(layout.code_qualname)).unwrap_or(0);
    // SAFETY: `record` is reserved ring memory of this type; every byte is written.
    unsafe {
        (*record).head = Head {
            kind: kind::CODE,
            flags: 0,
            len: size_of::<Code>() as u16,
            pid: walker.pid,
        };
        (*record).code = code;
        (*record).first_line = first_line.unwrap_or(0);
        (*record).line_table_len = if line_table_len.is_some() {
            wanted
        } else {
            u32::MAX
        };
        (*record).version_hex = layout.version_hex;
        (*record).line_table = line_table + BYTES_DATA;
        (*record).reserved = 0;
        (*record).filename_text =
            send_text::<MAX_FILE_NAME>(layout, filename, Keep::End, &raw mut (*record).filename);
        (*record).qualname_text =
            send_text::<MAX_QUALNAME>(layout, qualname, Keep::Start, &raw mut (*record).qualname);
    }
    submit(entry, walker.pid);
    *table = Table {
        code,
        data: line_table + BYTES_DATA,
        len: wanted,
        offset: walker.config.zero,
    };
    true
}

/// Which part of a string is kept if it is too long.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Start,
    End,
}

/// Copies the characters of a `str` object. Only compact strings exist in code objects.
///
/// # Safety
/// `to` must be valid for writes of `N` bytes.
#[inline(always)]
unsafe fn send_text<const N: usize>(layout: &ImageLayout, string: u64, keep: Keep, to: *mut [u8; N]) -> Text {
    // SAFETY: by contract.
    unsafe { *to = [0; N] };
    let unreadable = Text {
        len: 0,
        kind: text::UNREADABLE,
        cut: 0,
    };
    let (Some(length), Some(state)) = (
        read::user::<u64>(string + STR_LENGTH),
        read::user::<u32>(string + STR_STATE),
    ) else {
        return unreadable;
    };
    let ascii = state >> layout.str_ascii_bit & 1 != 0;
    let width = state >> layout.str_kind_shift & 7;
    let (kind, data) = match (ascii, width) {
        (true, _) => (text::ASCII, layout.str_ascii_data),
        (false, 1) => (text::LATIN1, layout.str_compact_data),
        (false, 2) => (text::UCS2, layout.str_compact_data),
        (false, 4) => (text::UCS4, layout.str_compact_data),
        _ => return unreadable,
    };
    let bytes = length.wrapping_mul(u64::from(width)).min(1 << 40);
    let mut len = bytes;
    let mut from = string + u64::from(data);
    if len > N as u64 {
        len = N as u64;
        if keep == Keep::End {
            from += bytes - N as u64;
        }
    }
    // SAFETY: `len` is at most N.
    if unsafe { read::user_bytes(to.cast(), len as u32, from) } {
        Text {
            len: len as u16,
            kind,
            cut: u8::from(bytes > N as u64),
        }
    } else {
        unreadable
    }
}

/// Sends the next piece of a line table. After a failure the rest is given up, until the next time.
#[inline(always)]
fn send_piece(walker: Walker, table: &mut Table) -> bool {
    let Some(mut entry) = reserve::<LineTable>(walker.pid) else {
        lose(walker.state, Reason::RingFullCode);
        table.offset = table.len;
        return false;
    };
    let record = entry.as_mut_ptr();
    let mut used = table.len.wrapping_sub(table.offset);
    if used > LINE_TABLE_CHUNK as u32 {
        used = LINE_TABLE_CHUNK as u32;
    }
    // SAFETY: ring memory of this type; `used` is at most the size of `data`.
    let read = unsafe {
        read::user_bytes(
            (&raw mut (*record).data).cast(),
            used,
            table.data + u64::from(table.offset),
        )
    };
    if !read {
        lose(walker.state, Reason::CodeUnreadable);
        entry.discard(0);
        table.offset = table.len;
        // Nothing is owed: userspace can still try.
        return true;
    }
    const HEAD: u32 = (size_of::<LineTable>() - LINE_TABLE_CHUNK) as u32;
    let len = (HEAD + ((used + 7) & !7)) as u16;
    // SAFETY: ring memory of this type; what is behind `len` is left out by the reader.
    unsafe {
        (*record).head = Head {
            kind: kind::LINE_TABLE,
            flags: 0,
            len,
            pid: walker.pid,
        };
        (*record).code = table.code;
        (*record).offset = table.offset;
        (*record).used = used;
    }
    submit(entry, walker.pid);
    table.offset += used;
    true
}
