//! What `doctor` says of recordings that run, whoever made the maps that it finds on this host.

use serde_json::Value;

use crate::support::{
    capture::Capture,
    interpreters::{Id, find},
    recording::Recording,
    run::{pyrobe, run},
    target::Target,
};

/// What doctor says of the recorder with this process id.
#[track_caller]
fn recording(pid: u32) -> Option<Value> {
    let found = run(&mut pyrobe(["doctor", "--json"])).expect_code(0).json();
    assert!(found["recordings_unknown"].is_null(), "{found:#}");
    let recordings = found["recordings"].as_array().expect("a list of recordings");
    recordings
        .iter()
        .find(|recording| recording["pid"] == pid)
        .cloned()
}

#[test]
fn a_recording_is_listed_while_it_runs() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let mut target = Target::start(&interpreter);
    let capture = Capture::new();
    let pid = target.pid();
    let mut command = pyrobe(["record", "--mode", "allocs", "--pid", &pid.to_string(), "-o"]);
    let recorder = Recording::start(command.arg(&capture.path));
    let recorder_pid = recorder.pid();
    target.tell("make 10000 100");
    let Some(found) = recording(recorder_pid) else {
        panic!("the recorder {recorder_pid} is not listed");
    };
    assert_eq!(found["mode"], "allocs", "{found:#}");
    assert!(found["hits"].as_u64() >= Some(10_000), "{found:#}");
    assert!(
        found["hits_by_group"]["small blocks"].as_u64() >= Some(10_000),
        "{found:#}"
    );
    let process = &found["processes"][0];
    assert_eq!(process["pid"], pid, "{found:#}");
    // Kernels before 6.6 do not tell what a hit costs.
    if found["probe_ns"].is_number() {
        assert!(process["overhead_percent"].as_f64() > Some(0.0), "{found:#}");
    }
    let text = run(&mut pyrobe(["doctor"])).expect_code(0).stdout_text();
    assert!(
        text.contains(&format!("  pid {recorder_pid}, allocs mode: ")),
        "{text}"
    );
    recorder.stop().expect_code(0);
    target.finish();
    assert_eq!(recording(recorder_pid), None, "it has ended");
}

#[test]
fn maps_of_other_programs_are_no_recording() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let target = Target::start_with(&interpreter, interpreter.script("foreign_maps.py"), &[]);
    assert_eq!(recording(target.pid()), None);
    target.finish();
}
