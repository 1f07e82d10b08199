//! What reports say of programs that know what their lines hold, held against that.
//!
//! Apart from the tests, of which many end with this.

use serde_json::Value;

use crate::heap::{Holding, Line, number, special, within};

/// Each line that holds over 5%, what others are shown with, the sum of the allocators and that of the process.
#[track_caller]
pub(crate) fn check_shares_of(holding: &Holding) -> Value {
    let table = holding.capture.report("table", &["--view", "in-use"]);
    check_lines(holding, &table);
    check_sums(holding, &table);
    table
}

/// The same where the short looks are too few: what lines are short of stands as refilled by nobody knows whom, and no line has it.
#[track_caller]
pub(crate) fn check_shares_as_far_as_known(holding: &Holding) {
    let table = holding.capture.report("table", &["--view", "in-use"]);
    check_lines_but(holding, &table, special(&table, "[refilled pools]"));
    check_sums(holding, &table);
}

/// Each line that holds over 5%, and what others are shown with.
#[track_caller]
pub(crate) fn check_lines(holding: &Holding, table: &Value) {
    check_lines_but(holding, table, 0);
}

/// The same, of which so many bytes may be missing.
#[track_caller]
fn check_lines_but(holding: &Holding, table: &Value, open: u64) {
    let all = holding.whole("allocators", "total");
    let lines = holding.lines();
    assert!(
        lines.iter().any(|line| line.bytes * 20 > all),
        "no line holds much"
    );
    let seen = lines.iter().map(|line| (line, holding.seen(table, line.number)));
    let missing: u64 = seen
        .clone()
        .map(|(line, seen)| line.bytes.saturating_sub(seen))
        .sum();
    let is_open = open > 0 && missing.saturating_sub(open) * 100 <= all * 3;
    // One that holds little may be missing, as two that take turns are confused, but not stand for others.
    let is_right = |line: &Line, seen: u64| {
        within(seen, line.bytes, all, 3) || (is_open || line.bytes * 20 <= all) && seen <= line.bytes
    };
    let (right, wrong): (Vec<_>, Vec<_>) = seen.partition(|(line, seen)| is_right(line, *seen));
    let told = |lines: &[(&Line, u64)]| {
        let told = lines
            .iter()
            .map(|(line, seen)| format!("{}: {} held, {seen} seen", line.mark, line.bytes));
        told.collect::<Vec<_>>().join("\n")
    };
    assert!(
        wrong.is_empty() && !right.is_empty(),
        "{table:#}\nof {all} bytes:\n{}\nright:\n{}",
        told(&wrong),
        told(&right)
    );
    for (number, seen) in holding.of_other_lines(table) {
        assert!(
            within(seen, 0, all, 3),
            "{table:#}\nline {number} holds nothing, seen are {seen} of {all} bytes"
        );
    }
}

/// The sum of what the allocators hold, of large blocks those included that others stand for, and that of the process.
#[track_caller]
fn check_sums(holding: &Holding, table: &Value) {
    let (all, heap) = (holding.whole("allocators", "total"), holding.heap());
    let large = number(&heap, "large") + number(&heap, "large_unseen");
    let seen = number(&heap, "pools_in_use") + large;
    assert!(within(seen, all, all, 5), "the allocators hold {all}: {heap:#}");
    check_sum(holding, table, &heap);
}

/// The rows add up to the process's anonymous resident memory, by the kernel's count.
pub(crate) fn check_sum(holding: &Holding, table: &Value, heap: &Value) {
    let anonymous = number(heap, "anonymous");
    let bytes = |row: &Value| row["live_bytes"].as_u64().unwrap_or(0);
    let sum: u64 = holding.rows(table).map(bytes).sum();
    assert!(within(sum, anonymous, anonymous, 5), "{sum} in rows: {heap:#}");
    // The program's root may have no /proc to ask.
    if let Some(resident) = holding.expected.more["resident"]["anonymous"].as_u64() {
        assert!(
            within(sum, resident, resident, 5),
            "{sum} in rows, {resident} resident: {heap:#}"
        );
    }
}
