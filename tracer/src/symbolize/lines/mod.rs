//! Line tables of every supported CPython version: instruction offset -> line.
//!
//! Three formats share this one question, so they share one answer type, [`Found`], which keeps "the table
//! says there is no line" apart from "the table ends before this instruction"; the second is what a partial
//! table looks like. Invariant: total over any bytes, time linear in the table, no allocation.

mod lnotab;
mod locations;
mod ranges;

#[cfg(test)]
mod tests;

/// What a table says about one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The instruction is in this line.
    Line(i32),
    /// The instruction is covered and has no line (code that the compiler made up).
    NoLine,
    /// The table ends before the instruction; the line in force there.
    Beyond(i32),
}

/// The format of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `co_lnotab`, up to 3.9.
    Lnotab,
    /// `co_linetable` of 3.10: pairs of deltas.
    Ranges,
    /// `co_linetable` of 3.11 and newer: location entries.
    Locations,
}

impl Format {
    /// The format that an interpreter of this `PY_VERSION_HEX` writes.
    pub const fn of_version(version_hex: u32) -> Self {
        match version_hex >> 16 {
            0..=0x0309 => Self::Lnotab,
            0x030a => Self::Ranges,
            _ => Self::Locations,
        }
    }

    /// Looks an instruction up in a table that may be only the first part of the real one.
    pub fn find(self, table: &[u8], first_line: i32, instr: u32) -> Found {
        match self {
            Self::Lnotab => lnotab::find(table, first_line, instr),
            Self::Ranges => ranges::find(table, first_line, instr),
            Self::Locations => locations::find(table, first_line, instr),
        }
    }
}

/// The line of an instruction, as `PyCode_Addr2Line` gives it.
///
/// `instr` is the byte offset of the instruction from the first one; negative means that the frame has
/// not begun, which is the first line. `None`: the instruction has no line, or lies outside the table.
pub fn line_of(version_hex: u32, table: &[u8], first_line: i32, instr: i32) -> Option<i32> {
    let Ok(offset) = u32::try_from(instr) else {
        return Some(first_line);
    };
    let format = Format::of_version(version_hex);
    match format.find(table, first_line, offset) {
        Found::Line(line) => Some(line),
        // The last line of an lnotab goes on to the end of the code.
        Found::Beyond(line) if format == Format::Lnotab => Some(line),
        Found::NoLine | Found::Beyond(_) => None,
    }
}
