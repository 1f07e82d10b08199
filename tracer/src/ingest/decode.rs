//! Record bytes to [`Event`]: total, without allocation, borrowing from the bytes.
//!
//! A record's length is trusted only inside its block: where it cannot be a length, the rest of the block is
//! given up, because the next record cannot be found. Everything else that is wrong costs one record. What
//! was given up is counted in [`Tally`], never silent.

use tracer_ebpf::{
    limits::{MAX_FILE_NAME, MAX_QUALNAME},
    reason::REASONS,
    record::{self, Head, block, end, growth, kind, text},
    site::{Role, group::GROUPS},
};

use super::{
    event::{
        Alloc, AllocSite, BlockKind, Code, Counters, Event, Fault, FaultKind, Free, Gone, GoneReason,
        LineTable, Process, Realloc, Stack, StackEnd, Text, TextKind,
    },
    field::get,
};
use crate::units::{BootNs, ByteCount, ImageId, MonotonicNs, Pid, ProcAddr, StackId, Tid};

/// What a decoder gave up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events that came out.
    pub events: u64,
    /// Records of a kind that this version does not know.
    pub unknown: u64,
    /// Records whose contents contradict themselves.
    pub malformed: u64,
    /// Bytes at the end of blocks in which no record could be found any more.
    pub lost_bytes: u64,
}

impl Tally {
    /// Whether every byte became an event.
    pub fn is_clean(&self) -> bool {
        self.unknown == 0 && self.malformed == 0 && self.lost_bytes == 0
    }

    /// Adds another decoder's figures.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.unknown += other.unknown;
        self.malformed += other.malformed;
        self.lost_bytes += other.lost_bytes;
    }
}

/// The events of one block of concatenated whole records.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
    tally: Tally,
}

impl<'a> Decoder<'a> {
    /// Decodes `block`, which begins at a record's head.
    pub fn new(block: &'a [u8]) -> Self {
        Self {
            rest: block,
            tally: Tally::default(),
        }
    }

    /// What came out and what was given up so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Cuts the next record off, or gives the rest up.
    #[inline]
    fn next_record(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(record_len(self.rest)?);
        match self.rest.split_at_checked(len) {
            Some((record, rest)) if len >= size_of::<Head>() && len.is_multiple_of(8) => {
                self.rest = rest;
                Some(record)
            }
            _ => None,
        }
    }
}

impl<'a> Iterator for Decoder<'a> {
    type Item = Event<'a>;

    #[inline]
    fn next(&mut self) -> Option<Event<'a>> {
        while !self.rest.is_empty() {
            let Some(record) = self.next_record() else {
                self.tally.lost_bytes += self.rest.len() as u64;
                self.rest = &[];
                return None;
            };
            match decode(record) {
                Ok(event) => {
                    self.tally.events += 1;
                    return Some(event);
                }
                Err(RecordError::UnknownKind) => self.tally.unknown += 1,
                Err(RecordError::Malformed) => self.tally.malformed += 1,
            }
        }
        None
    }
}

/// Why a record is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Made by a kernel side that knows more than this version.
    #[error("unknown kind of record")]
    UnknownKind,
    /// Shorter than its kind, or a length or an enumeration in it is out of bounds.
    #[error("malformed record")]
    Malformed,
}

/// The length that the head of `bytes` claims, unchecked; `None` if there is no whole head.
#[inline]
pub fn record_len(bytes: &[u8]) -> Option<u16> {
    let head = bytes.first_chunk::<{ size_of::<Head>() }>()?;
    Some(get!(head, Head, len))
}

/// One record, head included, whose length was checked by the caller.
#[inline]
pub fn decode(record: &[u8]) -> Result<Event<'_>, RecordError> {
    let head = fixed::<{ size_of::<Head>() }>(record)?;
    let pid = Pid(get!(head, Head, pid));
    let flags: u8 = get!(head, Head, flags);
    match get!(head, Head, kind) {
        kind::ALLOC => alloc(record, pid, flags).map(Event::Alloc),
        kind::FREE => free(record, pid, flags).map(Event::Free),
        kind::REALLOC => realloc(record, pid, flags).map(Event::Realloc),
        kind::FAULT => fault(record, pid, flags).map(Event::Fault),
        kind::STACK => stack(record, pid).map(Event::Stack),
        kind::CODE => code(record, pid).map(Event::Code),
        kind::LINE_TABLE => line_table(record, pid).map(Event::LineTable),
        kind::PROCESS => process(record, pid).map(Event::Process),
        kind::EXEC => gone(record, pid, GoneReason::Exec).map(Event::Gone),
        kind::EXIT => gone(record, pid, GoneReason::Exit).map(Event::Gone),
        _ => Err(RecordError::UnknownKind),
    }
}

/// The fixed part of a record.
#[inline]
fn fixed<const N: usize>(record: &[u8]) -> Result<&[u8; N], RecordError> {
    record.first_chunk().ok_or(RecordError::Malformed)
}

