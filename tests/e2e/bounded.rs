//! Recordings of bounded size: in several files of which each can be read by itself, and as tallies.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    matrix::on_interpreters,
    support::{
        capture::{Capture, Recorded, record},
        collapsed::{self, describe},
        interpreters::Interpreter,
        recording::Recording,
        run::{DEADLINE, pyrobe},
        target::Target,
    },
};

/// Smallest size that files of a rotation can have.
const SMALL: [&str; 2] = ["--max-size", "1M"];
const SMALL_BYTES: u64 = 1 << 20;

/// The files that a recording to this path has left, oldest first.
#[track_caller]
fn files(path: &Path) -> Vec<PathBuf> {
    let directory = path.parent().expect("a capture is in a directory");
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .expect("a directory can be read")
        .map(|entry| entry.expect("a directory can be read").path())
        .collect();
    files.sort();
    files
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// In each file what was delivered and what was lost is what was produced.
#[track_caller]
fn check_balance(stats: &Value) {
    for process in stats["processes"].as_array().expect("a list of processes") {
        let losses = stats["losses"]["processes"].as_array().expect("a list of losses");
        let losses = losses.iter().find(|losses| losses["pid"] == process["pid"]);
        for operation in ["alloc", "free", "realloc"] {
            let of = |what: &str| number(&process[what][format!("{operation}s")]);
            let reason = format!("ring_full_{operation}");
            let lost = losses.map_or(0, |losses| losses["by_reason"][&reason].as_u64().unwrap_or(0));
            assert_eq!(of("delivered") + lost, of("produced"), "{operation} of {process}");
        }
    }
}

on_interpreters! { rotation, check_rotation,
    pyenv_39: Id::Pyenv(9),
    pyenv_312: Id::Pyenv(12),
    debian_311: Id::Debian311,
}

fn check_rotation(interpreter: &Interpreter) {
    let recorded = record(
        interpreter,
        "steady.py",
        &[&SMALL[..], &["--rotate", "99"]].concat(),
        &[],
    );
    let files = files(&recorded.capture.path);
    // The rare stacks of the last lines were sent in the first.
    assert!(files.len() >= 2, "{files:?}");
    let mut stacks = Vec::new();
    let mut bytes = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let len = fs::metadata(file).expect("the file is there").len();
        assert!(len <= SMALL_BYTES, "{len} bytes in {}", file.display());
        let capture = Capture::at(file);
        let stats = capture.report("stats", &[]);
        assert_eq!(stats["truncated"], Value::Null, "{stats}");
        assert_eq!(stats["losses"]["unknown_stacks"], 0, "{}", stats["losses"]);
        check_balance(&stats);
        let text = capture.text("stats");
        assert!(text.contains(&format!("this is file {} of", index + 1)), "{text}");
        stacks.extend(capture.stacks("count"));
        bytes.extend(capture.stacks("bytes"));
    }
    check_expected(&recorded, &stacks, &bytes);
}

/// Each stack allocated what the program says.
#[track_caller]
fn check_expected(recorded: &Recorded, counts: &[collapsed::Stack], bytes: &[collapsed::Stack]) {
    for expected in &recorded.expected {
        for stack in &expected.stacks {
            let sum = |stacks| collapsed::sum(stacks, expected.pid, &stack.frames);
            let found = (sum(counts), sum(bytes));
            assert_eq!(
                found,
                (stack.count, stack.bytes),
                "{stack:?}\n{}",
                describe(counts)
            );
        }
    }
}

on_interpreters! { only_the_newest, check_only_the_newest,
    pyenv_312: Id::Pyenv(12),
}

/// Whether a file is the third one or later, and more than begun.
fn has_events(file: &Path) -> bool {
    let number = file
        .extension()
        .and_then(|number| number.to_str()?.parse::<u32>().ok());
    number.is_some_and(|number| number >= 3)
        && fs::metadata(file).is_ok_and(|found| found.len() > SMALL_BYTES / 16)
}

