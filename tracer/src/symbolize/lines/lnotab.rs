//! `co_lnotab` of 3.9 and older: pairs (bytes of code, lines), unsigned and signed.
//!
//! Source: <https://github.com/python/cpython/blob/v3.9.18/Objects/lnotab_notes.txt> and `PyCode_Addr2Line` in
//! <https://github.com/python/cpython/blob/v3.9.18/Objects/codeobject.c>. A line is in force until a later pair
//! begins behind the instruction, so the last line has no end.

use super::Found;

pub(super) fn find(table: &[u8], first_line: i32, instr: u32) -> Found {
    let mut line = first_line;
    let mut start = 0_u32;
    let (pairs, _) = table.as_chunks::<2>();
    for &[bytes, lines] in pairs {
        start = start.saturating_add(u32::from(bytes));
        if start > instr {
            return Found::Line(line);
        }
        line = line.wrapping_add(i32::from(lines.cast_signed()));
    }
    Found::Beyond(line)
}
