//! An aggregated capture gives the snapshot that the events themselves give, and says so where it cannot.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use proptest::prelude::*;
use tracer_ebpf::reason::Reason;

use super::*;
use crate::{
    capture::{Gap, Reader, Writer},
    ingest::{encode::encode, event::GoneReason},
    profile::{
        Metric, View,
        testing::{Story, counters},
    },
    report::{
        collapsed::{self, CollapsedOptions},
        rows::By,
        stats::Stats,
        table::{Table, TableOptions},
    },
    units::{BootNs, ByteCount, Pid},
};

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn meta() -> Meta {
    Meta {
        host: "web-1".to_owned(),
        mode: "allocs".to_owned(),
        hit_cost_ns: Some(617.3),
        start_monotonic: MonotonicNs(1),
        ..Meta::default()
    }
}

fn end() -> End {
    End {
        reason: EndReason::Interrupted,
        end_monotonic: MonotonicNs(5_000_000_001),
        undecoded: 2,
        ..End::default()
    }
}

/// What a recording of `events` would have written, but for its end.
fn blocks(story: &Story, live: &[ProcessCounters]) -> Vec<Block> {
    let mut records = Vec::new();
    for event in &story.events {
        encode(event, &mut records);
    }
    let image = ImageRecord {
        path: "/usr/bin/python3.10".to_owned(),
        version: "3.10.13".to_owned(),
        coverage_resolved: 45,
        coverage_copies: 60,
        ..ImageRecord::default()
    };
    let gap = Gap {
        to: MonotonicNs(3_000_000),
        reason: "a test".to_owned(),
        ..Gap::default()
    };
    let audit = Audit {
        pid: Pid(7),
        start: BootNs(1000),
        began: MonotonicNs(3_000_000),
        ended: MonotonicNs(9_000_000),
        since_start: true,
        complete: true,
        pools: 3,
        used: vec![1, 3],
    };
    let middle = records.len() / 2;
    vec![
        Block::Image(image),
        Block::Gap(gap),
        Block::Events {
            ring: 0,
            records: first_whole(&records, middle).to_vec().into(),
        },
        Block::Audit(audit),
        Block::Events {
            ring: 0,
            records: records[first_whole(&records, middle).len()..].to_vec().into(),
        },
        Block::Counters(live.to_vec()),
    ]
}

/// The whole records in the first `len` bytes.
fn first_whole(records: &[u8], len: usize) -> &[u8] {
    let mut at = 0;
    while let Some(next) = crate::ingest::decode::record_len(&records[at..])
        && at + usize::from(next) <= len
    {
        at += usize::from(next);
    }
    &records[..at]
}

fn replayed(blocks: impl IntoIterator<Item = Block>, ended: &Ended) -> Snapshot {
    let mut replay = Replay::new(ProfileSettings::default());
    for block in blocks {
        replay.block(block);
    }
    replay.snapshot(Some(ended))
}

/// The bytes of an aggregated capture.
fn aggregated(blocks: &[Block], settings: ProfileSettings, ended: Option<End>) -> Vec<u8> {
    let sink = Shared::default();
    let meta = Meta {
        aggregated: true,
        ..meta()
    };
    let mut writer = Writer::stream(Box::new(sink.clone()), &meta).unwrap();
    let mut replay = Replay::new(settings);
    for block in blocks {
        replay.block(block.clone());
        match block {
            Block::Image(image) => writer.image(image).unwrap(),
            Block::Gap(gap) => writer.gap(gap).unwrap(),
            _ => {}
        }
    }
    let at = MonotonicNs(4_000_000_001);
    match ended {
        Some(end) => {
            replay.last_tallies(at, |part| writer.tallies(part)).unwrap();
            writer.finish(&[], end).unwrap();
        }
        None => replay.tallies(at, |part| writer.tallies(part)).unwrap(),
    }
    sink.0.lock().unwrap().clone()
}

fn read(bytes: &[u8]) -> Snapshot {
    let mut reader = Reader::new(bytes).unwrap();
    let mut replay = Replay::new(ProfileSettings::default());
    for block in reader.by_ref() {
        replay.block(block);
    }
    replay.snapshot(reader.ended())
}

