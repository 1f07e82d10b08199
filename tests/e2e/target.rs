//! TARGET: only what is meant is recorded, whenever it starts, and all of it from the first allocation.

use std::{collections::HashSet, ffi::OsString, process::Command};

use rustix::process::Pid;
use serde_json::Value;

use crate::{
    lifecycle::{by_pid, short_run, whole_run},
    support::{
        capture::Capture,
        groups::Group,
        interpreters::{Id, Interpreter, find, set_environment},
        recording::Recording,
        run::{finish, pyrobe, run},
        target::Target,
    },
};

/// A user id that no process of this host has.
const NOBODY_ELSE: &str = "64999";

/// Starts `record OPTIONS` for the processes that options mean.
#[track_caller]
fn record(capture: &Capture, options: &[&str]) -> Recording {
    let mut command = pyrobe(["record", "--mode", "allocs", "-o"]);
    Recording::start(command.arg(&capture.path).args(options))
}

/// Runs a command line to its end; the process id that it had.
#[track_caller]
fn run_line(line: &[OsString]) -> u32 {
    let mut command = Command::new(line.first().expect("a program"));
    command.args(line.iter().skip(1));
    set_environment(&mut command);
    let child = command.spawn().expect("it can be started");
    let pid = Pid::from_child(&child).as_raw_nonzero().get().cast_unsigned();
    finish(format!("{command:?}"), child).expect_code(0);
    pid
}

/// The processes of a capture are these, each with all that a whole run allocates.
#[track_caller]
fn assert_recorded(capture: &Capture, pids: &[u32], whole: u64) {
    let processes = by_pid(&capture.report("stats", &[]));
    let (seen, wanted): (HashSet<u32>, HashSet<u32>) = (
        processes.keys().copied().collect(),
        pids.iter().copied().collect(),
    );
    assert_eq!(seen, wanted, "other processes than those that were meant");
    for process in processes.values() {
        let all = process["total_allocations"].as_u64().expect("a count");
        assert!(
            all.abs_diff(whole) <= whole / 100,
            "a whole run makes {whole} allocations: {process}"
        );
    }
}

fn as_user(uid: &str, line: Vec<OsString>) -> Vec<OsString> {
    let options = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"];
    options.into_iter().map(Into::into).chain(line).collect()
}

/// Lists what options mean with `ps`; the process ids.
#[track_caller]
fn listed(options: &[&str]) -> HashSet<u64> {
    let list = run(pyrobe(["ps", "--json"]).args(options));
    assert!(matches!(list.code(), 0 | 3), "{list}");
    let rows = list.json()["rows"].as_array().cloned().unwrap_or_default();
    rows.iter().filter_map(|row| row["pid"].as_u64()).collect()
}

#[test]
fn a_user_is_recorded_alone() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let whole = whole_run(&interpreter);
    let capture = Capture::new();
    let recording = record(&capture, &["--user", NOBODY_ELSE]);
    let mut meant = Vec::new();
    for _ in 0..5 {
        meant.push(run_line(&as_user(NOBODY_ELSE, short_run(&interpreter))));
        run_line(&as_user("64998", short_run(&interpreter)));
        run_line(&short_run(&interpreter));
    }
    recording.stop().expect_code(0);
    assert_recorded(&capture, &meant, whole);
}

#[test]
fn a_process_is_recorded_from_when_it_becomes_the_user() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let capture = Capture::new();
    let recording = record(&capture, &["--user", "64997"]);
    let code = "kept = ['x' * (1000 + i) for i in range(3000)]; import os; os.setresuid(64997, 64997, 64997)\n\
                kept += ['y' * (1000 + i) for i in range(500)]";
    let mut line = interpreter.command_line();
    line.extend(["-S", "-c", code].map(Into::into));
    let pid = run_line(&line);
    recording.stop().expect_code(0);
    let stats = capture.report("stats", &[]);
    let processes = by_pid(&stats);
    let made = processes
        .get(&pid)
        .and_then(|process| process["total_bytes"].as_u64());
    assert!(
        (500_000..2_500_000).contains(&made.expect("the process is recorded")),
        "{stats}"
    );
}

#[test]
fn a_control_group_is_recorded_with_what_is_below_it() {
    let Some(interpreter) = find(Id::Pyenv(11)) else {
        return;
    };
    let name = format!("pyrobe-test-{}", std::process::id());
    let Some(group) = Group::new(&name) else { return };
    let (below, beside) = (group.below("below"), Group::new(&format!("{name}-beside")));
    let whole = whole_run(&interpreter);
    let capture = Capture::new();
    let directory = group.directory().to_str().expect("its path is text").to_owned();
    let recording = record(&capture, &["--cgroup", &directory]);
    let mut meant = Vec::new();
    for _ in 0..3 {
        meant.push(run_line(&group.run(short_run(&interpreter))));
        meant.push(run_line(&below.run(short_run(&interpreter))));
        run_line(&short_run(&interpreter));
        if let Some(beside) = &beside {
            run_line(&beside.run(short_run(&interpreter)));
        }
    }
    recording.stop().expect_code(0);
    assert_recorded(&capture, &meant, whole);
}

