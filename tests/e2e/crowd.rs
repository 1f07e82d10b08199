//! Heap mode on many processes that come and go: each that stays is shown with what it holds, those that are gone with nothing, and
//! pyrobe does not grow with them.

use std::{collections::HashSet, fs};

use serde_json::Value;

use crate::{
    heap::Holding,
    held::{check_lines, check_sum},
    matrix::on_interpreters_alone,
    support::{
        capture::Capture,
        expected::{self, Expected},
        interpreters::Interpreter,
        recording::Recording,
        run::pyrobe,
        target::Target,
    },
};

/// What pyrobe may take with these, in bytes.
const MOST_RESIDENT: u64 = 64 << 20;

on_interpreters_alone! { processes_come_and_go, check,
    debian_311: Id::Debian311,
    sid_314: Id::Sid(14),
}

fn check(interpreter: &Interpreter) {
    let mut target = Target::start_with(interpreter, interpreter.script("heap_crowd.py"), &[]);
    let (pid, capture) = (target.pid().to_string(), Capture::new());
    let mut command = pyrobe(["record", "--pid", &pid, "-o"]);
    let recording = Recording::start(command.arg(&capture.path));
    let said = expected::parse(&target.tell("go")).remove(0);
    let resident = resident(recording.pid());
    recording.stop().expect_code(0);
    target.finish();
    let table = capture.report("table", &["--view", "in-use", "--running"]);
    let (all, stats) = (capture.report("table", &[]), capture.report("stats", &[]));
    let staying: Vec<Expected> = from_json(&said.more["children"]);
    let gone: HashSet<u32> = from_json(&said.more["gone"]);
    assert!(staying.len() >= 30 && gone.len() >= 200, "{said:?}");
    assert!(
        gone.is_subset(&pids(&stats["processes"])),
        "not all are in the capture: {stats:#}"
    );
    // What they held at last is told beside, and can be left out.
    assert!(
        gone.is_disjoint(&pids(&table["rows"])),
        "what is gone is said to run"
    );
    let notes = all["notes"].to_string();
    assert!(notes.contains("process(es) held when they ended"), "{notes}");
    for expected in staying {
        let capture = Capture::at(&capture.path);
        let holding = Holding { capture, expected };
        check_lines(&holding, &table);
        check_sum(&holding, &table, &holding.heap_in(&stats));
    }
    assert!(resident <= MOST_RESIDENT, "pyrobe has {resident} bytes");
}

#[track_caller]
fn from_json<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).expect("the program tells of its children")
}

/// Whom the rows of a report are about.
fn pids(rows: &Value) -> HashSet<u32> {
    let rows = rows.as_array().expect("a report has rows").iter();
    rows.filter_map(|row| row["pid"].as_u64()?.try_into().ok())
        .collect()
}

/// What is resident of a process, in bytes. (The most that was is what examining the largest interpreter of the host takes.)
#[track_caller]
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.expect("the kernel tells it in KiB") * 1024
}
