//! The audit: the small blocks that pyrobe believes alive, beside the interpreter's own count of them.
//!
//! The program works for some seconds, audited meanwhile, and then waits while the last audit is made: what is alive then
//! does not hang on how busy the machine is.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    matrix::{on_every_interpreter, on_interpreters},
    support::{
        capture::{Capture, record_command},
        interpreters::{Interpreter, Script},
        recording::Recording,
        run::{self, pyrobe},
        target::Target,
    },
};

/// Most by which the two may be apart, percent of the live blocks.
const LIMIT: f64 = 0.5;

const OFTEN: &[&str] = &["--audit-interval", "2"];

/// A recording of the mixed load. Dropping it ends both.
struct Load {
    recorder: Child,
    // The load ends with its input.
    _input: ChildStdin,
    output: BufReader<ChildStdout>,
    capture: Capture,
    _script: Script,
}

impl Load {
    #[track_caller]
    fn start(interpreter: &Interpreter, options: &[&str], arguments: &[&str]) -> Self {
        let (script, capture) = (interpreter.script("mixed.py"), Capture::new());
        let mut recorder = record_command(interpreter, &capture, options)
            .arg(&script.path)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("pyrobe can be started");
        Self {
            _input: recorder.stdin.take().expect("its input is a pipe"),
            output: BufReader::new(recorder.stdout.take().expect("its output is a pipe")),
            recorder,
            capture,
            _script: script,
        }
    }

    /// What the next of its processes says once it has nothing more to do.
    #[track_caller]
    fn said(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the load writes text");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("the load said {line:?}: {error}"))
    }

    /// Ends the recording while the load waits. What `report stats` says.
    #[track_caller]
    fn stop(&mut self) -> Value {
        let recorder = Pid::from_child(&self.recorder);
        kill_process(recorder, Signal::INT).expect("a child can be sent signals by its parent");
        let status = run::wait(&mut self.recorder).expect("a recording ends when it is told to");
        assert!(status.success(), "the recording ended with {status}");
        self.capture.report("stats", &[])
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.recorder.kill();
        let _ = self.recorder.wait();
    }
}

#[track_caller]
fn audits_of(stats: &Value, pid: &Value) -> Value {
    let processes = stats["processes"].as_array().expect("a list of processes");
    let process = processes.iter().find(|process| process["pid"] == *pid);
    process.unwrap_or_else(|| panic!("process {pid} is not in {stats}"))["audit"].clone()
}

/// A number of the last audit.
#[track_caller]
fn last(audits: &Value, key: &str) -> f64 {
    let number = audits["last"][key].as_f64();
    number.unwrap_or_else(|| panic!("no {key} in {audits}"))
}

on_every_interpreter!(mixed_load, check_mixed_load);

pub(crate) fn check_mixed_load(interpreter: &Interpreter) {
    check_load(interpreter, "10");
}

/// What is lost, or counted twice, by a slow leak shows after a while only.
pub(crate) fn check_a_minute(interpreter: &Interpreter) {
    check_load(interpreter, "60");
}

fn check_load(interpreter: &Interpreter, seconds: &str) {
    let mut load = Load::start(interpreter, OFTEN, &[seconds]);
    let said = load.said();
    let stats = load.stop();
    // An allocation at an address that is in use is a free that no site saw.
    assert_eq!(stats["losses"]["stale_blocks"], 0, "{}", stats["losses"]);
    // A free of what is not alive, in a process seen from its start, is one that two sites saw.
    assert_eq!(stats["losses"]["unmatched_frees"], 0, "{}", stats["losses"]);
    let audits = audits_of(&stats, &said["pid"]);
    assert!(audits["made"].as_u64().is_some_and(|made| made >= 2), "{audits}");
    assert_eq!(audits["incomplete"], 0);
    assert_eq!(audits["last"]["since_start"], true);
    assert!(last(&audits, "apart_percent") < LIMIT, "{audits}");
    // The interpreter's figure has the large blocks of its object and memory domains besides.
    let (used, own) = (
        last(&audits, "used_blocks"),
        said["blocks"].as_f64().expect("a number"),
    );
    assert!(
        used > 0.9 * own && used < 1.01 * own,
        "{used} blocks in pools, the interpreter says {own}"
    );
}

on_interpreters! { what_is_lost, check_what_is_lost,
    pyenv_312: Id::Pyenv(12),
}

/// A ring of one page loses most of what happens, and the audit finds out.
fn check_what_is_lost(interpreter: &Interpreter) {
    let mut load = Load::start(interpreter, &["--ring-bytes", "4096"], &["3"]);
    let said = load.said();
    let audits = audits_of(&load.stop(), &said["pid"]);
    assert!(last(&audits, "apart_percent") > 2.0 * LIMIT, "{audits}");
    let text = load.capture.text("stats");
    assert!(
        text.contains("% apart") && text.contains("more than 1% apart"),
        "{text}"
    );
}

on_interpreters! { a_fork, check_a_fork,
    pyenv_312: Id::Pyenv(12),
}

fn check_a_fork(interpreter: &Interpreter) {
    let mut load = Load::start(interpreter, OFTEN, &["6", "fork"]);
    let (mut parent, mut fork) = (load.said(), load.said());
    if parent["fork"] == true {
        std::mem::swap(&mut parent, &mut fork);
    }
    let stats = load.stop();
    let (of_parent, of_fork) = (audits_of(&stats, &parent["pid"]), audits_of(&stats, &fork["pid"]));
    assert_eq!(of_parent["last"]["since_start"], true);
    assert!(last(&of_parent, "apart_percent") < LIMIT, "{of_parent}");
    // The parent's blocks are in its pools, and no event of its own tells of them.
    assert_eq!(of_fork["last"]["since_start"], false);
    assert!(
        last(&of_fork, "used_blocks") > last(&of_fork, "believed_blocks"),
        "{of_fork}"
    );
    assert!(
        load.capture
            .text("stats")
            .contains("from before tracing or a fork")
    );
}

on_interpreters! { a_running_process, check_a_running_process,
    pyenv_312: Id::Pyenv(12),
}

fn check_a_running_process(interpreter: &Interpreter) {
    let mut target = Target::start(interpreter);
    target.tell("make 20000 100");
    let (pid, capture) = (target.pid().to_string(), Capture::new());
    let options = ["--audit-interval", "1", "--duration", "4s", "--pid"];
    let recording = Recording::start(
        pyrobe(["record", "--mode", "allocs"])
            .args(options)
            .args([&pid, "-o"])
            .arg(&capture.path),
    );
    target.tell("make 1000 100");
    recording.wait().expect_code(0);
    let audits = audits_of(&capture.report("stats", &[]), &Value::from(target.pid()));
    assert_eq!(audits["last"]["since_start"], false, "{audits}");
    assert!(last(&audits, "used_blocks") > 20_000.0, "{audits}");
    target.finish();
}

#[test]
fn no_audit_is_made_if_none_is_wanted() {
    let Some(interpreter) = crate::support::interpreters::find(crate::support::interpreters::Id::Pyenv(12))
    else {
        return;
    };
    let mut load = Load::start(&interpreter, &["--audit-interval", "0"], &["1"]);
    let said = load.said();
    let audits = audits_of(&load.stop(), &said["pid"]);
    assert_eq!(
        (&audits["made"], &audits["last"]),
        (&Value::from(0), &Value::Null)
    );
}
