//! The reports of one small recording: forms, keys of the JSON, and that they agree with each other.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use serde_json::Value;

use crate::support::{
    capture::{Recorded, record},
    interpreters::{Id, find},
    run::{finish, pyrobe},
};

fn recorded() -> Option<Recorded> {
    Some(record(&find(Id::Pyenv(12))?, "plain_calls.py", &[], &[]))
}

#[track_caller]
fn assert_keys(object: &Value, keys: &[&str]) {
    for key in keys {
        assert!(object.get(key).is_some(), "no {key} in {object}");
    }
}

#[test]
fn reports_of_one_capture_agree() {
    let Some(recorded) = recorded() else { return };
    let stats = recorded.capture.report("stats", &[]);
    assert_keys(
        &stats,
        &[
            "total_allocations",
            "total_bytes",
            "live_bytes",
            "live_blocks",
            "peak_bytes",
            "processes",
            "losses",
            "coverage",
            "duration",
        ],
    );
    let table = recorded.capture.report("table", &[]);
    assert_keys(&table, &["rows", "losses", "coverage", "hits"]);
    let rows = table["rows"].as_array().expect("a table has rows");
    for row in rows {
        assert_keys(
            row,
            &[
                "pid",
                "process",
                "function",
                "file",
                "line",
                "own_bytes",
                "total_bytes",
                "own_count",
                "total_count",
                "live_bytes",
                "live_count",
            ],
        );
    }
    let sum = |key: &str| rows.iter().filter_map(|row| row[key].as_u64()).sum::<u64>();
    assert_eq!(
        Some(sum("own_count")),
        stats["total_allocations"].as_u64(),
        "the table's sum is the total"
    );
    assert_eq!(
        Some(sum("own_bytes")),
        stats["total_bytes"].as_u64(),
        "the table's sum is the total"
    );
    assert_eq!(
        Some(sum("live_count")),
        stats["live_blocks"].as_u64(),
        "the table's sum is the total"
    );
    for (metric, total) in [("count", "total_allocations"), ("bytes", "total_bytes")] {
        let sum: u64 = recorded
            .capture
            .stacks(metric)
            .iter()
            .map(|stack| stack.value)
            .sum();
        assert_eq!(
            Some(sum),
            stats[total].as_u64(),
            "the collapsed stacks' sum is the total"
        );
    }
}

#[test]
fn the_cost_of_a_recording_is_told() {
    let Some(recorded) = recorded() else { return };
    let stats = recorded.capture.report("stats", &[]);
    let processes = stats["processes"].as_array().expect("a list of processes");
    for process in processes {
        assert!(process["hits"].as_u64() > Some(0), "{process}");
        assert!(process["overhead_percent"].as_f64() > Some(0.0), "{process}");
    }
    assert!(stats["recording"]["hit_cost_ns"].as_f64() > Some(0.0), "{stats}");
    let text = recorded.capture.text("stats");
    assert!(
        text.contains("Overhead") && text.contains("of the processes' time by the clock"),
        "{text}"
    );
}

#[test]
fn every_grouping_has_the_same_sum() {
    let Some(recorded) = recorded() else { return };
    let sums: Vec<u64> = ["line", "function", "file", "process"]
        .iter()
        .map(|by| {
            let table = recorded.capture.report("table", &["--by", by]);
            let rows = table["rows"].as_array().expect("a table has rows");
            rows.iter().filter_map(|row| row["own_bytes"].as_u64()).sum()
        })
        .collect();
    assert!(sums[0] > 0 && sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
}

#[test]
fn processes_can_be_selected() {
    let Some(recorded) = recorded() else { return };
    let pid = recorded.expected[0].pid.to_string();
    let one = recorded.capture.report("table", &["--pid", &pid]);
    assert_eq!(one["rows"], recorded.capture.report("table", &[])["rows"]);
    // The recording ended with its only process; and 1 runs no Python.
    for (options, said) in [
        (&["--running"][..], "none of the processes"),
        (&["--pid", "1"], "process 1 is not in this capture"),
    ] {
        for command in [
            &["report", "table"][..],
            &["report", "flamegraph"],
            &["export", "collapsed"],
        ] {
            let run = recorded.capture.run(command, options).expect_code(2);
            let run = run.expect_error_with_hint();
            assert!(run.stderr.contains(said), "{run}");
        }
    }
}

#[test]
fn text_reports_name_what_allocated() {
    let Some(recorded) = recorded() else { return };
    for report in ["stats", "table"] {
        let text = recorded.capture.text(report);
        assert!(text.contains("plain_calls.py"), "{text}");
    }
    let svg = recorded
        .capture
        .run(&["report", "flamegraph"], &["-o", "-"])
        .expect_code(0)
        .stdout_text();
    assert!(
        svg.contains("<svg") && svg.contains("inner (") && svg.trim_end().ends_with("</svg>"),
        "{svg}"
    );
}

#[test]
fn a_reader_that_stops_reading_is_no_error() {
    let Some(recorded) = recorded() else { return };
    let mut command = pyrobe(["export", "collapsed"]);
    command
        .arg(&recorded.capture.path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("pyrobe can be started");
    let mut line = String::new();
    let mut output = BufReader::with_capacity(16, child.stdout.take().expect("its output is a pipe"));
    output.read_line(&mut line).expect("it writes text");
    drop(output);
    let run = finish(format!("{command:?} | head -1"), child);
    assert_eq!(run.stderr, "", "{run}");
}
