//! [`Event`] to record bytes: the kernel side's half of the contract, for tests and benches without a kernel.
//!
//! Kept beside the decoder so that the two change together; nothing in the program itself needs it. What is
//! longer than its place in a record is cut, as the kernel side cuts it.

use std::mem::offset_of;

use tracer_ebpf::{
    limits::{LINE_TABLE_CHUNK, MAX_COMMAND_LINE, MAX_FILE_NAME, MAX_FRAMES, MAX_QUALNAME},
    record::{self, Head, block, end, growth, kind, text},
    site::Role,
};

use super::{
    event::{
        AllocSite, BlockKind, Code, Event, FaultKind, Gone, GoneReason, LineTable, Process, Stack, StackEnd,
        Text, TextKind,
    },
    field::put,
};
use crate::units::{Pid, ProcAddr};

/// Appends the record of `event` to `out`.
pub fn encode(event: &Event<'_>, out: &mut Vec<u8>) {
    match event {
        Event::Process(e) => process(e, out),
        Event::Gone(e) => gone(e, out),
        Event::Code(e) => code(e, out),
        Event::LineTable(e) => line_table(e, out),
        Event::Stack(e) => stack(e, out),
        Event::Alloc(e) => {
            type R = record::Alloc;
            let r = start(out, size_of::<R>(), kind::ALLOC, flags(e.kind), e.pid);
            put!(r, R, tid, e.tid.get());
            put!(r, R, role, role(e.site));
            put!(r, R, time_ns, e.time.get());
            put!(r, R, addr, e.addr.get());
            put!(r, R, size, e.size.get());
            put!(r, R, stack, e.stack.get());
        }
        Event::Free(e) => {
            type R = record::Free;
            let r = start(out, size_of::<R>(), kind::FREE, flags(e.kind), e.pid);
            put!(r, R, tid, e.tid.get());
            put!(r, R, time_ns, e.time.get());
            put!(r, R, addr, e.addr.get());
        }
        Event::Realloc(e) => {
            type R = record::Realloc;
            let r = start(out, size_of::<R>(), kind::REALLOC, flags(e.kind), e.pid);
            put!(r, R, tid, e.tid.get());
            put!(r, R, time_ns, e.time.get());
            put!(r, R, old, e.old.map_or(0, ProcAddr::get));
            put!(r, R, addr, e.addr.get());
            put!(r, R, requested, e.requested.get());
            put!(r, R, raw_size, e.raw_size.get());
            put!(r, R, stack, e.stack.get());
        }
        Event::Fault(e) => {
            type R = record::Fault;
            let flags = match e.kind {
                FaultKind::Touch => growth::TOUCH,
                FaultKind::Mapping => growth::MAPPING,
                FaultKind::Room => growth::ROOM,
            };
            let r = start(out, size_of::<R>(), kind::FAULT, flags, e.pid);
            put!(r, R, tid, e.tid.get());
            put!(r, R, weight, e.weight);
            put!(r, R, time_ns, e.time.get());
            put!(r, R, addr, e.addr.get());
            put!(r, R, stack, e.stack.get());
        }
    }
}

/// Appends a zeroed record of `len` bytes with its head, and gives its bytes.
fn start(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, pid: Pid) -> &mut [u8] {
    let at = out.len();
    out.resize(at + len, 0);
    let record = out.get_mut(at..).unwrap_or_default();
    put!(record, Head, kind, kind);
    put!(record, Head, flags, flags);
    put!(record, Head, len, u16::try_from(len).unwrap_or(u16::MAX));
    put!(record, Head, pid, pid.get());
    record
}

fn flags(kind: BlockKind) -> u8 {
    match kind {
        BlockKind::Pool => block::POOL,
        BlockKind::Raw => block::RAW,
        BlockKind::Any => block::ANY,
        BlockKind::Mimalloc => block::MIMALLOC,
        BlockKind::Domain => block::DOMAIN,
    }
}

/// Copies as much of `bytes` as `space` bytes at `at` hold; how much that is.
fn copy(record: &mut [u8], at: usize, space: usize, bytes: &[u8]) -> usize {
    let len = bytes.len().min(space);
    let place = record.get_mut(at..).and_then(|rest| rest.get_mut(..len));
    if let (Some(place), Some(bytes)) = (place, bytes.get(..len)) {
        place.copy_from_slice(bytes);
    }
    len
}

