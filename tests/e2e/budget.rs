//! Heap mode at a cost that production bears: what is traced a part of the time only.

use crate::{
    heap::{BESIDE_CHURN, Holding, check_leak_of, holding, number, within},
    held::{check_shares_as_far_as_known, check_shares_of, check_sum},
    matrix::{on_interpreters, on_interpreters_alone},
    support::interpreters::{Id, Interpreter, find},
};

on_interpreters! { a_leak_beside_churn, check_leak,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_314: Id::Sid(14),
}

/// Most acquisitions are not traced, and thirty times as many blocks are dropped as stay.
fn check_leak(interpreter: &Interpreter) {
    let holding = holding(interpreter, "heap_leak.py", &[], &BESIDE_CHURN);
    check_leak_of(&holding);
    check_lines(&holding, &["leak"], 6);
}

/// What lines hold, give or take so many percent of the whole.
#[track_caller]
fn check_lines(holding: &Holding, marks: &[&str], percent: u64) {
    let table = holding.capture.report("table", &["--view", "in-use"]);
    let all = holding.whole("allocators", "total");
    for mark in marks {
        let line = holding.line(mark);
        let seen = holding.seen(&table, line.number);
        assert!(
            within(seen, line.bytes, all, percent),
            "{mark}: {} held, {seen} seen of {all}\n{table:#}",
            line.bytes
        );
    }
}

/// So much time that large blocks are looked at a few times while the cache of such fills up.
pub(crate) fn check_large_beside_churn(interpreter: &Interpreter) {
    let arguments = ["--rate", "60", "--churn", "30", "--seconds", "60"];
    let holding = holding(interpreter, "heap_leak.py", &[], &arguments);
    check_leak_of(&holding);
    check_lines(&holding, &["leak", "pages"], 6);
}

on_interpreters! { mappings_of_a_gap, check_mappings,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_314: Id::Sid(14),
}

/// Blocks that are mappings of their own are known, each of them, though large blocks are not traced while they are made and grow. (One
/// page in four is looked at when it is touched: what else lies in the region is estimated. One block is five times the bound.)
fn check_mappings(interpreter: &Interpreter) {
    let holding = holding(interpreter, "heap_mapped.py", &[], &[]);
    let stats = holding.capture.report("stats", &[]);
    assert_eq!(stats["processes"][0]["partial"], true, "{stats:#}");
    let table = holding.capture.report("table", &["--view", "in-use"]);
    for mark in ["kept", "growing"] {
        let line = holding.line(mark);
        let seen = holding.seen(&table, line.number) + holding.untouched(&table, line.number);
        assert!(
            seen.abs_diff(line.bytes) <= line.bytes / 200,
            "{mark}: {} held, {seen} seen\n{table:#}",
            line.bytes
        );
    }
}

/// A program that takes a minute to fill its caches, as one that serves does: by the default budget, with large blocks traced a part of the
/// time, every line is known within three points.
pub(crate) fn check_shares_of_a_minute(interpreter: &Interpreter) {
    check_shares_at_a_pace(interpreter, "100");
}

/// The same of so many megabytes.
pub(crate) fn check_shares_at_a_pace(interpreter: &Interpreter, size: &str) {
    let arguments = ["--size", size, "--churn", "500", "--pause", "1", "--seconds", "1"];
    let holding = holding(interpreter, "heap_shares.py", &[], &arguments);
    check_shares_of(&holding);
    let stats = holding.capture.report("stats", &[]);
    assert_eq!(stats["processes"][0]["partial"], true, "{stats:#}");
}

/// Caches whose entries are all replaced three times in a minute, by each other's blocks: by the default budget, which allows a short
/// look or two at small blocks in that time, every line is known within three points.
pub(crate) fn check_caches_of_a_minute(interpreter: &Interpreter) {
    let arguments = ["--size", "60", "--turns", "3", "--pause", "0.25"];
    check_shares_of(&holding(interpreter, "heap_cache.py", &[], &arguments));
}

/// The same fourteen times: one look may see none of it, or too little. Who has what is known as far as they tell, and nobody has what is
/// not.
pub(crate) fn check_fast_caches_of_a_minute(interpreter: &Interpreter) {
    let arguments = ["--size", "60", "--turns", "14", "--pause", "0.05"];
    check_shares_as_far_as_known(&holding(interpreter, "heap_cache.py", &[], &arguments));
}

/// More large blocks than are looked at, in more of a heap than can be counted, and then so many more that they are not traced for a time:
/// a report says what was left out.
#[test]
fn what_is_too_much_is_said() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let holding = holding(
        &interpreter,
        "heap_large.py",
        // So much that all that stay are seen, and not all that come and go.
        &["--max-overhead", "90"],
        &["--keep", "300", "--seconds", "4"],
    );
    let notes = holding.capture.report("stats", &[])["notes"].to_string();
    for said in [
        "large blocks: over --max-overhead",
        "large blocks were too many to be read while frees are not traced",
        "1 processes have more of libc's heap than can be counted",
    ] {
        assert!(notes.contains(said), "no `{said}` in {notes}");
    }
    // Nothing is lost of what was seen, though.
    check_lines(&holding, &["keep"], 6);
    let table = holding.capture.report("table", &["--view", "in-use"]);
    check_sum(&holding, &table, &holding.heap());
}

on_interpreters_alone! { what_libc_has_free, check_free,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_314: Id::Sid(14),
}

/// Caches whose tables were replaced by larger ones leave a heap of which a third is free, whoever touched it first.
fn check_free(interpreter: &Interpreter) {
    let holding = holding(
        interpreter,
        "heap_cache.py",
        &[],
        &["--size", "100", "--turns", "3"],
    );
    let table = holding.capture.report("table", &["--view", "in-use"]);
    let heap = holding.heap();
    let (anonymous, all) = (number(&heap, "anonymous"), holding.whole("allocators", "total"));
    let (free, truly_free) = (number(&heap, "pools_free"), anonymous.saturating_sub(all));
    assert!(truly_free * 10 > anonymous, "{truly_free} of {anonymous}");
    assert!(
        within(free, truly_free, anonymous, 5),
        "{truly_free} are free, {free} seen: {heap:#}\n{table:#}"
    );
    check_sum(&holding, &table, &heap);
}
