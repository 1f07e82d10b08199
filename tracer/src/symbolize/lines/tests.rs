//! Hand-made tables and properties; the comparison with real interpreters is in `symbolize::real_tests`.

use proptest::prelude::*;

use super::*;

const V39: u32 = 0x0309_12f0;
const V310: u32 = 0x030a_0df0;
const V311: u32 = 0x030b_07f0;

#[track_caller]
fn check(version: u32, table: &[u8], expected: &[(i32, Option<i32>)]) {
    for &(instr, line) in expected {
        assert_eq!(line_of(version, table, 100, instr), line, "instruction {instr}");
    }
}

#[test]
fn a_frame_that_has_not_begun_is_in_the_first_line() {
    for version in [V39, V310, V311] {
        check(version, &[], &[(-1, Some(100)), (i32::MIN, Some(100))]);
    }
}

#[test]
fn the_last_line_of_an_lnotab_has_no_end() {
    check(
        V39,
        &[0, 1, 6, 2, 4, 0xfe],
        &[
            (0, Some(101)),
            (5, Some(101)),
            (6, Some(103)),
            (9, Some(103)),
            (10, Some(101)),
            (999, Some(101)),
        ],
    );
}

#[test]
fn a_range_of_3_10_can_have_no_line_and_the_table_has_an_end() {
    check(
        V310,
        &[4, 1, 2, 0x80, 0, 5, 4, 0xff],
        &[
            (0, Some(101)),
            (3, Some(101)),
            (4, None),
            (6, Some(105)),
            (9, Some(105)),
            (10, None),
        ],
    );
}

#[test]
fn location_entries_of_every_kind_are_understood() {
    let table = [
        0x80 | (13 << 3),
        2 << 1, // no columns, +2, one unit
        0x80 | (3 << 3) | 1,
        0x11, // short, same line, two units
        0x80 | (12 << 3),
        1,
        2,                    // one line 2
        0x80 | (15 << 3) | 2, // none, three units
        0x80 | (14 << 3),
        0x40 | 1,
        1,
        0,
        1,
        1, // long, 65 = sign and 32: -32
    ];
    check(
        V311,
        &table,
        &[
            (0, Some(102)),
            (2, Some(102)),
            (5, Some(102)),
            (6, Some(104)),
            (8, None),
            (13, None),
            (14, Some(72)),
            (16, None),
        ],
    );
}

#[test]
fn a_part_of_a_table_answers_for_what_it_covers() {
    let whole = [4, 1, 4, 1, 4, 1];
    let part = whole.get(..4).unwrap_or_default();
    assert_eq!(Format::Ranges.find(part, 1, 5), Found::Line(3));
    assert_eq!(Format::Ranges.find(part, 1, 8), Found::Beyond(3));
    assert_eq!(Format::Lnotab.find(part, 1, 3), Found::Line(1));
    assert_eq!(Format::Lnotab.find(part, 1, 4), Found::Line(2));
    assert_eq!(Format::Lnotab.find(part, 1, 8), Found::Beyond(3));
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(
        version in prop_oneof![Just(V39), Just(V310), Just(V311), any::<u32>()],
        table in proptest::collection::vec(any::<u8>(), 0..600),
        first in any::<i32>(),
        instr in any::<i32>(),
    ) {
        let _ = line_of(version, &table, first, instr);
    }

    #[test]
    fn an_answer_from_a_part_is_the_answer_of_the_whole(
        format in prop_oneof![Just(Format::Lnotab), Just(Format::Ranges)],
        table in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 0_usize..200,
        instr in 0_u32..4000,
    ) {
        let part = table.get(..cut.min(table.len())).unwrap_or_default();
        let found = format.find(part, 1, instr);
        if !matches!(found, Found::Beyond(_)) {
            prop_assert_eq!(found, format.find(&table, 1, instr));
        }
    }
}
