//! `co_linetable` of 3.10: pairs (bytes of code, lines), where each pair covers a range of its own.
//!
//! Source: <https://github.com/python/cpython/blob/v3.10.13/Objects/lnotab_notes.txt> and `advance` in
//! <https://github.com/python/cpython/blob/v3.10.13/Objects/codeobject.c>.

use super::Found;

/// A line delta that says: this range has no line.
const NO_LINE: i8 = -128;

pub(super) fn find(table: &[u8], first_line: i32, instr: u32) -> Found {
    let mut line = first_line;
    let mut end = 0_u32;
    let (pairs, _) = table.as_chunks::<2>();
    for &[bytes, lines] in pairs {
        end = end.saturating_add(u32::from(bytes));
        let delta = lines.cast_signed();
        if delta != NO_LINE {
            line = line.wrapping_add(i32::from(delta));
        }
        if instr < end {
            return if delta == NO_LINE {
                Found::NoLine
            } else {
                Found::Line(line)
            };
        }
    }
    Found::Beyond(line)
}
