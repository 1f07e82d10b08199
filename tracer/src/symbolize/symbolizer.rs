//! The code objects of one process, and its stacks resolved with them.
//!
//! Apart from the frame table, which all processes share. Invariant: a code object is known by its address
//! only until the next `Code` event with that address (an address is reused when a code object dies), so a
//! stack is resolved when it arrives and never again.

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tracer_ebpf::limits::{LINE_TABLE_CHUNK, MAX_LINE_TABLE_CHUNKS};

use super::{
    frames::{FrameId, FrameTable, StrId, Symbol},
    lines::{Format, Found},
    memory::{Memory, recover_line_table},
    text::{Kept, name_of_text},
};
use crate::{
    ingest::event::{Code, LineTable, RawFrame, Stack, StackEnd},
    units::{Pid, ProcAddr},
};

/// Longest line table that the records can carry, bytes.
const MAX_TABLE: usize = LINE_TABLE_CHUNK * MAX_LINE_TABLE_CHUNKS;
/// Code objects kept of one process. A large service has some ten thousand.
const MAX_CODES: usize = 1 << 20;

/// What could not be resolved, counted for one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SymbolProblems {
    /// Frames in stacks whose code object was not delivered; shown as `[unknown code]`.
    pub unknown_code: u64,
    /// Code objects of which a line was asked for that their line table, missing in whole or in part, does not
    /// give; shown with the first line of the function.
    pub incomplete_line_tables: u64,
}

/// Resolves the stacks of one process.
#[derive(Debug, Default)]
pub struct Symbolizer {
    codes: FxHashMap<ProcAddr, CodeObject>,
    problems: SymbolProblems,
}

#[derive(Debug)]
struct CodeObject {
    function: StrId,
    file: StrId,
    first_line: i32,
    format: Format,
    table_addr: ProcAddr,
    table_len: Option<u32>,
    table: Vec<u8>,
    /// Frames already made, by instruction.
    frames: FxHashMap<i32, FrameId>,
    memory_tried: bool,
    incomplete_counted: bool,
}

impl Symbolizer {
    /// What could not be resolved so far.
    pub fn problems(&self) -> SymbolProblems {
        self.problems
    }

    /// Counts what another could not resolve.
    pub fn add_problems(&mut self, more: SymbolProblems) {
        let own = &mut self.problems;
        own.unknown_code = own.unknown_code.saturating_add(more.unknown_code);
        own.incomplete_line_tables = own
            .incomplete_line_tables
            .saturating_add(more.incomplete_line_tables);
    }

    /// Forgets all code objects; what was counted stays.
    pub fn forget_code(&mut self) {
        self.codes = FxHashMap::default();
    }

    /// Takes a code object, which replaces an older one of the same address.
    pub fn code(&mut self, code: &Code<'_>, frames: &mut FrameTable) {
        if self.codes.len() >= MAX_CODES && !self.codes.contains_key(&code.code) {
            return;
        }
        let object = CodeObject {
            function: frames.intern_str(&name_of_text(code.qualname, Kept::Start)),
            file: frames.intern_str(&name_of_text(code.filename, Kept::End)),
            first_line: code.first_line,
            format: Format::of_version(code.version_hex),
            table_addr: code.line_table,
            table_len: code.line_table_len,
            table: Vec::new(),
            frames: FxHashMap::default(),
            memory_tried: false,
            incomplete_counted: false,
        };
        self.codes.insert(code.code, object);
    }

    /// Takes a piece of a line table. Pieces count only in order: what lies behind a lost piece is of no use.
    pub fn line_table(&mut self, piece: &LineTable<'_>) {
        let Some(code) = self.codes.get_mut(&piece.code) else {
            return;
        };
        let room = code
            .table_len
            .map_or(0, |len| len as usize)
            .min(MAX_TABLE)
            .saturating_sub(code.table.len());
        if piece.offset as usize != code.table.len() || room == 0 {
            return;
        }
        let data = piece.data.get(..room.min(piece.data.len())).unwrap_or_default();
        code.table.extend_from_slice(data);
        // Lines that were guessed for want of this piece must not stay.
        code.frames.clear();
    }

    /// Resolves a stack into `out`, root first. `out` is emptied before.
    pub fn stack(
        &mut self,
        stack: &Stack<'_>,
        frames: &mut FrameTable,
        mut memory: Option<&mut (dyn Memory + '_)>,
        out: &mut Vec<FrameId>,
    ) {
        out.clear();
        for raw in stack.frames() {
            out.push(self.frame(stack.pid, raw, frames, memory.as_deref_mut()));
        }
        match stack.end {
            StackEnd::Complete if out.is_empty() => out.push(FrameTable::NO_PYTHON),
            StackEnd::Complete => {}
            StackEnd::Truncated => out.push(FrameTable::TRUNCATED),
            StackEnd::Unreadable => out.push(FrameTable::UNREADABLE),
        }
        out.reverse();
    }

    fn frame(
        &mut self,
        pid: Pid,
        raw: RawFrame,
        frames: &mut FrameTable,
        memory: Option<&mut (dyn Memory + '_)>,
    ) -> FrameId {
        let Some(code) = self.codes.get_mut(&raw.code) else {
            self.problems.unknown_code += 1;
            return FrameTable::UNKNOWN_CODE;
        };
        if let Some(&id) = code.frames.get(&raw.instr) {
            return id;
        }
        if let Some(memory) = memory
            && !code.covers(raw.instr)
        {
            code.read_table(pid, memory);
        }
        if !code.covers(raw.instr) && !code.incomplete_counted {
            code.incomplete_counted = true;
            self.problems.incomplete_line_tables += 1;
        }
        let line = u32::try_from(code.line(raw.instr)).unwrap_or(0);
        let id = frames.intern(Symbol {
            function: code.function,
            file: code.file,
            line,
        });
        code.frames.insert(raw.instr, id);
        id
    }
}

impl CodeObject {
    fn is_whole(&self) -> bool {
        self.table_len.is_some_and(|len| len as usize == self.table.len())
    }

    /// Whether the table, as far as it is here, decides the line of this instruction.
    fn covers(&self, instr: i32) -> bool {
        match self.find(instr) {
            None | Some(Found::Line(_) | Found::NoLine) => true,
            Some(Found::Beyond(_)) => self.is_whole() && self.format == Format::Lnotab,
        }
    }

    /// The line; the first one of the function where the table gives none, since that tells a reader more than
    /// no line at all.
    fn line(&self, instr: i32) -> i32 {
        match self.find(instr) {
            Some(Found::Line(line)) => line,
            Some(Found::Beyond(line)) if self.covers(instr) => line,
            _ => self.first_line,
        }
    }

    /// `None` for a frame that has not begun.
    fn find(&self, instr: i32) -> Option<Found> {
        let instr = u32::try_from(instr).ok()?;
        Some(self.format.find(&self.table, self.first_line, instr))
    }

    fn read_table(&mut self, pid: Pid, memory: &mut (dyn Memory + '_)) {
        if self.memory_tried || self.is_whole() {
            return;
        }
        self.memory_tried = true;
        if let Some(table) = recover_line_table(memory, pid, self.table_addr, self.table_len) {
            self.table_len = u32::try_from(table.len()).ok();
            self.table = table;
            self.frames.clear();
        }
    }
}

#[cfg(test)]
mod tests;
