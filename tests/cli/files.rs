//! What `record` does with its output file and the command's streams.

use std::fs;

use crate::support::{
    capture::{Capture, record_command},
    interpreters::{Id, find},
    run::{Run, pyrobe, run},
};

/// Records `python -c CODE` with these options before the command.
#[track_caller]
fn record(capture: &Capture, options: &[&str], code: &str) -> Option<Run> {
    let interpreter = find(Id::Pyenv(12))?;
    Some(run(
        record_command(&interpreter, capture, options).args(["-S", "-c", code])
    ))
}

#[test]
fn a_file_that_exists_is_not_overwritten_without_force() {
    let capture = Capture::new();
    fs::write(&capture.path, "precious").expect("a file can be written");
    let Some(run) = record(&capture, &[], "print('ran')") else {
        return;
    };
    let run = run.expect_code(2).expect_error_with_hint().expect_stderr("-f");
    assert_eq!(run.stdout_text(), "", "the command was not run\n{run}");
    assert_eq!(fs::read(&capture.path).expect("the file is there"), b"precious");

    let Some(run) = record(&capture, &["-f"], "print('ran')") else {
        return;
    };
    run.expect_code(0);
    capture.report("stats", &[]);
}

#[test]
fn a_report_does_not_overwrite_either() {
    let capture = Capture::new();
    let Some(run) = record(&capture, &[], "pass") else {
        return;
    };
    run.expect_code(0);
    let svg = capture.path.with_extension("svg");
    fs::write(&svg, "precious").expect("a file can be written");
    let out = svg.to_str().expect("a path in the temporary directory is text");
    capture
        .run(&["report", "flamegraph"], &["-o", out])
        .expect_code(2)
        .expect_error_with_hint();
    assert_eq!(fs::read(&svg).expect("the file is there"), b"precious");
    capture
        .run(&["report", "flamegraph"], &["-f", "-o", out])
        .expect_code(0);
    assert!(
        fs::read_to_string(&svg)
            .expect("the file is there")
            .contains("<svg")
    );
}

#[test]
fn a_command_that_cannot_be_started_is_an_error_and_leaves_no_file() {
    if find(Id::Debian311).is_none() {
        return;
    }
    let capture = Capture::new();
    let mut command = pyrobe(["record", "-o"]);
    command.arg(&capture.path).args(["--", "/no/such/program"]);
    run(&mut command)
        .expect_code(2)
        .expect_error_with_hint()
        .expect_stderr("/no/such/program");
    assert!(!capture.path.exists(), "an empty capture was left behind");
}

#[test]
fn the_streams_of_the_command_are_passed_through() {
    let capture = Capture::new();
    let code = "import sys; sys.stdout.write('to out'); sys.stderr.write('to err\\n')";
    let Some(run) = record(&capture, &[], code) else {
        return;
    };
    let run = run.expect_code(0).expect_stderr("to err\n");
    assert_eq!(
        run.stdout_text(),
        "to out",
        "standard output is the command's alone\n{run}"
    );
}

#[test]
fn a_command_killed_by_a_signal_gives_the_exit_code_of_a_shell() {
    let capture = Capture::new();
    let Some(run) = record(&capture, &[], "import os; os.kill(os.getpid(), 15)") else {
        return;
    };
    run.expect_code(128 + 15);
}

#[test]
fn a_recording_in_a_pipe_shows_no_progress() {
    let capture = Capture::new();
    let Some(run) = record(&capture, &[], "pass") else {
        return;
    };
    let run = run.expect_code(0);
    let drawn = run.stderr.contains('\r') || run.stderr.contains('\u{1b}');
    assert!(
        !drawn,
        "standard error is no terminal, but something was drawn\n{run}"
    );
}
