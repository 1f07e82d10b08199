//! Strings of a target to text that is safe to show: lossy, bounded, without characters that control anything.
//!
//! Apart because every name passes through here exactly once, on its way in, so no report has to remember
//! to escape for a terminal. Invariant: the result has no control, bidirectional-override, surrogate or
//! noncharacter code points; such a character is shown as `\x1b` or `\u202e`.

use std::fmt::Write as _;

use crate::ingest::event::{Text, TextKind};

/// Most characters that a name keeps. The records bound it already; this bounds what escaping makes of it.
const MAX_CHARS: usize = 512;
/// What stands for a part that was cut off.
const CUT: &str = "...";
/// What stands for a string that could not be read.
pub const UNREADABLE_NAME: &str = "[unreadable]";

/// Which part of a string is kept when the kernel side cuts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The first characters, as of a qualified name.
    Start,
    /// The last characters, as of a file name.
    End,
}

/// A target's string as a name. An empty one is shown as `[empty]`.
pub fn name_of_text(text: Text<'_>, kept: Kept) -> String {
    let mut out = String::with_capacity(text.bytes.len() + CUT.len());
    if text.cut && kept == Kept::End {
        out.push_str(CUT);
    }
    match text.kind {
        TextKind::Unreadable => return UNREADABLE_NAME.to_owned(),
        TextKind::Ascii | TextKind::Latin1 => {
            push_all(&mut out, text.bytes.iter().map(|&byte| u32::from(byte)));
        }
        TextKind::Ucs2 => {
            let (units, _) = text.bytes.as_chunks::<2>();
            push_all(
                &mut out,
                units.iter().map(|&unit| u32::from(u16::from_le_bytes(unit))),
            );
        }
        TextKind::Ucs4 => {
            let (units, _) = text.bytes.as_chunks::<4>();
            push_all(&mut out, units.iter().map(|&unit| u32::from_le_bytes(unit)));
        }
    }
    if text.cut && kept == Kept::Start {
        out.push_str(CUT);
    }
    if out.is_empty() {
        out.push_str("[empty]");
    }
    out
}

/// Bytes that should be UTF-8 (task names, arguments, paths) as a name; what is not UTF-8 becomes U+FFFD.
pub fn name_of_bytes(bytes: &[u8]) -> String {
    escape(&String::from_utf8_lossy(bytes))
}

/// The same text without characters that control something.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    push_all(&mut out, text.chars().map(u32::from));
    out
}

fn push_all(out: &mut String, points: impl Iterator<Item = u32>) {
    for (index, point) in points.enumerate() {
        if index == MAX_CHARS {
            out.push_str(CUT);
            return;
        }
        match char::from_u32(point) {
            Some(c) if is_plain(c) => out.push(c),
            // A lone surrogate stands for a byte that was not UTF-8 (PEP 383), so its number matters.
            // Writing to a String cannot fail.
            _ if point < 0x100 => drop(write!(out, "\\x{point:02x}")),
            _ => drop(write!(out, "\\u{point:04x}")),
        }
    }
}

/// Whether a character shows itself and does nothing else, in a terminal and in XML.
fn is_plain(c: char) -> bool {
    !(c.is_control()
        || matches!(c,
            // Marks, overrides and isolates of the bidirectional algorithm: they reorder what is around them.
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Line and paragraph separators, byte order mark, and the tag characters.
            | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
        // Noncharacters: XML forbids U+FFFE and U+FFFF, and nothing shows the others.
        || u32::from(c) & 0xfffe == 0xfffe
        || matches!(c, '\u{fdd0}'..='\u{fdef}'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(kind: TextKind, bytes: &[u8], expected: &str) {
        assert_eq!(
            name_of_text(
                Text {
                    bytes,
                    kind,
                    cut: false
                },
                Kept::Start
            ),
            expected
        );
    }

    #[test]
    fn each_width_of_characters_is_decoded() {
        check(TextKind::Ascii, b"plain", "plain");
        check(TextKind::Latin1, b"caf\xe9", "café");
        check(TextKind::Ucs2, &[0x42, 0x04, 0x3d, 0x04, 0x99], "тн");
        check(TextKind::Ucs4, &[0x0d, 0xf4, 0x01, 0], "\u{1f40d}");
        check(TextKind::Unreadable, b"", "[unreadable]");
        check(TextKind::Ascii, b"", "[empty]");
    }

    #[test]
    fn what_would_control_a_terminal_or_break_xml_is_spelled_out() {
        check(TextKind::Ascii, b"\x1b[2Jx\n\x7f\0", "\\x1b[2Jx\\x0a\\x7f\\x00");
        check(TextKind::Latin1, b"\x9b2J", "\\x9b2J");
        check(
            TextKind::Ucs2,
            &[0x2e, 0x20, 0x80, 0xdc, 0xff, 0xff],
            "\\u202e\\udc80\\uffff",
        );
        check(TextKind::Ucs4, &[0xff, 0xff, 0xff, 0xff], "\\uffffffff");
        assert_eq!(name_of_bytes(b"a\xffb\tc"), "a\u{fffd}b\\x09c");
    }

    #[test]
    fn a_cut_string_says_at_which_end_it_was_cut() {
        let text = Text {
            bytes: b"abc",
            kind: TextKind::Ascii,
            cut: true,
        };
        assert_eq!(name_of_text(text, Kept::Start), "abc...");
        assert_eq!(name_of_text(text, Kept::End), "...abc");
    }

    proptest! {
        #[test]
        fn any_bytes_become_bounded_plain_text(
            kind in prop_oneof![
                Just(TextKind::Ascii), Just(TextKind::Latin1), Just(TextKind::Ucs2), Just(TextKind::Ucs4)
            ],
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let name = name_of_text(Text { bytes: &bytes, kind, cut: true }, Kept::End);
            prop_assert!(name.chars().all(is_plain));
            prop_assert!(name.chars().count() <= MAX_CHARS * 10 + 6);
        }
    }
}