/// Everything that any report says.
fn said(snapshot: &Snapshot) -> Vec<String> {
    let mut said = vec![Stats::from_snapshot(snapshot).json().unwrap().to_string()];
    for view in View::ALL {
        for by in [By::Line, By::Function, By::File, By::Process] {
            let options = TableOptions {
                view,
                by,
                ..TableOptions::default()
            };
            said.push(Table::from_snapshot(snapshot, &options).text());
        }
        for metric in [Metric::Bytes, Metric::Count] {
            let mut out = Vec::new();
            collapsed::write(snapshot, CollapsedOptions { view, metric }, &mut out).unwrap();
            said.push(String::from_utf8(out).unwrap());
        }
    }
    said
}

#[track_caller]
fn check_same(mut full: Snapshot, mut tallied: Snapshot) {
    let note = tallied.notes.remove(0);
    assert!(note.contains("holds tallies"), "{note}");
    assert_eq!(tallied.context.notes.remove(0), note);
    // What it is called when nothing of it is known stands in the table in any case.
    full.context.settings.clear();
    tallied.context.settings.clear();
    assert_eq!(full.context, tallied.context);
    assert_eq!(full.notes, tallied.notes);
    assert_eq!(full.totals, tallied.totals);
    assert_eq!(full.losses, tallied.losses);
    assert_eq!(full.host_losses, tallied.host_losses);
    assert_eq!(full.decode_problems, tallied.decode_problems);
    assert_eq!(full.truncated, tallied.truncated);
    assert_eq!(full.processes.len(), tallied.processes.len());
    for (full, tallied) in full.processes.iter().zip(&tallied.processes) {
        assert_eq!(full.info, tallied.info);
        assert_eq!(full.python, tallied.python);
        assert_eq!(full.coverage, tallied.coverage);
        assert_eq!(full.losses, tallied.losses);
        assert_eq!(full.hits, tallied.hits);
        assert_eq!(full.audits, tallied.audits);
        assert_eq!(full.total, tallied.total);
        assert_eq!(full.stacks, tallied.stacks);
    }
    assert_eq!(said(&full), said(&tallied));
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(u32, u64, usize),
    Free(u32, u64),
    Realloc(u32, u64, u64, usize),
    Gone(u32, GoneReason),
}

const STACKS: [&str; 6] = [
    "main:1",
    "main:1 work:2",
    "... deep:9",
    "",
    "?",
    "lost:1 wörk\u{202e}:5",
];

fn step() -> impl Strategy<Value = Step> {
    let pid = || 7_u32..10;
    prop_oneof![
        6 => (pid(), 1_u64..9, 0..STACKS.len()).prop_map(|(pid, addr, stack)| Step::Alloc(pid, addr * 64, stack)),
        3 => (pid(), 1_u64..9).prop_map(|(pid, addr)| Step::Free(pid, addr * 64)),
        2 => (pid(), 0_u64..9, 1_u64..9, 0..STACKS.len())
            .prop_map(|(pid, old, addr, stack)| Step::Realloc(pid, old * 64, addr * 64, stack)),
        1 => (pid(), prop_oneof![Just(GoneReason::Exit), Just(GoneReason::Exec)])
            .prop_map(|(pid, reason)| Step::Gone(pid, reason)),
    ]
}

fn story(steps: &[Step]) -> Story {
    let mut story = Story::default();
    for pid in 7..9 {
        story.process(pid, "python3 \x1b[2J/app.py");
    }
    for step in steps {
        match step {
            Step::Alloc(pid, addr, stack) => {
                story.alloc(*pid, *addr, 32, STACKS[*stack]);
            }
            Step::Free(pid, addr) => {
                story.free(*pid, *addr);
            }
            Step::Realloc(pid, old, addr, stack) => {
                story.realloc(*pid, *old, *addr, 100, STACKS[*stack]);
            }
            Step::Gone(pid, reason) => {
                story.gone(*pid, *reason, &counters(9, 8, 7, &[(Reason::RingFullAlloc, 2)]));
            }
        }
    }
    story
}

