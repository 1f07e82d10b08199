//! Every way to attach sees the same: kernels differ in which of them they have.

use std::collections::{BTreeMap, HashSet};

use crate::{
    stacks::check_stacks,
    support::{
        capture::{Capture, Recorded, record, record_command},
        interpreters::{Id, Interpreter, find},
        records::sent_stacks,
        run::run,
    },
    truth::check_live_at_exit,
};

const KINDS: [&str; 3] = ["session", "multi", "per-point"];

fn record_with(interpreter: &Interpreter, kind: &str, workload: &str) -> Recorded {
    record(interpreter, workload, &["--links", kind], &[])
}

/// Blocks made at each line of the workload's own file.
fn by_line(recorded: &Recorded) -> BTreeMap<u64, u64> {
    let file = &recorded.expected.first().expect("it is one process").file;
    let table = recorded.capture.report("table", &["--by", "line"]);
    let rows = table["rows"].as_array().expect("a table has rows");
    let own = rows.iter().filter(|row| row["file"] == file.as_str());
    own.filter_map(|row| Some((row["line"].as_u64()?, row["own_count"].as_u64()?)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn total(recorded: &Recorded) -> u64 {
    let stats = recorded.capture.report("stats", &[]);
    stats["total_allocations"].as_u64().expect("a count")
}

#[track_caller]
fn assert_same(interpreter: &Interpreter, workload: &str) {
    let recorded = record_with(interpreter, KINDS[0], workload);
    let (first, first_total) = (by_line(&recorded), total(&recorded));
    assert!(
        first_total > 0 && !first.is_empty(),
        "nothing to compare: {first:?}"
    );
    for kind in &KINDS[1..] {
        let recorded = record_with(interpreter, kind, workload);
        let (other, other_total) = (by_line(&recorded), total(&recorded));
        assert!(
            first_total.abs_diff(other_total) <= first_total / 100 + 3,
            "{first_total} blocks by {} links, {other_total} by {kind} links",
            KINDS[0]
        );
        let differing: Vec<_> = first
            .keys()
            .chain(other.keys())
            .map(|line| (line, first.get(line).unwrap_or(&0), other.get(line).unwrap_or(&0)))
            .filter(|(_, first, other)| first.abs_diff(**other) > (*first / 100).max(3))
            .collect();
        assert!(
            differing.is_empty(),
            "lines with blocks by {} and {kind} links: {differing:?}",
            KINDS[0]
        );
    }
}

#[test]
fn stacks_are_right_with_every_kind_of_link() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    for kind in KINDS {
        let recorded = record_with(&interpreter, kind, "plain_calls.py");
        let (counts, bytes) = (recorded.capture.stacks("count"), recorded.capture.stacks("bytes"));
        for expected in &recorded.expected {
            check_stacks(&counts, &bytes, expected);
        }
    }
}

#[test]
fn the_live_set_is_right_with_every_kind_of_link() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    for kind in KINDS {
        check_live_at_exit(&interpreter, &["--links", kind]);
    }
}

#[test]
fn an_inlined_build_shows_the_same_with_every_kind_of_link() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    assert_same(&interpreter, "plain_calls.py");
    assert_same(&interpreter, "truth.py");
}

/// What `--empty` is for: the cost of a trap is what a program takes longer, so it has to do the same.
#[test]
fn empty_programs_leave_the_command_alone() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let code =
        "import sys; print(sum(map(len, map(str, range(1000))))); sys.stderr.write('to err\\n'); sys.exit(7)";
    let capture = Capture::new();
    let mut command = record_command(&interpreter, &capture, &["--empty"]);
    let ran = run(command.args(["-S", "-c", code])).expect_code(7);
    let ran = ran.expect_stderr("to err\n");
    assert_eq!(ran.stdout_text(), "2890\n", "{ran}");
}

#[test]
fn where_probes_are_is_said_if_asked() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let placed = format!("{}: probes in place", interpreter.program.display());
    let said = |options: &[&str]| {
        let capture = Capture::new();
        let mut command = record_command(&interpreter, &capture, options);
        run(command.args(["-c", "pass"])).expect_code(0)
    };
    said(&["-v"]).expect_stderr(&placed);
    let quiet = said(&[]);
    assert!(!quiet.stderr.contains(&placed), "{quiet}");
}

#[test]
fn a_stack_is_sent_once() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let recorded = record(&interpreter, "few_stacks.py", &[], &[]);
    let expected = recorded.expected.first().expect("it is one process");
    let counts = recorded.capture.stacks("count");
    check_stacks(&counts, &recorded.capture.stacks("bytes"), expected);
    let mut sent = sent_stacks(&recorded.capture.path);
    sent.retain(|stack| stack.pid == expected.pid);
    let depth = usize::try_from(expected.number("depth")).expect("a small number");
    let total = sent.len();
    let ids: HashSet<u64> = sent.iter().map(|stack| stack.id).collect();
    assert_eq!(total, ids.len(), "some stacks were sent more than once");
    // The module itself, and the last call: no code object dies there, so that a stack keeps its id.
    let deep: Vec<_> = sent
        .iter()
        .filter(|stack| stack.frames.len() == depth + 2)
        .map(|stack| &stack.frames)
        .collect();
    let distinct: HashSet<_> = deep.iter().collect();
    assert!(
        !deep.is_empty() && deep.len() == distinct.len(),
        "{} deep stacks were sent {} times",
        distinct.len(),
        deep.len()
    );
    let blocks: u64 = counts.iter().map(|stack| stack.value).sum();
    assert!(
        total as u64 * 2 < blocks,
        "{total} stacks were sent for {blocks} blocks"
    );
}
