//! Right stacks with right lines: every kind of Python code, on every interpreter.
//!
//! On builds with one copy of each allocator function, every stack that the workload says it made must be
//! there with its blocks and bytes. On builds with inlined copies, function probes see a part: what they see must
//! be right, and the coverage must say that it is a part.

use crate::{
    matrix::on_every_interpreter,
    support::{
        arenas::right_but_for_a_leaf,
        capture::{Recorded, record},
        collapsed::{self, Stack},
        expected::{Expected, ExpectedFrame},
        interpreters::Interpreter,
    },
};

/// Frames that a stack keeps at least.
const KEPT_FRAMES: usize = 256;

macro_rules! workload {
    ($name:ident) => {
        on_every_interpreter!($name, |interpreter: &Interpreter| {
            check(interpreter, concat!(stringify!($name), ".py"));
        });
    };
}

workload!(plain_calls);
workload!(methods);
workload!(nested_functions);
workload!(lambdas);
workload!(comprehensions);
workload!(generators);
workload!(async_tasks);
workload!(decorators);
workload!(callbacks_from_c);
workload!(threads);
workload!(subinterpreters);
workload!(fork);
workload!(multiprocessing_fork);
workload!(multiprocessing_spawn);
workload!(subprocess_child);
workload!(exec_self);
on_every_interpreter!(exec_reuse, check_exec_reuse);
on_every_interpreter!(recursion, check_recursion);
on_every_interpreter!(without_gil, check_without_gil);

pub(crate) fn check(interpreter: &Interpreter, workload: &str) -> Recorded {
    let recorded = record(interpreter, workload, &[], &[]);
    check_recorded(&recorded);
    recorded
}

fn check_recorded(recorded: &Recorded) {
    let (counts, bytes) = (recorded.capture.stacks("count"), recorded.capture.stacks("bytes"));
    let table = recorded.capture.report("table", &[]);
    let covered = table["coverage"]["percent"]
        .as_f64()
        .expect("the coverage is known");
    for expected in &recorded.expected {
        check_places(&counts, expected);
        assert!(
            counts.iter().any(|stack| stack.pid == expected.pid),
            "nothing was seen of process {}\n{}",
            expected.pid,
            recorded.run
        );
        check_stacks(&counts, &bytes, expected);
    }
    assert!((covered - 100.0).abs() < f64::EPSILON, "coverage is {covered}%");
    assert_eq!(
        table["losses"]["total"], 0,
        "something was lost: {}",
        table["losses"]
    );
}

/// Every function and line that was seen in the workload's file is one that the file has.
fn check_places(stacks: &[Stack], expected: &Expected) {
    for stack in stacks.iter().filter(|stack| stack.pid == expected.pid) {
        for frame in &stack.frames {
            if frame.file.as_deref() != Some(&expected.file) {
                continue;
            }
            let right = expected.places.iter().any(|place| {
                place.function == frame.function && frame.line.is_none_or(|line| place.lines.contains(&line))
            });
            assert!(right, "no such place in the file: {frame:?} in {stack:?}");
        }
    }
}

/// Every stack that the workload made is there, with its blocks and bytes within 1% (and 3 blocks).
pub(crate) fn check_stacks(counts: &[Stack], bytes: &[Stack], expected: &Expected) {
    for wanted in &expected.stacks {
        let count = collapsed::sum(counts, expected.pid, &wanted.frames);
        let size = collapsed::sum(bytes, expected.pid, &wanted.frames);
        let slack = wanted.count / 100 + 3;
        assert!(
            count.abs_diff(wanted.count) <= slack,
            "{count} blocks instead of {} at {:?}\n{}",
            wanted.count,
            wanted.frames,
            near(counts, expected.pid, &wanted.frames)
        );
        let slack = wanted.bytes / 100 + 3 * wanted.bytes / wanted.count;
        assert!(
            right_but_for_a_leaf(size, |size| size.abs_diff(wanted.bytes) <= slack),
            "{size} bytes instead of {} at {:?}",
            wanted.bytes,
            wanted.frames
        );
    }
}

