//! Processes that come and go: short-lived ones from their first allocation, exec into another interpreter.

use std::{collections::HashMap, process::Command};

use rustix::process::Pid;
use serde_json::Value;

use crate::support::{
    capture::{Capture, record},
    collapsed,
    expected::{self, ExpectedFrame},
    interpreters::{Id, Interpreter, find, set_environment},
    recording::Recording,
    run::{finish, pyrobe, run},
    target::Target,
};

/// Runs of `python -c` in a row.
const RUNS: usize = 200;
/// Blocks that each of them makes.
const BLOCKS: u64 = 100;
/// What each of them runs: nothing of the site packages, so that a run is short.
const CODE: &str = "kept = [None] * 100\nfor i in range(100): kept[i] = 'x' * (100 + i)";

pub(crate) fn short_run(interpreter: &Interpreter) -> Vec<std::ffi::OsString> {
    let mut line = interpreter.command_line();
    line.extend(["-S", "-c", CODE].map(Into::into));
    line
}

pub(crate) fn by_pid(stats: &Value) -> HashMap<u32, Value> {
    let processes = stats["processes"].as_array().expect("a list of processes");
    processes
        .iter()
        .map(|process| {
            let pid = process["pid"].as_u64().expect("a process id");
            (
                u32::try_from(pid).expect("a process id has 32 bits"),
                process.clone(),
            )
        })
        .collect()
}

/// All that a whole run allocates, recorded by a `record -- COMMAND`, which has no race.
pub(crate) fn whole_run(interpreter: &Interpreter) -> u64 {
    let capture = Capture::new();
    let mut command = pyrobe(["record", "--mode", "allocs", "-o"]);
    command.arg(&capture.path).arg("--").args(short_run(interpreter));
    set_environment(&mut command);
    run(&mut command).expect_code(0);
    let stats = capture.report("stats", &[]);
    stats["total_allocations"].as_u64().expect("a count")
}

#[test]
fn each_of_200_short_lived_processes_is_recorded_from_its_first_allocation() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let whole = whole_run(&interpreter);
    let capture = Capture::new();
    let recording = Recording::start(pyrobe(["record", "--mode", "allocs", "-o"]).arg(&capture.path));
    let line = short_run(&interpreter);
    let pids: Vec<u32> = (0..RUNS)
        .map(|_| {
            let mut command = Command::new(line.first().expect("a program"));
            command.args(line.iter().skip(1));
            set_environment(&mut command);
            let child = command.spawn().expect("python can be started");
            let pid = Pid::from_child(&child).as_raw_nonzero().get().cast_unsigned();
            finish(format!("{command:?}"), child).expect_code(0);
            pid
        })
        .collect();
    recording.stop().expect_code(0);

    let processes = by_pid(&capture.report("stats", &[]));
    let counts = capture.stacks("count");
    let frame = ExpectedFrame {
        function: "<module>".to_owned(),
        file: Some("<string>".to_owned()),
        line: 2,
    };
    for pid in pids {
        let process = processes
            .get(&pid)
            .unwrap_or_else(|| panic!("process {pid} is not in the capture"));
        let all = process["total_allocations"].as_u64().expect("a count");
        assert!(
            all.abs_diff(whole) <= whole / 100,
            "process {pid} made {all} allocations, but a whole run makes {whole}"
        );
        let own = collapsed::sum(&counts, pid, std::slice::from_ref(&frame));
        assert!(
            (BLOCKS..BLOCKS + 10).contains(&own),
            "process {pid} made {own} blocks instead of {BLOCKS}"
        );
    }
}

#[test]
fn the_programs_in_the_kernel_say_what_they_do_if_asked() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let loud = record(&interpreter, "fork.py", &["-v"], &[]);
    for words in ["is treated like its parent", "is gone"] {
        assert!(loud.run.stderr.contains(words), "{}", loud.run);
    }
    let quiet = record(&interpreter, "fork.py", &[], &[]);
    assert!(!quiet.run.stderr.contains("is gone"), "{}", quiet.run);
}

#[test]
fn a_process_that_becomes_another_interpreter_is_followed() {
    let (Some(first), Some(second)) = (find(Id::Pyenv(11)), find(Id::Pyenv(13))) else {
        return;
    };
    // What runs when the recording starts is attached from then on, for every process to come.
    let known = [Target::start(&first), Target::start(&second)];
    let script = first.script("exec_self.py");
    let capture = Capture::new();
    let recording = Recording::start(pyrobe(["record", "--mode", "allocs", "-o"]).arg(&capture.path));
    let ran = run(first.command().arg(&script.path).arg(&second.program)).expect_code(0);
    recording.stop().expect_code(0);
    known.into_iter().for_each(Target::finish);

    let expected = expected::parse(&ran.stdout_text());
    let pid = expected.first().expect("it said what it made").pid;
    let stats = capture.report("stats", &[]);
    let pythons: Vec<&str> = stats["processes"]
        .as_array()
        .expect("a list of processes")
        .iter()
        .filter(|process| process["pid"] == pid)
        .filter_map(|process| process["python"].as_str())
        .collect();
    assert!(
        pythons.len() == 2 && pythons[0].starts_with("3.11.") && pythons[1].starts_with("3.13."),
        "two programs of one process, in order: {pythons:?}"
    );
    let counts = capture.stacks("count");
    for stack in expected.iter().flat_map(|process| &process.stacks) {
        let seen = collapsed::sum(&counts, pid, &stack.frames);
        assert!(
            seen.abs_diff(stack.count) <= 3,
            "{seen} blocks instead of {stack:?}"
        );
    }
}

#[test]
fn the_gap_before_an_unknown_interpreter_is_attached_is_told() {
    let (Some(first), Some(second)) = (find(Id::Pyenv(11)), find(Id::Pyenv(13))) else {
        return;
    };
    let second = second.program.to_str().expect("its path is text").to_owned();
    // Nothing knows of the second interpreter before the first one becomes it.
    let recorded = record(&first, "exec_self.py", &[], &[&second]);
    let stats = recorded.capture.report("stats", &[]);
    let images = stats["coverage"]["images"].as_array().expect("a list of images");
    let late = images.iter().find(|image| {
        image["python"]
            .as_str()
            .is_some_and(|python| python.starts_with("3.13."))
    });
    let gap = late.and_then(|image| image["attach_gap_ns"].as_u64());
    assert!(
        gap > Some(0),
        "nothing says what was missed: {}",
        stats["coverage"]
    );
}
