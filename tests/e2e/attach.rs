//! Recording processes that run already, and two recordings at once.

use crate::{
    matrix::on_every_interpreter,
    support::{
        capture::Capture,
        collapsed,
        expected::ExpectedFrame,
        interpreters::{Id, Interpreter, find},
        recording::Recording,
        run::pyrobe,
        target::Target,
    },
};

fn record_pid(target: &Target, capture: &Capture) -> Recording {
    let pid = target.pid().to_string();
    Recording::start(pyrobe(["record", "--mode", "allocs", "--pid", &pid, "-o"]).arg(&capture.path))
}

#[track_caller]
fn assert_made(capture: &Capture, pid: u32, frame: &ExpectedFrame, count: u64) {
    let seen = collapsed::sum(&capture.stacks("count"), pid, std::slice::from_ref(frame));
    assert!(
        seen.abs_diff(count) <= count / 100 + 3,
        "{seen} blocks instead of {count}"
    );
}

on_every_interpreter!(running_process, check_running_process);

fn check_running_process(interpreter: &Interpreter) {
    let mut target = Target::start(interpreter);
    let frame = target.make_frame();
    let capture = Capture::new();
    let recording = record_pid(&target, &capture);
    target.tell("make 1000 700");
    recording.stop().expect_code(0);
    // What happens after the recording is not in it.
    target.tell("make 1000 700");
    let stats = capture.report("stats", &[]);
    assert!(
        stats["coverage"]["percent"].is_number(),
        "the coverage is known: {stats}"
    );
    assert_made(&capture, target.pid(), &frame, 1000);
    target.finish();
}

#[test]
fn only_the_named_processes_are_recorded() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let (mut named, mut other) = (Target::start(&interpreter), Target::start(&interpreter));
    let frame = named.make_frame();
    let capture = Capture::new();
    let recording = record_pid(&named, &capture);
    named.tell("make 500 100");
    other.tell("make 500 100");
    recording.stop().expect_code(0);
    assert_made(&capture, named.pid(), &frame, 500);
    assert!(
        capture
            .stacks("count")
            .iter()
            .all(|stack| stack.pid == named.pid()),
        "others were recorded too"
    );
}

/// A process that is not recorded pays for each hit, too: what that comes to is held within the same budget.
#[test]
fn who_is_not_recorded_is_spared_too() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let (named, mut other) = (Target::start(&interpreter), Target::start(&interpreter));
    let (capture, pid) = (Capture::new(), named.pid().to_string());
    let recording = Recording::start(pyrobe(["record", "--pid", &pid, "-o"]).arg(&capture.path));
    for _ in 0..20 {
        other.tell("make 20000 700");
        other.tell("drop");
    }
    recording.stop().expect_code(0);
    let stats = capture.report("stats", &[]);
    assert_eq!(stats["processes"].as_array().map(Vec::len), Some(1), "{stats:#}");
    assert_eq!(stats["processes"][0]["pid"], named.pid(), "{stats:#}");
    let notes = stats["notes"].to_string();
    assert!(notes.contains("large blocks: over --max-overhead"), "{stats:#}");
    named.finish();
    other.finish();
}

#[test]
fn a_recording_ends_with_its_only_process() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let mut target = Target::start(&interpreter);
    let frame = target.make_frame();
    let pid = target.pid();
    let capture = Capture::new();
    let recording = record_pid(&target, &capture);
    target.tell("make 500 100");
    target.finish();
    recording.wait().expect_code(0);
    assert_made(&capture, pid, &frame, 500);
}

#[test]
fn two_recordings_of_two_processes_do_not_disturb_each_other() {
    let Some(interpreter) = find(Id::Pyenv(11)) else {
        return;
    };
    let (mut first, mut second) = (Target::start(&interpreter), Target::start(&interpreter));
    let frame = first.make_frame();
    let (of_first, of_second) = (Capture::new(), Capture::new());
    let first_recording = record_pid(&first, &of_first);
    let second_recording = record_pid(&second, &of_second);
    first.tell("make 300 100");
    second.tell("make 700 100");
    first_recording.stop().expect_code(0);
    // The end of the one takes nothing from the other.
    second.tell("make 700 100");
    second_recording.stop().expect_code(0);
    assert_made(&of_first, first.pid(), &frame, 300);
    assert_made(&of_second, second.pid(), &frame, 1400);
}

#[test]
fn two_recordings_of_one_process_both_see_all() {
    let Some(interpreter) = find(Id::Pyenv(11)) else {
        return;
    };
    let mut target = Target::start(&interpreter);
    let frame = target.make_frame();
    let (first, second) = (Capture::new(), Capture::new());
    let first_recording = record_pid(&target, &first);
    let second_recording = record_pid(&target, &second);
    target.tell("make 500 100");
    first_recording.stop().expect_code(0);
    target.tell("make 500 100");
    second_recording.stop().expect_code(0);
    assert_made(&first, target.pid(), &frame, 500);
    assert_made(&second, target.pid(), &frame, 1000);
}
