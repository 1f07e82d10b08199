//! The live set at exit against tracemalloc's, line by line, for the same program with the same hashes.
//!
//! Two runs, because tracemalloc takes memory of its own from the allocator that pyrobe watches.

use std::collections::HashMap;

use serde::Deserialize;

use crate::{
    matrix::on_every_interpreter,
    support::{
        capture::{Capture, record_command},
        expected,
        interpreters::Interpreter,
        run::run,
    },
};

/// What is alive that one line made.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Alive {
    line: u64,
    count: u64,
    bytes: u64,
}

on_every_interpreter!(live_at_exit, |interpreter: &Interpreter| check_live_at_exit(
    interpreter,
    &[]
));

/// Checks a recording with these options.
pub(crate) fn check_live_at_exit(interpreter: &Interpreter, options: &[&str]) {
    let script = interpreter.script("truth.py");
    let mut traced = interpreter.command();
    traced.args(["-X", "tracemalloc=1"]).arg(&script.path);
    let traced = run(&mut traced).expect_code(0);
    let mut truth = expected::parse(&traced.stdout_text()).remove(0).more;
    let capture = Capture::new();
    let recorded = run(record_command(interpreter, &capture, options).arg(&script.path)).expect_code(0);
    let expected = expected::parse(&recorded.stdout_text()).remove(0);
    let lines: Vec<Alive> = serde_json::from_value(truth.remove("lines").unwrap_or_default())
        .expect("tracemalloc's figures are lines");
    assert!(
        lines.len() > 20,
        "tracemalloc says too little for a test: {lines:?}"
    );

    let table = capture.report("table", &["--by", "line"]);
    let mut seen: HashMap<u64, (u64, u64)> = HashMap::new();
    for row in table["rows"].as_array().expect("a table has rows") {
        if row["file"] == expected.file.as_str() {
            let live = seen.entry(row["line"].as_u64().unwrap_or(0)).or_default();
            live.0 += row["live_count"].as_u64().expect("a count");
            live.1 += row["live_bytes"].as_u64().expect("a size");
        }
    }
    let wrong: Vec<String> = lines
        .iter()
        .filter_map(|truth| {
            let (count, bytes) = seen.get(&truth.line).copied().unwrap_or_default();
            let right = within(count, truth.count, 2) && within(bytes, truth.bytes, 512);
            (!right).then(|| format!("{truth:?}, but pyrobe says {count} blocks of {bytes} bytes"))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} lines differ:\n{}",
        wrong.len(),
        lines.len(),
        wrong.join("\n")
    );

    let sum = |of: fn(&Alive) -> u64| lines.iter().map(of).sum::<u64>();
    let of_lines = |index: fn(&(u64, u64)) -> u64| -> u64 {
        lines
            .iter()
            .filter_map(|truth| seen.get(&truth.line))
            .map(index)
            .sum()
    };
    assert!(
        within(of_lines(|live| live.0), sum(|truth| truth.count), 0),
        "the sums of blocks differ"
    );
    assert!(
        within(of_lines(|live| live.1), sum(|truth| truth.bytes), 0),
        "the sums of bytes differ"
    );
}

/// Whether a figure is within 1% of the truth, or within `slack` of it. The slack is for what an interpreter makes once
/// and uses again: up to 3.10 the frame of a function is new to tracemalloc at each call.
fn within(seen: u64, truth: u64, slack: u64) -> bool {
    seen.abs_diff(truth) <= (truth / 100).max(slack)
}
