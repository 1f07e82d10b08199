//! What the recorder itself needs of the records that pass through it: processes to describe, and line tables
//! that the kernel side could not read while the process can still be asked.

use std::os::unix::ffi::OsStrExt as _;

use super::{attach::now, audit::Auditor};
use crate::{
    capture::ProcessRecord,
    discover::{ProcessInfo, UserNames, process, read_memory},
    ingest::{
        Decoder,
        encode::encode,
        event::{Event, LineTable, Process},
    },
    symbolize::{Memory, recover_line_table},
    units::{ImageId, Pid, ProcAddr},
};

/// What was found in a batch.
#[derive(Default)]
pub(super) struct Found {
    /// Processes that were seen for the first time.
    pub(super) processes: Vec<ProcessRecord>,
    /// Records to be written behind the batch: recovered line tables.
    pub(super) recovered: Vec<u8>,
    /// Events in the batch.
    pub(super) events: u64,
    /// Records that could not be decoded.
    pub(super) undecoded: u64,
}

/// Memory of processes that run.
struct Live;

impl Memory for Live {
    fn read(&mut self, pid: Pid, addr: ProcAddr, len: usize) -> Option<Vec<u8>> {
        read_memory(pid, addr, len).ok()
    }
}

/// Looks through a batch of whole records.
pub(super) fn watch(records: &[u8], users: &mut UserNames, auditor: &mut Auditor) -> Found {
    let mut found = Found::default();
    let mut decoder = Decoder::new(records);
    // Pieces of a table follow their code object at once.
    let mut newest = None;
    for event in decoder.by_ref() {
        found.events += 1;
        auditor.event(&event);
        match event {
            Event::Process(seen) => found.processes.extend(describe(seen.pid, users)),
            Event::Code(code) => {
                if code
                    .line_table_len
                    .is_none_or(|len| len == 0 && code.version_hex >= NEVER_EMPTY)
                {
                    recover(code.pid, code.code, code.line_table, None, &mut found.recovered);
                }
                newest = Some((code.pid, code.code, code.line_table, code.line_table_len));
            }
            // The kernel side cannot wait for a page that is not in memory; then it sends an empty piece.
            Event::LineTable(piece) if piece.data.is_empty() => {
                if let Some((pid, code, table, len)) =
                    newest.take_if(|(pid, code, ..)| (*pid, *code) == (piece.pid, piece.code))
                {
                    recover(pid, code, table, len, &mut found.recovered);
                }
            }
            _ => {}
        }
    }
    let tally = decoder.tally();
    found.undecoded = tally.unknown + tally.malformed;
    found
}

/// Writes a line table's records to `to`, if the process can still be read.
fn recover(pid: Pid, code: ProcAddr, table: ProcAddr, len: Option<u32>, to: &mut Vec<u8>) {
    let table = recover_line_table(&mut Live, pid, table, len);
    for (data, offset) in table
        .as_deref()
        .unwrap_or_default()
        .chunks(PIECE)
        .zip((0_u32..).step_by(PIECE))
    {
        encode(
            &Event::LineTable(LineTable {
                pid,
                code,
                offset,
                data,
            }),
            to,
        );
    }
}

/// `PY_VERSION_HEX` from which on every code object has a line table that is not empty.
const NEVER_EMPTY: u32 = 0x030a_0000;

/// Bytes in a recovered piece of a line table.
const PIECE: usize = tracer_ebpf::limits::LINE_TABLE_CHUNK;

/// Appends the record that the kernel side would send of a process, as far as /proc tells.
pub(super) fn announced(info: &ProcessInfo, image: ImageId, bias: u64, to: &mut Vec<u8>) {
    let arguments: Vec<u8> = info
        .command_line
        .iter()
        .flat_map(|word| word.as_bytes().iter().copied().chain([0]))
        .collect();
    encode(
        &Event::Process(Process {
            pid: info.pid,
            time: now(),
            start: info.start,
            parent: info.parent,
            image,
            bias,
            uid: info.uid,
            cgroup: 0,
            comm: info.comm.as_bytes(),
            command_line: &arguments,
        }),
        to,
    );
}

/// What /proc says about a process; `None` if it is gone, as short-lived ones are: then the capture has what
/// the kernel side sent.
fn describe(pid: Pid, users: &mut UserNames) -> Option<ProcessRecord> {
    let info = process(pid).ok()?;
    Some(ProcessRecord {
        pid,
        start: info.start,
        parent: info.parent,
        exe: info
            .exe
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        comm: info.comm.to_string_lossy().into_owned(),
        command_line: info
            .command_line
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        uid: info.uid,
        user: users.get(info.uid).unwrap_or_default().to_owned(),
        cgroup: info.cgroup,
        container: info.container.unwrap_or_default(),
        ..ProcessRecord::default()
    })
}