fn number(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn process(e: &Process<'_>, out: &mut Vec<u8>) {
    type R = record::Process;
    let r = start(out, size_of::<R>(), kind::PROCESS, 0, e.pid);
    put!(r, R, time_ns, e.time.get());
    put!(r, R, start_ns, e.start.get());
    put!(r, R, parent, e.parent.get());
    put!(r, R, image, e.image.get());
    put!(r, R, bias, e.bias);
    put!(r, R, uid, e.uid);
    put!(r, R, cgroup, e.cgroup);
    copy(r, offset_of!(R, comm), 16, e.comm);
    let used = copy(r, offset_of!(R, command_line), MAX_COMMAND_LINE, e.command_line);
    put!(r, R, command_line_len, number(used));
}

fn gone(e: &Gone, out: &mut Vec<u8>) {
    type R = record::Gone;
    let kind = match e.reason {
        GoneReason::Exec => kind::EXEC,
        GoneReason::Exit => kind::EXIT,
    };
    let r = start(out, size_of::<R>(), kind, 0, e.pid);
    put!(r, R, time_ns, e.time.get());
    put!(r, R, allocs, e.counters.allocs);
    put!(r, R, frees, e.counters.frees);
    put!(r, R, reallocs, e.counters.reallocs);
    put!(r, R, faults, e.counters.faults);
    words(r, offset_of!(R, hits), &e.counters.hits_by_group);
    words(r, offset_of!(R, run_ns), &e.counters.run_ns_by_group);
    words(r, offset_of!(R, losses), &e.counters.losses);
}

fn words(r: &mut [u8], at: usize, words: &[u64]) {
    for (index, word) in words.iter().enumerate() {
        copy(r, at + 8 * index, 8, &word.to_le_bytes());
    }
}

/// A role that decodes to it.
fn role(site: AllocSite) -> u32 {
    (match site {
        AllocSite::Refill => Role::PoolRefill,
        AllocSite::Copy => Role::PoolAlloc,
        AllocSite::Other => Role::RawMalloc,
    }) as u32
}

fn code(e: &Code<'_>, out: &mut Vec<u8>) {
    type R = record::Code;
    let r = start(out, size_of::<R>(), kind::CODE, 0, e.pid);
    put!(r, R, code, e.code.get());
    put!(r, R, first_line, e.first_line);
    put!(r, R, line_table_len, e.line_table_len.unwrap_or(u32::MAX));
    put!(r, R, version_hex, e.version_hex);
    put!(r, R, line_table, e.line_table.get());
    string(
        r,
        &e.filename,
        offset_of!(R, filename_text),
        offset_of!(R, filename),
        MAX_FILE_NAME,
    );
    string(
        r,
        &e.qualname,
        offset_of!(R, qualname_text),
        offset_of!(R, qualname),
        MAX_QUALNAME,
    );
}

/// Writes a string at `at` and its description at `described_at`.
fn string(record: &mut [u8], value: &Text<'_>, described_at: usize, at: usize, space: usize) {
    let len = copy(record, at, space, value.bytes);
    let described = record.get_mut(described_at..).unwrap_or_default();
    put!(
        described,
        record::Text,
        len,
        u16::try_from(len).unwrap_or(u16::MAX)
    );
    put!(
        described,
        record::Text,
        kind,
        match value.kind {
            TextKind::Ascii => text::ASCII,
            TextKind::Latin1 => text::LATIN1,
            TextKind::Ucs2 => text::UCS2,
            TextKind::Ucs4 => text::UCS4,
            TextKind::Unreadable => text::UNREADABLE,
        }
    );
    put!(
        described,
        record::Text,
        cut,
        u8::from(value.cut || len < value.bytes.len())
    );
}

fn line_table(e: &LineTable<'_>, out: &mut Vec<u8>) {
    type R = record::LineTable;
    let r = start(out, size_of::<R>(), kind::LINE_TABLE, 0, e.pid);
    put!(r, R, code, e.code.get());
    put!(r, R, offset, e.offset);
    let used = copy(r, offset_of!(R, data), LINE_TABLE_CHUNK, e.data);
    put!(r, R, used, number(used));
}

fn stack(e: &Stack<'_>, out: &mut Vec<u8>) {
    type R = record::StackHead;
    let frame = size_of::<record::Frame>();
    let depth = (e.raw_frames.len() / frame).min(MAX_FRAMES);
    let r = start(out, size_of::<R>() + depth * frame, kind::STACK, 0, e.pid);
    put!(r, R, id, e.id.get());
    put!(r, R, depth, u16::try_from(depth).unwrap_or(u16::MAX));
    put!(
        r,
        R,
        end,
        match e.end {
            StackEnd::Complete => end::COMPLETE,
            StackEnd::Truncated => end::TRUNCATED,
            StackEnd::Unreadable => end::UNREADABLE,
        }
    );
    put!(r, R, tid, e.tid.get());
    copy(r, size_of::<R>(), depth * frame, e.raw_frames);
}
