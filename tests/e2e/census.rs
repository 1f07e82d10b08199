//! A program that knows how many blocks of which size each of its lines made, and what is left of them.
//!
//! On the distributions' builds this is what the sites in inlined copies are for: function probes see some
//! percent of it.

use std::collections::HashMap;

use serde::Deserialize;

use crate::{
    matrix::on_every_interpreter,
    support::{arenas::right_but_for_a_leaf, capture::record, interpreters::Interpreter},
};

/// What the lines of one case made.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    lines: Vec<u64>,
    /// Allocations, unless they depend on how something grows.
    blocks: Option<u64>,
    bytes: Option<u64>,
    live_blocks: u64,
    live_bytes: Option<u64>,
}

/// Of one line: allocations, their bytes, live blocks, their bytes.
type Seen = [u64; 4];

on_every_interpreter!(counted, check_counted);

pub(crate) fn check_counted(interpreter: &Interpreter) {
    let recorded = record(interpreter, "census.py", &[], &[]);
    let mut expected = recorded.expected;
    let cases: Vec<Case> = serde_json::from_value(expected[0].more.remove("cases").unwrap_or_default())
        .expect("the program's figures are cases");
    assert!(cases.len() >= 16, "too few cases for a test: {cases:?}");
    let table = recorded.capture.report("table", &["--by", "line"]);
    let mut lines: HashMap<u64, Seen> = HashMap::new();
    for row in table["rows"].as_array().expect("a table has rows") {
        if row["file"] == expected[0].file.as_str() {
            let line = lines.entry(row["line"].as_u64().unwrap_or(0)).or_default();
            for (sum, key) in line
                .iter_mut()
                .zip(["own_count", "own_bytes", "live_count", "live_bytes"])
            {
                *sum += row[key].as_u64().expect("a number");
            }
        }
    }
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let mut seen = Seen::default();
            for line in &case.lines {
                for (sum, of_line) in seen.iter_mut().zip(lines.get(line).copied().unwrap_or_default()) {
                    *sum += of_line;
                }
            }
            let [blocks, bytes, live_blocks, live_bytes] = seen;
            let freed = case.blocks.map(|blocks| blocks - case.live_blocks);
            let right = case.blocks.is_none_or(|truth| within(blocks, truth))
                && case.bytes.is_none_or(|truth| bytes_within(bytes, truth))
                && within(live_blocks, case.live_blocks)
                && case
                    .live_bytes
                    .is_none_or(|truth| bytes_within(live_bytes, truth))
                && freed.is_none_or(|truth| within(blocks.saturating_sub(live_blocks), truth));
            (!right).then(|| format!("{}: {case:?}, but pyrobe says {seen:?}", case.name))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} cases differ:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

/// Within 0.5% of the truth. The free lists of some types give a few objects that pass no allocator, libc's blocks are a
/// few bytes larger than asked for: both stay below it.
fn within(seen: u64, truth: u64) -> bool {
    seen.abs_diff(truth) * 200 <= truth
}

/// The same for bytes, of which the allocator may have taken some for itself.
fn bytes_within(seen: u64, truth: u64) -> bool {
    right_but_for_a_leaf(seen, |seen| within(seen, truth))
}
