//! Losses are counted, per process, and every report says so.
//!
//! A ring of one page cannot hold what a busy program sends between two polls, so most of it is lost.

use serde_json::Value;

use crate::support::{
    capture::{Recorded, record},
    interpreters::{Id, find},
};

/// Smallest ring that the kernel makes.
const TINY_RING: &[&str] = &["--ring-bytes", "4096"];

fn lossy_recording() -> Option<Recorded> {
    let interpreter = find(Id::Pyenv(12))?;
    Some(record(&interpreter, "multiprocessing_fork.py", TINY_RING, &[]))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("not a number: {value}"))
}

#[test]
fn delivered_and_lost_are_what_was_produced() {
    let Some(recorded) = lossy_recording() else { return };
    let stats = recorded.capture.report("stats", &[]);
    let processes = stats["processes"].as_array().expect("a list of processes");
    let mut lost_of_all = 0;
    for process in processes {
        let reasons = stats["losses"]["processes"]
            .as_array()
            .expect("a list of processes with losses")
            .iter()
            .find(|losses| losses["pid"] == process["pid"])
            .map_or(Value::Null, |losses| losses["by_reason"].clone());
        for (operation, reason) in [
            ("allocs", "ring_full_alloc"),
            ("frees", "ring_full_free"),
            ("reallocs", "ring_full_realloc"),
        ] {
            let produced = number(&process["produced"][operation]);
            let delivered = number(&process["delivered"][operation]);
            let lost = reasons[reason].as_u64().unwrap_or(0);
            assert_eq!(delivered + lost, produced, "{operation} of process {process}");
            lost_of_all += lost;
        }
    }
    assert!(
        lost_of_all > 0,
        "a ring of one page lost nothing, so nothing was tested: {stats}"
    );
    for expected in &recorded.expected {
        let process = processes
            .iter()
            .find(|process| process["pid"] == expected.pid)
            .unwrap_or_else(|| panic!("process {} is not in the capture", expected.pid));
        let made: u64 = expected.stacks.iter().map(|stack| stack.count).sum();
        assert!(
            number(&process["produced"]["allocs"]) >= made,
            "it made {made} blocks: {process}"
        );
    }
}

#[test]
fn every_report_says_that_something_was_lost() {
    let Some(recorded) = lossy_recording() else { return };
    for report in ["stats", "table"] {
        let text = recorded.capture.text(report);
        assert!(
            text.to_lowercase().contains("lost"),
            "`report {report}` does not say so:\n{text}"
        );
        let json = recorded.capture.report(report, &[]);
        assert!(
            number(&json["losses"]["total"]) > 0,
            "`report {report} --json` does not say so: {json}"
        );
    }
    let svg = recorded
        .capture
        .run(&["report", "flamegraph"], &["-o", "-"])
        .expect_code(0)
        .stdout_text();
    assert!(svg.contains("[losses]"), "the flame graph does not say so");
}
