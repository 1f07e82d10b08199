//! The location table of 3.11 and newer: entries of varying length, each covering 1 to 8 code units.
//!
//! Source: <https://github.com/python/cpython/blob/v3.11.7/Objects/locations.md> and `get_line_delta` in
//! <https://github.com/python/cpython/blob/v3.11.7/Objects/codeobject.c>. Only the first byte of an entry has its
//! highest bit set, which is how the next entry is found without knowing this one's columns.

use super::Found;

/// First byte of an entry.
const ENTRY: u8 = 0x80;
/// Entry kinds, bits 3 to 6 of the first byte.
const ONE_LINE_0: u8 = 10;
const ONE_LINE_2: u8 = 12;
const NO_COLUMNS: u8 = 13;
const LONG: u8 = 14;
const NONE: u8 = 15;
/// Bytes of one code unit.
const CODE_UNIT: u32 = 2;
/// A varint has 6 bits a byte; what lies beyond 32 bits is dropped, as in a 32-bit unsigned.
const VARINT_BITS: u32 = 6;
const VARINT_MORE: u8 = 0x40;

pub(super) fn find(table: &[u8], first_line: i32, instr: u32) -> Found {
    let mut line = first_line;
    let mut end = 0_u32;
    let mut rest = table;
    while let Some((&first, tail)) = rest.split_first() {
        let kind = (first >> 3) & 15;
        line = line.wrapping_add(line_delta(kind, tail));
        end = end.saturating_add((u32::from(first & 7) + 1) * CODE_UNIT);
        if instr < end {
            return if kind == NONE {
                Found::NoLine
            } else {
                Found::Line(line)
            };
        }
        let skip = tail.iter().take_while(|&&byte| byte & ENTRY == 0).count();
        rest = tail.get(skip..).unwrap_or_default();
    }
    Found::Beyond(line)
}

fn line_delta(kind: u8, tail: &[u8]) -> i32 {
    match kind {
        ONE_LINE_0..=ONE_LINE_2 => i32::from(kind - ONE_LINE_0),
        NO_COLUMNS | LONG => signed_varint(tail),
        _ => 0,
    }
}

/// Lowest bits first; the lowest bit of the whole is the sign.
fn signed_varint(bytes: &[u8]) -> i32 {
    let mut value = 0_u32;
    let mut shift = 0_u32;
    for &byte in bytes {
        value |= u32::from(byte & 0x3f).checked_shl(shift).unwrap_or(0);
        shift = shift.saturating_add(VARINT_BITS);
        if byte & VARINT_MORE == 0 {
            break;
        }
    }
    let magnitude = (value >> 1).cast_signed();
    if value & 1 == 0 { magnitude } else { -magnitude }
}
