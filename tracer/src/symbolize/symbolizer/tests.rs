//! Made-up code objects and stacks: identity of reused addresses, missing pieces, ends of stacks.

use super::*;
use crate::{
    ingest::event::{Text, TextKind},
    units::{StackId, Tid},
};

const PID: Pid = Pid(7);
/// 3.10: the format in which a table is easiest to write by hand.
const VERSION: u32 = 0x030a_0df0;
const TABLE: &[u8] = &[4, 0, 4, 1, 4, 1];

fn code(addr: u64, name: &'static str, table_len: Option<u32>) -> Code<'static> {
    let text = |text: &'static str| Text {
        bytes: text.as_bytes(),
        kind: TextKind::Ascii,
        cut: false,
    };
    Code {
        pid: PID,
        code: ProcAddr(addr),
        first_line: 10,
        line_table_len: table_len,
        line_table: ProcAddr(0x5000),
        version_hex: VERSION,
        filename: text("app.py"),
        qualname: text(name),
    }
}

fn piece(addr: u64, offset: u32, data: &[u8]) -> LineTable<'_> {
    LineTable {
        pid: PID,
        code: ProcAddr(addr),
        offset,
        data,
    }
}

/// Resolves frames (leaf first) and renders the result, root first.
fn resolve(
    symbolizer: &mut Symbolizer,
    table: &mut FrameTable,
    end: StackEnd,
    frames: &[(u64, i32)],
    memory: Option<&mut dyn Memory>,
) -> String {
    let mut raw_frames = Vec::new();
    for (code, instr) in frames {
        raw_frames.extend(code.to_le_bytes());
        raw_frames.extend(instr.to_le_bytes());
        raw_frames.extend([0; 4]);
    }
    let stack = Stack {
        pid: PID,
        id: StackId(1000),
        end,
        tid: Tid(7),
        raw_frames: &raw_frames,
    };
    let mut out = Vec::new();
    symbolizer.stack(&stack, table, memory, &mut out);
    let shown: Vec<String> = out
        .iter()
        .filter_map(|&id| table.symbol(id))
        .map(|symbol| format!("{}:{}", table.str(symbol.function), symbol.line))
        .collect();
    shown.join(" ")
}

#[test]
fn stacks_are_root_first_with_lines() {
    let (mut symbolizer, mut table) = (Symbolizer::default(), FrameTable::new(100));
    for (addr, name) in [(1, "main"), (2, "work")] {
        symbolizer.code(&code(addr, name, Some(6)), &mut table);
        symbolizer.line_table(&piece(addr, 0, TABLE));
    }
    let frames = [(2, 9), (1, 4), (1, -1)];
    assert_eq!(
        resolve(&mut symbolizer, &mut table, StackEnd::Complete, &frames, None),
        "main:10 main:11 work:12"
    );
    assert_eq!(
        resolve(
            &mut symbolizer,
            &mut table,
            StackEnd::Truncated,
            &frames[..1],
            None
        ),
        "[truncated]:0 work:12"
    );
    assert_eq!(
        resolve(
            &mut symbolizer,
            &mut table,
            StackEnd::Unreadable,
            &frames[..1],
            None
        ),
        "[unreadable]:0 work:12"
    );
    assert_eq!(
        resolve(&mut symbolizer, &mut table, StackEnd::Complete, &[], None),
        "[no Python frame]:0"
    );
    assert_eq!(symbolizer.problems(), SymbolProblems::default());
}

#[test]
fn a_reused_address_gets_the_new_name_and_old_frames_keep_theirs() {
    let (mut symbolizer, mut table) = (Symbolizer::default(), FrameTable::new(100));
    let mut seen = Vec::new();
    for name in ["first", "second"] {
        symbolizer.code(&code(1, name, Some(6)), &mut table);
        symbolizer.line_table(&piece(1, 0, TABLE));
        seen.push(resolve(
            &mut symbolizer,
            &mut table,
            StackEnd::Complete,
            &[(1, 0)],
            None,
        ));
    }
    assert_eq!(seen, ["first:10", "second:10"]);
    let names: Vec<&str> = table
        .ids()
        .filter_map(|id| table.symbol(id))
        .map(|symbol| table.str(symbol.function))
        .collect();
    assert_eq!(names[names.len() - 2..], ["first", "second"]);
}

#[test]
fn an_unknown_code_object_is_shown_and_counted() {
    let (mut symbolizer, mut table) = (Symbolizer::default(), FrameTable::new(100));
    let shown = resolve(
        &mut symbolizer,
        &mut table,
        StackEnd::Complete,
        &[(1, 0), (1, 0)],
        None,
    );
    assert_eq!(shown, "[unknown code]:0 [unknown code]:0");
    assert_eq!(symbolizer.problems().unknown_code, 2);
}

#[test]
fn a_part_of_a_table_is_used_as_far_as_it_goes() {
    let (mut symbolizer, mut table) = (Symbolizer::default(), FrameTable::new(100));
    symbolizer.code(&code(1, "f", Some(6)), &mut table);
    symbolizer.line_table(&piece(1, 0, &TABLE[..4]));
    symbolizer.line_table(&piece(1, 5, &TABLE[5..]));
    let shown = resolve(
        &mut symbolizer,
        &mut table,
        StackEnd::Complete,
        &[(1, 5), (1, 9), (1, 10)],
        None,
    );
    assert_eq!(shown, "f:10 f:10 f:11");
    assert_eq!(symbolizer.problems().incomplete_line_tables, 1);
    symbolizer.line_table(&piece(1, 4, &TABLE[4..]));
    assert_eq!(
        resolve(&mut symbolizer, &mut table, StackEnd::Complete, &[(1, 9)], None),
        "f:12"
    );
}

#[test]
fn more_bytes_than_the_table_has_are_ignored() {
    let (mut symbolizer, mut table) = (Symbolizer::default(), FrameTable::new(100));
    symbolizer.code(&code(1, "f", Some(4)), &mut table);
    symbolizer.line_table(&piece(1, 0, TABLE));
    symbolizer.line_table(&piece(1, 4, TABLE));
    assert_eq!(
        resolve(&mut symbolizer, &mut table, StackEnd::Complete, &[(1, 9)], None),
        "f:10"
    );
}

#[test]
fn a_missing_table_is_read_from_memory_once() {
    struct Counting(u32);
    impl Memory for Counting {
        fn read(&mut self, pid: Pid, addr: ProcAddr, len: usize) -> Option<Vec<u8>> {
            assert_eq!(pid, PID);
            self.0 += 1;
            match (addr.0, len) {
                (0x4ff0, 8) => Some(6_u64.to_le_bytes().to_vec()),
                (0x5000, 6) => Some(TABLE.to_vec()),
                _ => None,
            }
        }
    }
    let (mut symbolizer, mut table) = (Symbolizer::default(), FrameTable::new(100));
    let mut memory = Counting(0);
    symbolizer.code(&code(1, "f", None), &mut table);
    for (instr, expected) in [(9, "f:12"), (5, "f:11"), (50, "f:10")] {
        let shown = resolve(
            &mut symbolizer,
            &mut table,
            StackEnd::Complete,
            &[(1, instr)],
            Some(&mut memory),
        );
        assert_eq!(shown, expected);
    }
    assert_eq!(memory.0, 2);
}