#[test]
fn a_container_is_recorded_by_the_beginning_of_its_id() {
    let Some(interpreter) = find(Id::Pyenv(10)) else {
        return;
    };
    // Two ids that differ in their sixteenth digit; no other container of a host begins like that.
    let start = format!(
        "{:015x}",
        0x00c0_ffee_0000_0000_u64 + u64::from(std::process::id())
    );
    let id = |digit: char| format!("{start}{digit}{}", "0".repeat(48));
    let (Some(group), Some(_other)) = (
        Group::new(&format!("docker-{}.scope", id('a'))),
        Group::new(&format!("docker-{}.scope", id('b'))),
    ) else {
        return;
    };
    run(&mut pyrobe(["record", "--container", &start, "-o", "-"]))
        .expect_code(2)
        .expect_error_with_hint()
        .expect_stderr("several");
    let whole = whole_run(&interpreter);
    let capture = Capture::new();
    let recording = record(&capture, &["--container", &id('a')[..16]]);
    let meant = [
        run_line(&group.run(short_run(&interpreter))),
        run_line(&group.run(short_run(&interpreter))),
    ];
    run_line(&short_run(&interpreter));
    recording.stop().expect_code(0);
    assert_recorded(&capture, &meant, whole);
}

fn path_of(interpreter: &Interpreter) -> String {
    let path = interpreter
        .program
        .canonicalize()
        .expect("the interpreter is there");
    path.to_str().expect("its path is text").to_owned()
}

#[test]
fn an_executable_is_recorded_alone() {
    let (Some(meant), Some(other)) = (find(Id::Pyenv(12)), find(Id::Pyenv(11))) else {
        return;
    };
    let whole = whole_run(&meant);
    let mut running = [Target::start(&meant), Target::start(&other)];
    let capture = Capture::new();
    let recording = record(&capture, &["--exe", &path_of(&meant)]);
    let (mut pids, mut others) = (Vec::new(), vec![running[1].pid()]);
    for _ in 0..10 {
        pids.push(run_line(&short_run(&meant)));
        others.push(run_line(&short_run(&other)));
    }
    for target in &mut running {
        target.tell("make 1000 100");
    }
    recording.stop().expect_code(0);
    // Other tests may run the same executable.
    let processes = by_pid(&capture.report("stats", &[]));
    let before = processes.get(&running[0].pid());
    assert!(
        before.is_some_and(|process| process["total_allocations"].as_u64() >= Some(1000)),
        "what ran before is recorded, too"
    );
    for pid in others {
        assert!(
            !processes.contains_key(&pid),
            "process {pid} runs another executable"
        );
    }
    for pid in pids {
        let process = processes
            .get(&pid)
            .unwrap_or_else(|| panic!("{pid} is not recorded"));
        let all = process["total_allocations"].as_u64().expect("a count");
        assert!(
            all.abs_diff(whole) <= whole / 100,
            "a whole run makes {whole} allocations: {process}"
        );
        assert_eq!(process["losses"]["total"].as_u64().unwrap_or(0), 0, "{process}");
    }
    running.into_iter().for_each(Target::finish);
}

#[test]
fn children_of_a_selected_process_are_recorded_whatever_they_run() {
    let (Some(meant), Some(other)) = (find(Id::Pyenv(12)), find(Id::Pyenv(13))) else {
        return;
    };
    let capture = Capture::new();
    let recording = record(&capture, &["--exe", "python3.12"]);
    let code = format!(
        "import subprocess; child = subprocess.Popen([{:?}, '-S', '-c', 'pass']); child.wait(); print(child.pid)",
        path_of(&other)
    );
    let mut line = meant.command_line();
    line.extend(["-S", "-c", &code].map(OsString::from));
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]);
    set_environment(&mut command);
    let ran = run(&mut command).expect_code(0);
    recording.stop().expect_code(0);
    let child: u32 = ran.stdout_text().trim().parse().expect("a process id");
    let stats = capture.report("stats", &[]);
    let python = by_pid(&stats)
        .get(&child)
        .map_or(Value::Null, |process| process["python"].clone());
    assert!(
        python.as_str().is_some_and(|python| python.starts_with("3.13.")),
        "the child is not in the capture: {stats}"
    );
}

#[test]
fn all_kinds_must_be_met() {
    let (Some(meant), Some(other)) = (find(Id::Debian311), find(Id::Pyenv(11))) else {
        return;
    };
    let whole = whole_run(&meant);
    let capture = Capture::new();
    let user = "64996";
    // Of one kind, any will do.
    let options = ["--exe", "nothing", "--exe", "python3.11", "--user", user];
    let recording = record(&capture, &options);
    let pids = [run_line(&as_user(user, short_run(&meant)))];
    run_line(&short_run(&meant));
    run_line(&short_run(&other));
    run_line(&as_user("64995", short_run(&meant)));
    recording.stop().expect_code(0);
    assert_recorded(&capture, &pids, whole);
}

#[test]
fn nothing_that_is_meant_is_exit_code_1() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let capture = Capture::new();
    let recording = record(&capture, &["--user", "64994"]);
    run_line(&short_run(&interpreter));
    recording.stop().expect_code(1).expect_stderr("hint: ");

    let target = Target::start(&interpreter);
    let pid = target.pid().to_string();
    let mut command = pyrobe(["record", "--pid", &pid, "--user", "64994", "-o", "-"]);
    run(&mut command).expect_code(1).expect_error_with_hint();
    target.finish();
}

#[test]
fn ps_lists_what_is_meant() {
    let (Some(one), Some(two)) = (find(Id::Pyenv(12)), find(Id::Pyenv(11))) else {
        return;
    };
    let (first, second) = (Target::start(&one), Target::start(&two));
    let pids = (u64::from(first.pid()), u64::from(second.pid()));
    let pid = first.pid().to_string();
    for options in [
        &["--exe", &path_of(&one)][..],
        &["--exe", "python3.12", "--user", "root"],
        &["--pid", &pid],
    ] {
        let listed = listed(options);
        assert!(
            listed.contains(&pids.0) && !listed.contains(&pids.1),
            "{options:?}: {listed:?}"
        );
    }
    assert!(listed(&["--exe", "python3.12", "--pid", &second.pid().to_string()]).is_empty());
    run(&mut pyrobe(["ps", "--user", "64993"])).expect_code(1);
    first.finish();
    second.finish();
}