fn live_counters() -> Vec<ProcessCounters> {
    vec![
        ProcessCounters::new(
            Pid(7),
            BootNs(1000),
            &counters(400, 5, 6, &[(Reason::CallUnseen, 3)]),
        ),
        ProcessCounters::new(HOST, BootNs(0), &counters(0, 0, 0, &[(Reason::SiteUnknown, 1)])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tallies_give_the_snapshot_that_the_events_give(steps in prop::collection::vec(step(), 0..120)) {
        let blocks = blocks(&story(&steps), &live_counters());
        let full = replayed(
            std::iter::once(Block::Meta(meta())).chain(blocks.clone()).chain([Block::End(end())]),
            &Ended::Complete,
        );
        let tallied = read(&aggregated(&blocks, ProfileSettings::default(), Some(end())));
        check_same(full, tallied);
    }

    #[test]
    fn no_parts_make_a_report_panic(
        names in prop::collection::vec("\\PC{0,4}", 0..4),
        frames in prop::collection::vec((0_u32..5, 0_u32..5, any::<u32>()), 0..6),
        nodes in prop::collection::vec((prop::option::of(0_u32..9), 0_u32..9), 0..9),
        counted in prop::collection::vec((0_u32..12, any::<u64>()), 0..9),
        whole in any::<bool>(),
    ) {
        let tally = |number: u64| crate::profile::Tally {
            allocated_bytes: number,
            allocated_count: number,
            live_bytes: number / 2,
            ..crate::profile::Tally::default()
        };
        let mut parts = vec![
            Tallies::Counted(vec![(0, tally(1))]),
            Tallies::Names(names),
            Tallies::Frames(frames),
            Tallies::Stacks(nodes),
            Tallies::Process(Box::default()),
            Tallies::Counted(counted.into_iter().map(|(node, number)| (node, tally(number))).collect()),
        ];
        if whole {
            parts.push(Tallies::State(Box::default()));
        }
        let snapshot = replayed(parts.into_iter().map(Block::Tallies), &Ended::Complete);
        prop_assert!(!said(&snapshot).is_empty());
        prop_assert_eq!(snapshot.truncated.is_some(), !whole);
    }
}

#[test]
fn a_capture_cut_at_any_byte_says_what_it_has() {
    let mut told = Story::default();
    told.process(7, "python3 app.py");
    told.alloc(7, 64, 32, "main:1 work:2");
    let blocks = blocks(&told, &[]);
    let whole = aggregated(&blocks, ProfileSettings::default(), Some(end()));
    let state_ends = aggregated(&blocks, ProfileSettings::default(), None).len();
    for cut in 24..whole.len() {
        let snapshot = read(&whole[..cut]);
        let why = snapshot.truncated.unwrap_or_else(|| panic!("cut at {cut}"));
        if cut < state_ends.min(whole.len()) - 200 {
            assert!(
                why.contains("cut") || why.contains("no whole tallies"),
                "cut at {cut}: {why}"
            );
        }
        assert!(snapshot.totals.tally.allocated_count <= 1);
    }
    assert_eq!(read(&whole).truncated, None);
}

#[test]
fn the_last_tallies_of_a_recorder_that_died_say_of_when_they_are() {
    let mut told = Story::default();
    told.process(7, "python3 app.py");
    told.alloc(7, 64, 32, "main:1");
    let blocks = blocks(&told, &live_counters());
    let snapshot = read(&aggregated(&blocks, ProfileSettings::default(), None));
    let why = snapshot.truncated.unwrap();
    assert!(why.contains("4 s after its start"), "{why}");
    assert_eq!(snapshot.totals.duration_ns, 4_000_000_000);
    assert_eq!(snapshot.totals.tally.allocated_count, 1);
    // Counters of a process that no event told of yet are left for later.
    assert_eq!(snapshot.processes.len(), 1);
    assert_eq!(snapshot.processes[0].losses.produced.unwrap().allocs, 400);
}

#[test]
fn tallies_that_did_not_fit_are_told() {
    let mut blocks = vec![Block::Meta(Meta {
        aggregated: true,
        ..meta()
    })];
    blocks.push(Block::Tallies(Tallies::State(Box::new(
        crate::capture::tallies::State {
            at: MonotonicNs(3_000_000_001),
            ..Default::default()
        },
    ))));
    blocks.push(Block::End(End {
        reason: EndReason::Full,
        unwritten: ByteCount(0),
        ..end()
    }));
    let snapshot = replayed(blocks, &Ended::Complete);
    assert!(
        snapshot
            .notes
            .iter()
            .any(|note| note.contains("3 s after its start"))
    );
}
