//! Reports of made-up recordings: text as snapshots, JSON and collapsed lines as goldens, hostile names.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

use serde_json::json;
use tracer_ebpf::reason::Reason;

use super::{
    collapsed::{self, CollapsedOptions},
    flamegraph::{self, FlamegraphOptions, Orientation},
    rows::{By, Sort},
    stats::Stats,
    table::{Table, TableOptions},
};
use crate::{
    ingest::event::BlockKind,
    profile::{
        Metric, PoolAudit, Snapshot, View,
        testing::{Story, context, counters, number},
    },
    units::{BootNs, MonotonicNs, Pid},
};

/// A web application with a worker: recursion, temporaries, threads without a frame, one lossy process.
fn recording() -> Snapshot {
    let mut story = Story::default();
    story.process_at(100, 1_000, "/usr/bin/python3 -u /srv/web/app.py --port 80");
    story.alloc(100, 0x1000, 4096, "main:10 handle:20 load:30");
    story.alloc(100, 0x2000, 1_500_000, "main:10 handle:20 load:31");
    story
        .alloc(100, 0x3000, 512, "main:10 walk:5 walk:5 walk:6")
        .free(100, 0x3000);
    story
        .alloc(100, 0x4000, 64, "")
        .alloc(100, 0x5000, 48, "... deep:7")
        .free(100, 0x2000);
    story.exit(100, &counters(5, 2, 0, &[]));
    story.process_at(200, 2_000, "python3 -m worker");
    story
        .alloc(200, 0x1000, 256, "run:1 lost:2")
        .alloc(200, 0x2000, 128, "?")
        .free(200, 0x9999);
    let mut profile = story.profile();
    profile.set_context(context(171, 171));
    profile.set_counters(
        Pid(200),
        BootNs(2_000),
        counters(
            1_002,
            4,
            0,
            &[(Reason::RingFullAlloc, 1_000), (Reason::RingFullFree, 3)],
        ),
    );
    profile.snapshot()
}

fn nothing() -> Snapshot {
    Story::default().snapshot()
}