/// Of a recording that is killed: the file that was written then is cut, those before it are whole.
fn check_only_the_newest(interpreter: &Interpreter) {
    let mut target = Target::start(interpreter);
    let (capture, pid) = (Capture::new(), target.pid().to_string());
    let mut command = pyrobe(["record"]);
    let all = ["--max-overhead", "0", "--rotate", "2", "--pid", &pid, "-o"];
    command.args(SMALL).args(all);
    let recording = Recording::start(command.arg(&capture.path));
    // Until the third one has events, so that it is begun for good.
    while !files(&capture.path)
        .last()
        .is_some_and(|newest| has_events(newest))
    {
        target.tell("make 20000 700");
        target.tell("drop");
    }
    recording.signal(Signal::KILL);
    drop(recording);
    let files = files(&capture.path);
    assert_eq!(files.len(), 2, "{files:?}");
    for (file, whole) in files.iter().zip([true, false]) {
        let stats = Capture::at(file).report("stats", &[]);
        assert_eq!(stats["truncated"].is_null(), whole, "{}: {stats}", file.display());
        assert_eq!(stats["losses"]["unknown_stacks"], 0, "{}", stats["losses"]);
    }
    // What is there is in the way of another recording, unless it may be replaced.
    let mut again = pyrobe(["record"]);
    again
        .args(SMALL)
        .args(["--rotate", "2", "--duration", "100ms", "--pid", &pid, "-o"]);
    let again = again.arg(&capture.path);
    crate::support::run::run(again)
        .expect_code(2)
        .expect_error_with_hint();
    crate::support::run::run(again.arg("-f")).expect_code(0);
    assert_eq!(self::files(&capture.path).len(), 1);
    target.finish();
}

on_interpreters! { aggregated, check_aggregated,
    pyenv_39: Id::Pyenv(9),
    pyenv_312: Id::Pyenv(12),
    debian_311: Id::Debian311,
}

fn check_aggregated(interpreter: &Interpreter) {
    let recorded = record(interpreter, "steady.py", &["--aggregate"], &[]);
    let capture = &recorded.capture;
    assert_eq!(files(&capture.path), std::slice::from_ref(&capture.path));
    let len = fs::metadata(&capture.path).expect("the file is there").len();
    assert!(len < SMALL_BYTES, "{len}");
    let stats = capture.report("stats", &[]);
    assert_eq!(stats["truncated"], Value::Null, "{stats}");
    check_balance(&stats);
    check_expected(&recorded, &capture.stacks("count"), &capture.stacks("bytes"));
    let text = capture.text("stats");
    assert!(text.contains("holds tallies"), "{text}");
}

on_interpreters! { killed_while_aggregating, check_killed_while_aggregating,
    pyenv_312: Id::Pyenv(12),
}

fn check_killed_while_aggregating(interpreter: &Interpreter) {
    let mut target = Target::start(interpreter);
    let (capture, pid) = (Capture::new(), target.pid().to_string());
    let mut command = pyrobe([
        "record",
        "--aggregate",
        "--save-interval",
        "100ms",
        // All of them at once is more than it may cost.
        "--max-overhead",
        "0",
        "--pid",
        &pid,
        "-o",
    ]);
    let recording = Recording::start(command.arg(&capture.path));
    target.tell("make 20000 700");
    // Not before the tallies were written once more.
    let started = Instant::now();
    while number(&capture.report("stats", &[])["total_allocations"]) < 20_000 {
        assert!(started.elapsed() < DEADLINE, "the tallies are not written");
    }
    recording.signal(Signal::KILL);
    drop(recording);
    let stats = capture.report("stats", &[]);
    assert!(number(&stats["live_bytes"]) > 20_000 * 700, "{stats}");
    let why = stats["truncated"].as_str().unwrap_or_default();
    assert!(why.contains("after its start"), "{stats}");
    target.finish();
}