/// What was seen at the same leaf, for the message of a failure.
fn near(stacks: &[Stack], pid: u32, frames: &[ExpectedFrame]) -> String {
    let same_leaf = |stack: &&Stack| {
        let leaf = stack.frames.last().map(|frame| &frame.function);
        stack.pid == pid && leaf == frames.last().map(|frame| &frame.function)
    };
    let lines: Vec<String> = stacks
        .iter()
        .filter(same_leaf)
        .take(5)
        .map(|stack| format!("{stack:?}"))
        .collect();
    format!("seen with this leaf function: {}", lines.join("\n"))
}

pub(crate) fn check_exec_reuse(interpreter: &Interpreter) {
    let recorded = check(interpreter, "exec_reuse.py");
    let expected = recorded.expected.first().expect("it is one process");
    assert!(
        expected.number("reused") > 100,
        "the workload did not reuse addresses, so it tested nothing: {:?}",
        expected.more
    );
    // A generated function has one place, whatever the build: its name, file and line belong together.
    for stack in recorded.capture.stacks("count") {
        for frame in &stack.frames {
            let Some(generation) = frame.function.strip_prefix("made_") else {
                continue;
            };
            let generation: u32 = generation.parse().expect("generated names end with a number");
            assert_eq!(
                frame.file,
                Some(format!("<generated {generation}>")),
                "in {stack:?}"
            );
            let lines = generation + 2..=generation + 4;
            assert!(
                frame.line.is_none_or(|line| lines.contains(&line)),
                "{frame:?} in {stack:?}"
            );
        }
    }
}

pub(crate) fn check_recursion(interpreter: &Interpreter) {
    let recorded = check(interpreter, "recursion.py");
    let stacks = recorded.capture.stacks("count");
    let deep: Vec<&Stack> = stacks
        .iter()
        .filter(|stack| stack.frames.iter().any(|frame| frame.function == "leaf"))
        .collect();
    assert!(!deep.is_empty(), "the leaf of the recursion was not seen");
    for stack in deep {
        let first = stack.frames.first().map(|frame| frame.function.as_str());
        assert_eq!(
            first,
            Some("[truncated]"),
            "a stack that is cut says so at its root: {stack:?}"
        );
        assert!(
            stack.frames.len() > KEPT_FRAMES,
            "only {} frames were kept",
            stack.frames.len()
        );
    }
}

pub(crate) fn check_without_gil(interpreter: &Interpreter) {
    let recorded = check(interpreter, "without_gil.py");
    let expected = recorded.expected.first().expect("it is one process");
    let (inflate, bystander) = (expected.frame("inflate"), expected.frame("bystander"));
    let counts = recorded.capture.stacks("count");
    let bytes = recorded.capture.stacks("bytes");
    for of_bystander in bytes
        .iter()
        .filter(|stack| stack.ends_with(std::slice::from_ref(&bystander)))
    {
        let count: u64 = counts
            .iter()
            .filter(|stack| stack.frames == of_bystander.frames)
            .map(|stack| stack.value)
            .sum();
        let mean = of_bystander.value / count.max(1);
        assert!(
            mean < 1024,
            "a thread without the GIL was taken for the bystander: {of_bystander:?}"
        );
    }
    let of_inflate = collapsed::sum(&bytes, expected.pid, &[inflate]);
    let of_nobody: u64 = bytes
        .iter()
        .filter(|stack| stack.has_special("[no Python frame]"))
        .map(|stack| stack.value)
        .sum();
    let made = expected.number("count") * expected.number("window");
    assert!(
        of_inflate + of_nobody >= made,
        "{made} bytes were made without the GIL, but {of_inflate} + {of_nobody} were seen"
    );
}