/// `len` bytes at `at`, all of them or none.
fn part(record: &[u8], at: usize, len: usize) -> Result<&[u8], RecordError> {
    record
        .get(at..)
        .and_then(|rest| rest.get(..len))
        .ok_or(RecordError::Malformed)
}

/// A length from a record; one that does not fit the address space is out of bounds anyway.
fn length(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[inline]
fn block_kind(flags: u8) -> Result<BlockKind, RecordError> {
    match flags {
        block::POOL => Ok(BlockKind::Pool),
        block::RAW => Ok(BlockKind::Raw),
        block::ANY => Ok(BlockKind::Any),
        block::MIMALLOC => Ok(BlockKind::Mimalloc),
        block::DOMAIN => Ok(BlockKind::Domain),
        _ => Err(RecordError::Malformed),
    }
}

#[inline]
fn alloc(record: &[u8], pid: Pid, flags: u8) -> Result<Alloc, RecordError> {
    type R = record::Alloc;
    let bytes = fixed::<{ size_of::<R>() }>(record)?;
    let kind = match block_kind(flags)? {
        BlockKind::Any => return Err(RecordError::Malformed),
        kind => kind,
    };
    Ok(Alloc {
        pid,
        tid: Tid(get!(bytes, R, tid)),
        time: MonotonicNs(get!(bytes, R, time_ns)),
        kind,
        site: alloc_site(get!(bytes, R, role)),
        addr: ProcAddr(get!(bytes, R, addr)),
        size: ByteCount(get!(bytes, R, size)),
        stack: StackId(get!(bytes, R, stack)),
    })
}

/// A role that this version does not know is nothing special.
#[inline]
fn alloc_site(role: u32) -> AllocSite {
    const REFILL: u32 = Role::PoolRefill as u32;
    const INIT: u32 = Role::PoolInit as u32;
    const COPY: u32 = Role::PoolAlloc as u32;
    const TAKEN: u32 = Role::PoolTaken as u32;
    match role {
        REFILL | INIT => AllocSite::Refill,
        COPY | TAKEN => AllocSite::Copy,
        _ => AllocSite::Other,
    }
}

#[inline]
fn free(record: &[u8], pid: Pid, flags: u8) -> Result<Free, RecordError> {
    type R = record::Free;
    let bytes = fixed::<{ size_of::<R>() }>(record)?;
    Ok(Free {
        pid,
        tid: Tid(get!(bytes, R, tid)),
        time: MonotonicNs(get!(bytes, R, time_ns)),
        kind: block_kind(flags)?,
        addr: ProcAddr(get!(bytes, R, addr)),
    })
}

#[inline]
fn realloc(record: &[u8], pid: Pid, flags: u8) -> Result<Realloc, RecordError> {
    type R = record::Realloc;
    let bytes = fixed::<{ size_of::<R>() }>(record)?;
    let kind = match block_kind(flags)? {
        BlockKind::Pool | BlockKind::Domain => return Err(RecordError::Malformed),
        kind => kind,
    };
    let old: u64 = get!(bytes, R, old);
    Ok(Realloc {
        pid,
        tid: Tid(get!(bytes, R, tid)),
        time: MonotonicNs(get!(bytes, R, time_ns)),
        kind,
        old: (old != 0).then_some(ProcAddr(old)),
        addr: ProcAddr(get!(bytes, R, addr)),
        requested: ByteCount(get!(bytes, R, requested)),
        raw_size: ByteCount(get!(bytes, R, raw_size)),
        stack: StackId(get!(bytes, R, stack)),
    })
}

fn fault(record: &[u8], pid: Pid, flags: u8) -> Result<Fault, RecordError> {
    type R = record::Fault;
    let bytes = fixed::<{ size_of::<R>() }>(record)?;
    Ok(Fault {
        pid,
        tid: Tid(get!(bytes, R, tid)),
        time: MonotonicNs(get!(bytes, R, time_ns)),
        kind: match flags {
            growth::TOUCH => FaultKind::Touch,
            growth::MAPPING => FaultKind::Mapping,
            growth::ROOM => FaultKind::Room,
            _ => return Err(RecordError::Malformed),
        },
        addr: ProcAddr(get!(bytes, R, addr)),
        weight: match get!(bytes, R, weight) {
            0 => return Err(RecordError::Malformed),
            weight => weight,
        },
        stack: StackId(get!(bytes, R, stack)),
    })
}

fn stack(record: &[u8], pid: Pid) -> Result<Stack<'_>, RecordError> {
    type R = record::StackHead;
    let bytes = fixed::<{ size_of::<R>() }>(record)?;
    let depth: u16 = get!(bytes, R, depth);
    Ok(Stack {
        pid,
        id: StackId(get!(bytes, R, id)),
        end: match get!(bytes, R, end) {
            end::COMPLETE => StackEnd::Complete,
            end::TRUNCATED => StackEnd::Truncated,
            end::UNREADABLE => StackEnd::Unreadable,
            _ => return Err(RecordError::Malformed),
        },
        tid: Tid(get!(bytes, R, tid)),
        raw_frames: part(
            record,
            size_of::<R>(),
            usize::from(depth) * size_of::<record::Frame>(),
        )?,
    })
}