fn collapsed_text(snapshot: &Snapshot, view: View, metric: Metric) -> String {
    let mut out = Vec::new();
    collapsed::write(snapshot, CollapsedOptions { view, metric }, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn svg(snapshot: &Snapshot, options: &FlamegraphOptions) -> String {
    let mut out = Vec::new();
    flamegraph::write(snapshot, options, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn table_text() {
    insta::assert_snapshot!(Table::from_snapshot(&recording(), &TableOptions::default()).text());
}

#[test]
fn what_ended_can_be_left_out_and_is_told_otherwise() {
    let mut snapshot = recording();
    let said = |snapshot: &Snapshot| {
        let table = Table::from_snapshot(snapshot, &TableOptions::default());
        (
            table.text().contains("--running"),
            table.json().unwrap()["notes"]
                .to_string()
                .contains("1 process(es) held"),
        )
    };
    assert_eq!(said(&snapshot), (true, true));
    snapshot.retain(|process| process.info.key.pid == Pid(200));
    assert_eq!(said(&snapshot), (false, false));
    let table = Table::from_snapshot(&snapshot, &TableOptions::default());
    assert!(table.rows().iter().all(|row| row.pid == Pid(200)));
    let sum: u64 = table.rows().iter().map(|row| row.own_bytes).sum();
    assert_eq!(table.json().unwrap()["bytes"], sum);
    // Where all have ended, nothing is more than was there at the end.
    let mut ended = recording();
    ended.retain(|process| process.info.key.pid == Pid(100));
    assert_eq!(said(&ended), (false, false));
}

#[test]
fn table_text_by_function_limited_and_narrow() {
    let options = TableOptions {
        by: By::Function,
        sort: Sort::TotalBytes,
        limit: Some(3),
        width: Some(80),
        ..TableOptions::default()
    };
    let text = Table::from_snapshot(&recording(), &options).text();
    let widest = text
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.chars().count())
        .max();
    assert!(widest.is_some_and(|widest| widest <= 80), "{widest:?}");
    insta::assert_snapshot!(text);
}

#[test]
fn table_text_by_file_and_by_process_in_other_views() {
    let text = |by, view| {
        Table::from_snapshot(
            &recording(),
            &TableOptions {
                view,
                by,
                ..TableOptions::default()
            },
        )
        .text()
    };
    insta::assert_snapshot!(
        [text(By::File, View::InUse), text(By::Process, View::Temporary)].join("\n======\n")
    );
}

#[test]
fn table_text_of_nothing() {
    insta::assert_snapshot!(Table::from_snapshot(&nothing(), &TableOptions::default()).text());
}

#[test]
fn table_json() {
    let options = TableOptions {
        limit: Some(1),
        ..TableOptions::default()
    };
    let value = Table::from_snapshot(&recording(), &options).json().unwrap();
    assert_eq!(
        value["rows"],
        json!([{
            "pid": 100, "process": "app.py", "function": "load", "file": "/srv/app.py", "line": 31,
            "own_bytes": 1_500_000, "total_bytes": 1_500_000, "own_count": 1, "total_count": 1,
            "live_bytes": 0, "live_count": 0, "samples": 0, "lossy": false, "partial": false, "untouched_bytes": 0,
        }])
    );
    assert_eq!(
        (&value["row_count"], &value["bytes"], &value["count"]),
        (&json!(12), &json!(1_505_104), &json!(7))
    );
    assert_eq!(
        (&value["view"], &value["by"], &value["sort"]),
        (&json!("allocated"), &json!("line"), &json!("own_bytes"))
    );
    assert_eq!(value["losses"]["total"], 1_003);
    assert_eq!(value["losses"]["by_reason"]["ring_full_alloc"], 1_000);
    assert_eq!(value["losses"]["by_reason"]["chunk_unreadable"], 0);
    assert_eq!(
        value["losses"]["missing"],
        json!({"allocs": 1_000, "frees": 3, "reallocs": 0, "faults": 0})
    );
    assert_eq!(value["losses"]["unmatched_frees"], 1);
    assert_eq!(value["losses"]["processes"][0]["pid"], 200);
    assert_eq!(value["losses"]["processes"][0]["produced"]["allocs"], 1_002);
    assert_eq!(value["losses"]["processes"][0]["delivered"]["allocs"], 2);
    assert_eq!(value["coverage"]["percent"], 100.0);
    assert_eq!(value["coverage"]["images"][0]["processes"], 2);
    assert_eq!(value["hits"], 2026);
    assert_eq!(value["truncated"], json!(null));
}

#[test]
fn a_recursion_is_in_the_total_once() {
    let table = Table::from_snapshot(
        &recording(),
        &TableOptions {
            by: By::Function,
            ..TableOptions::default()
        },
    );
    let walk = table
        .rows()
        .iter()
        .find(|row| row.function.as_deref() == Some("walk"))
        .unwrap();
    assert_eq!(
        (walk.own_bytes, walk.total_bytes, walk.total_count),
        (512, 512, 1)
    );
}

#[test]
fn stats_text() {
    insta::assert_snapshot!(Stats::from_snapshot(&recording()).text(Some(120)));
}

#[test]
fn stats_text_of_a_truncated_capture_with_partial_coverage() {
    let mut story = Story::default();
    story.process(7, "python3 a.py").alloc(7, 0x10, 16, "a:1");
    let mut profile = story.profile();
    let mut context = context(5, 171);
    context.images[0].attach_gap_ns = Some(3_400_000);
    context
        .notes
        .push("the kernel has no \x1b uprobe_multi".to_owned());
    profile.set_context(context);
    profile.set_truncated("block 12 has a wrong checksum");
    profile.add_decode_problems(2);
    insta::assert_snapshot!(Stats::from_snapshot(&profile.snapshot()).text(None));
}

/// One process that is right, one that is off, one with blocks from before tracing, one too large.
fn audited() -> Snapshot {
    let mut story = Story::default();
    for (pid, name) in [(7, "right.py"), (8, "off.py"), (9, "old.py"), (10, "large.py")] {
        story.process(pid, &format!("python3 {name}"));
        story
            .alloc(pid, 0x10, 16, "")
            .alloc(pid, 0x40, 64, "")
            .alloc(pid, 0x80, 64, "");
    }
    let mut profile = story.profile();
    for (pid, began, ended, used, since_start, complete) in [
        (7, 100_000_000, 100_000_000, 2, true, true),
        (8, 1, 4_500_001, 2, true, true),
        (8, 100_000_000, 101_500_000, 1_200, true, true),
        (9, 100_000_000, 100_000_000, 50_000, false, true),
        (10, 100_000_000, 100_000_000, 0, true, false),
    ] {
        let mut by_class = [0; 32];
        (by_class[0], by_class[3]) = (1, used);
        profile.audit(PoolAudit {
            pid: Pid(pid),
            start: BootNs(1000),
            began: MonotonicNs(began),
            ended: MonotonicNs(ended),
            since_start,
            complete,
            pools: 3,
            used: by_class,
        });
    }
    profile.finish();
    profile.snapshot()
}

#[test]
fn stats_text_of_audited_processes() {
    insta::assert_snapshot!(Stats::from_snapshot(&audited()).text(Some(120)));
}

#[test]
fn stats_json_of_audited_processes() {
    let value = Stats::from_snapshot(&audited()).json().unwrap();
    assert_eq!(
        value["processes"][1]["audit"],
        json!({
            "made": 2, "incomplete": 0, "worst_percent": 119_800.0 / 1_201.0,
            "last": {
                "began_ns": 100_000_000, "ended_ns": 101_500_000, "since_start": true, "pools": 3,
                "believed_blocks": 3, "used_blocks": 1_201, "difference_blocks": -1_198,
                "apart_blocks": 1_198, "apart_percent": 119_800.0 / 1_201.0, "drift_blocks": 0,
                "classes": [
                    {"size": 16, "believed": 1, "used": 1, "difference": 0, "drift": 0},
                    {"size": 64, "believed": 2, "used": 1_200, "difference": -1_198, "drift": 0},
                ],
            },
        })
    );
    assert_eq!(
        value["processes"][3]["audit"],
        json!({"made": 0, "incomplete": 1, "worst_percent": null, "last": null})
    );
}

#[test]
fn stats_json() {
    let value = Stats::from_snapshot(&recording()).json().unwrap();
    for (key, expected) in [
        ("total_allocations", json!(7)),
        ("total_bytes", json!(1_505_104)),
        ("live_bytes", json!(4096 + 64 + 48 + 256 + 128)),
        ("live_blocks", json!(5)),
        ("peak_bytes", json!(4096 + 1_500_000 + 512)),
        ("total_frees", json!(2)),
        ("temporary_allocations", json!(1)),
        ("duration", json!(2.5)),
        ("hits", json!(2026)),
    ] {
        assert_eq!(value[key], expected, "{key}");
    }
    assert_eq!(value["processes"].as_array().map(Vec::len), Some(2));
    assert_eq!(value["processes"][0]["process"], "app.py");
    assert_eq!(value["processes"][0]["end"], "exit");
    assert_eq!(value["processes"][1]["lossy"], true);
    assert_eq!(value["losses"]["total"], 1_003);
}

#[test]
fn json_has_the_same_keys_when_there_is_nothing() {
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let full = Stats::from_snapshot(&recording()).json().unwrap();
    let empty = Stats::from_snapshot(&nothing()).json().unwrap();
    assert_eq!(keys(&full), keys(&empty));
    assert_eq!(keys(&full["losses"]), keys(&empty["losses"]));
    let options = TableOptions::default();
    let full = Table::from_snapshot(&recording(), &options).json().unwrap();
    let empty = Table::from_snapshot(&nothing(), &options).json().unwrap();
    assert_eq!(keys(&full), keys(&empty));
    assert_eq!(empty["rows"], json!([]));
    assert_eq!(empty["losses"]["total"], 0);
    assert_eq!(empty["coverage"]["percent"], json!(null));
}

#[test]
fn collapsed_lines() {
    assert_eq!(
        collapsed_text(&recording(), View::Allocated, Metric::Bytes),
        "app.py (100);[no Python frame] 64\n\
         app.py (100);[truncated];deep (/srv/app.py:7) 48\n\
         app.py (100);main (/srv/app.py:10);handle (/srv/app.py:20);load (/srv/app.py:30) 4096\n\
         app.py (100);main (/srv/app.py:10);handle (/srv/app.py:20);load (/srv/app.py:31) 1500000\n\
         app.py (100);main (/srv/app.py:10);walk (/srv/app.py:5);walk (/srv/app.py:5);walk (/srv/app.py:6) 512\n\
         python3 -m worker (200);[unreadable] 128\n\
         python3 -m worker (200);run (/srv/app.py:1);[unknown code] 256\n"
    );
    assert_eq!(
        collapsed_text(&recording(), View::Temporary, Metric::Count),
        "app.py (100);main (/srv/app.py:10);walk (/srv/app.py:5);walk (/srv/app.py:5);walk (/srv/app.py:6) 1\n"
    );
}

/// A process whose every name tries to break out of its place.
fn hostile() -> Snapshot {
    let mut story = Story::default();
    story.process(7, "##<title><script>;\x1b[2J\n");
    let id = story.stack(7, "evil:3");
    // The newest code object of an address counts, so this one goes before the stack and behind its own.
    let stack = story.events.pop();
    story.code(
        7,
        number("evil"),
        "f;g <b>&\"'\u{1b}]0;x\u{7}\n 12 34",
        "a;\r\n--> 5",
    );
    story.events.extend(stack);
    story.alloc_id(7, 7, BlockKind::Pool, 0x10, 16, id);
    story.snapshot()
}

#[test]
fn hostile_names_stay_in_their_place() {
    let snapshot = hostile();
    let text = collapsed_text(&snapshot, View::Allocated, Metric::Bytes);
    assert_eq!(
        text,
        "##<title><script>:\\x1b[2J\\x0a (7);f:g <b>&\"'\\x1b]0:x\\x07\\x0a 12 34 (a:\\x0d\\x0a--> 5:3) 16\n"
    );
    let svg = svg(&snapshot, &FlamegraphOptions::default());
    assert!(svg.contains("&lt;title&gt;"), "the root frame is missing: {svg}");
    assert!(!svg.contains("<b>") && !svg.contains("<script>:"), "{svg}");
    assert!(svg.contains("f:g &lt;b&gt;"));
    for text in [
        Table::from_snapshot(&snapshot, &TableOptions::default()).text(),
        Stats::from_snapshot(&snapshot).text(None),
        svg,
    ] {
        assert!(text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
    }
}

#[test]
fn what_was_traced_a_part_of_the_time_is_said_wherever_it_is_drawn() {
    let mut snapshot = Story::default().alloc(7, 0x1000, 32, "main:1").snapshot();
    let said = "1 process(es) were traced a part of the time";
    assert!(!svg(&snapshot, &FlamegraphOptions::default()).contains(said));
    for process in &mut snapshot.processes {
        process.is_partial = true;
    }
    let drawn = svg(&snapshot, &FlamegraphOptions::default());
    assert!(drawn.contains(said) && drawn.contains("no losses"), "{drawn}");
    assert!(
        super::footer::warnings(&snapshot)
            .iter()
            .any(|warning| warning == said)
    );
}

#[test]
fn a_flame_graph_says_its_view_and_what_was_lost() {
    let options = FlamegraphOptions {
        view: View::Peak,
        orientation: Orientation::Icicles,
        ..FlamegraphOptions::default()
    };
    let svg = svg(&recording(), &options);
    assert!(
        svg.contains("Memory at each process&apos;s high-water mark")
            || svg.contains("Memory at each process's high-water mark")
    );
    assert!(svg.contains("1,003 losses; the figures of 1 process(es) are not exact"));
    assert!(svg.contains("python3 -m worker (200) [losses]"));
    assert!(svg.contains("load (/srv/app.py:31) (1,500,000 bytes"));
    assert!(svg.trim_end().ends_with("</svg>"));
}

#[test]
fn an_empty_flame_graph_is_a_valid_picture_with_a_note() {
    let svg = svg(
        &nothing(),
        &FlamegraphOptions {
            title: Some("<&>".to_owned()),
            ..FlamegraphOptions::default()
        },
    );
    insta::assert_snapshot!(svg);
}