fn process(record: &[u8], pid: Pid) -> Result<Process<'_>, RecordError> {
    type R = record::Process;
    let bytes = fixed::<{ size_of::<R>() }>(record)?;
    let used = length(get!(bytes, R, command_line_len)).min(tracer_ebpf::limits::MAX_COMMAND_LINE);
    let comm = part(record, core::mem::offset_of!(R, comm), 16)?;
    Ok(Process {
        pid,
        time: MonotonicNs(get!(bytes, R, time_ns)),
        start: BootNs(get!(bytes, R, start_ns)),
        parent: Pid(get!(bytes, R, parent)),
        image: ImageId(get!(bytes, R, image)),
        bias: get!(bytes, R, bias),
        uid: get!(bytes, R, uid),
        cgroup: get!(bytes, R, cgroup),
        comm: comm.split(|byte| *byte == 0).next().unwrap_or_default(),
        command_line: part(record, core::mem::offset_of!(R, command_line), used)?,
    })
}

fn gone(record: &[u8], pid: Pid, reason: GoneReason) -> Result<Gone, RecordError> {
    type R = record::Gone;
    let bytes = fixed::<{ size_of::<R>() }>(record)?;
    let (mut losses, mut hits_by_group, mut run_ns_by_group) = ([0; REASONS], [0; GROUPS], [0; GROUPS]);
    words(record, core::mem::offset_of!(R, losses), &mut losses)?;
    words(record, core::mem::offset_of!(R, hits), &mut hits_by_group)?;
    words(record, core::mem::offset_of!(R, run_ns), &mut run_ns_by_group)?;
    Ok(Gone {
        pid,
        reason,
        time: MonotonicNs(get!(bytes, R, time_ns)),
        counters: Box::new(Counters {
            allocs: get!(bytes, R, allocs),
            frees: get!(bytes, R, frees),
            reallocs: get!(bytes, R, reallocs),
            faults: get!(bytes, R, faults),
            hits_by_group,
            run_ns_by_group,
            losses,
        }),
    })
}

/// Fills `to` with the words at `at`.
fn words(record: &[u8], at: usize, to: &mut [u64]) -> Result<(), RecordError> {
    let (words, _) = part(record, at, 8 * to.len())?.as_chunks();
    for (to, word) in to.iter_mut().zip(words) {
        *to = u64::from_le_bytes(*word);
    }
    Ok(())
}

fn code(record: &[u8], pid: Pid) -> Result<Code<'_>, RecordError> {
    type R = record::Code;
    let bytes = fixed::<{ size_of::<R>() }>(record)?;
    let line_table_len: u32 = get!(bytes, R, line_table_len);
    Ok(Code {
        pid,
        code: ProcAddr(get!(bytes, R, code)),
        first_line: get!(bytes, R, first_line),
        line_table_len: (line_table_len != u32::MAX).then_some(line_table_len),
        line_table: ProcAddr(get!(bytes, R, line_table)),
        version_hex: get!(bytes, R, version_hex),
        filename: text(
            part(record, core::mem::offset_of!(R, filename), MAX_FILE_NAME)?,
            get!(bytes, R, filename_text.len),
            get!(bytes, R, filename_text.kind),
            get!(bytes, R, filename_text.cut),
        ),
        qualname: text(
            part(record, core::mem::offset_of!(R, qualname), MAX_QUALNAME)?,
            get!(bytes, R, qualname_text.len),
            get!(bytes, R, qualname_text.kind),
            get!(bytes, R, qualname_text.cut),
        ),
    })
}

/// A string in `space`. A length past its end is a string that was cut there; an unknown width is unreadable.
/// A code object is worth keeping without its name: the stacks that name it still have their shape.
fn text(space: &[u8], len: u16, kind: u8, cut: u8) -> Text<'_> {
    let (kind, width) = match kind {
        text::ASCII => (TextKind::Ascii, 1),
        text::LATIN1 => (TextKind::Latin1, 1),
        text::UCS2 => (TextKind::Ucs2, 2),
        text::UCS4 => (TextKind::Ucs4, 4),
        _ => {
            return Text {
                bytes: &[],
                kind: TextKind::Unreadable,
                cut: cut != 0,
            };
        }
    };
    let claimed = usize::from(len);
    let present = claimed.min(space.len()) / width * width;
    Text {
        bytes: space.get(..present).unwrap_or_default(),
        kind,
        cut: cut != 0 || present < claimed,
    }
}

fn line_table(record: &[u8], pid: Pid) -> Result<LineTable<'_>, RecordError> {
    type R = record::LineTable;
    const DATA: usize = core::mem::offset_of!(record::LineTable, data);
    let bytes = fixed::<DATA>(record)?;
    Ok(LineTable {
        pid,
        code: ProcAddr(get!(bytes, R, code)),
        offset: get!(bytes, R, offset),
        data: part(record, DATA, length(get!(bytes, R, used)))?,
    })
}
