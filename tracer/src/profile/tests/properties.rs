//! Properties over random histories: sums, and independence of processes.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::{
    ingest::event::{BlockKind, Event},
    profile::{Metric, Profile, ProfileSettings},
    report::{
        collapsed::{self, CollapsedOptions},
        rows::{By, Sort, rows},
        stats::Stats,
        table::{Table, TableOptions},
    },
};

#[derive(Clone, Debug)]
enum Step {
    Alloc {
        addr: u64,
        size: u64,
        stack: usize,
    },
    Free {
        addr: u64,
        kind: BlockKind,
    },
    Realloc {
        old: u64,
        addr: u64,
        requested: u64,
        stack: usize,
    },
    Exit,
}

const STACKS: [&str; 6] = [
    "main:1",
    "main:1 work:2",
    "main:1 work:2 main:1 work:3",
    "",
    "?",
    "... deep:9 lost:1",
];

fn step() -> impl Strategy<Value = Step> {
    let addr = || (1_u64..12).prop_map(|slot| slot * 16);
    let kind = prop_oneof![Just(BlockKind::Any), Just(BlockKind::Pool), Just(BlockKind::Raw)];
    prop_oneof![
        6 => (addr(), 1_u64..2000, 0..STACKS.len()).prop_map(|(addr, size, stack)| Step::Alloc { addr, size, stack }),
        4 => (addr(), kind).prop_map(|(addr, kind)| Step::Free { addr, kind }),
        2 => (addr(), addr(), 0_u64..1000, 0..STACKS.len())
            .prop_map(|(old, addr, requested, stack)| Step::Realloc { old, addr, requested, stack }),
        1 => Just(Step::Exit),
    ]
}

fn tell(pid: u32, steps: &[Step]) -> Vec<Event<'static>> {
    let mut story = Story::default();
    for (index, step) in steps.iter().enumerate() {
        match *step {
            Step::Alloc { addr, size, stack } => {
                let kind = if size > 512 {
                    BlockKind::Raw
                } else {
                    BlockKind::Pool
                };
                story.alloc_by(
                    pid,
                    pid + u32::from(index % 3 == 0),
                    kind,
                    addr,
                    size,
                    STACKS[stack],
                );
            }
            Step::Free { addr, kind } => {
                story.free_by(pid, pid, kind, addr);
            }
            Step::Realloc {
                old,
                addr,
                requested,
                stack,
            } => {
                story.realloc(pid, old, addr, requested, STACKS[stack]);
            }
            Step::Exit => {
                story.exit(pid, &counters(0, 0, 0, &[]));
            }
        }
    }
    story.events
}

fn snapshot_of(events: &[Event<'_>]) -> Snapshot {
    let mut profile = Profile::new(ProfileSettings::default());
    for event in events {
        profile.apply(event);
    }
    profile.snapshot()
}

fn collapsed(snapshot: &Snapshot, view: View, metric: Metric) -> String {
    let mut out = Vec::new();
    collapsed::write(snapshot, CollapsedOptions { view, metric }, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Bytes and blocks allocated, as the events say; a realloc's size follows from the profile, so only its count.
fn allocated(events: &[Event<'_>]) -> (u64, u64) {
    events.iter().fold((0, 0), |(bytes, count), event| match event {
        Event::Alloc(alloc) => (bytes + alloc.size.0, count + 1),
        Event::Realloc(_) => (bytes, count + 1),
        _ => (bytes, count),
    })
}

/// Any number, often one at an edge.
fn hostile_number() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..4, Just(u64::MAX), Just(1 << 63), any::<u64>()]
}

/// Events that no kernel side would send.
fn hostile_event() -> impl Strategy<Value = Event<'static>> {
    let numbers = (
        hostile_number(),
        hostile_number(),
        hostile_number(),
        hostile_number(),
        0_u8..9,
    );
    numbers.prop_map(|(a, b, c, d, which)| {
        let mut story = Story::default();
        let pid = if a % 2 == 0 { 0 } else { u32::MAX };
        match which {
            0 | 1 => story.alloc_id(pid, 1, BlockKind::Raw, b, c, d),
            2 => story.free_by(pid, 1, BlockKind::Raw, b),
            3 => story.realloc(pid, b, c, d.min(u64::MAX - 8), ""),
            4 => story.process_at(pid, b, "x"),
            5 => story.exit(pid, &counters(b, c, d, &[])),
            6 => story.code(pid, b, "", ""),
            _ => {
                story.stack(pid, "main:1 main:2");
                story.process(pid, "")
            }
        };
        let place = usize::try_from(b).unwrap_or(0) % story.events.len();
        story.events.swap_remove(place)
    })
}

proptest! {
    #[test]
    fn no_events_make_a_report_panic(
        events in proptest::collection::vec(hostile_event(), 0..60),
        at in hostile_number(),
    ) {
        let mut events = events;
        for event in &mut events {
            if let Event::Alloc(alloc) = event {
                alloc.time = crate::units::MonotonicNs(at);
            }
        }
        let snapshot = snapshot_of(&events);
        for view in View::ALL {
            let options = TableOptions { view, width: Some(1), ..TableOptions::default() };
            prop_assert!(Table::from_snapshot(&snapshot, &options).text().contains("Losses:"));
            prop_assert!(!collapsed(&snapshot, view, Metric::Bytes).contains("\n\n"));
        }
        prop_assert!(Stats::from_snapshot(&snapshot).json().is_ok());
    }

    #[test]
    fn the_sum_over_report_lines_is_the_sum_over_events(steps in proptest::collection::vec(step(), 0..150)) {
        let events = tell(7, &steps);
        let snapshot = snapshot_of(&events);
        let (bytes, count) = allocated(&events);
        let totals = snapshot.totals.tally;
        prop_assert_eq!(totals.allocated_count, count);
        if !steps.iter().any(|step| matches!(step, Step::Realloc { .. })) {
            prop_assert_eq!(totals.allocated_bytes, bytes);
        }
        for view in View::ALL {
            for by in [By::Line, By::Function, By::File, By::Process] {
                let rows = rows(&snapshot, view, by, Sort::OwnBytes);
                let own = rows.iter().fold((0, 0), |sum, row| (sum.0 + row.own_bytes, sum.1 + row.own_count));
                prop_assert_eq!(own, totals.of(view), "{:?} {:?}", view, by);
                prop_assert!(rows.iter().all(|row| row.own_bytes <= row.total_bytes));
                prop_assert!(rows.iter().all(|row| row.total_bytes <= totals.of(view).0));
            }
            for metric in [Metric::Bytes, Metric::Count] {
                let text = collapsed(&snapshot, view, metric);
                let sum: u64 = text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
                prop_assert_eq!(sum, totals.value(view, metric));
            }
        }
    }

    #[test]
    fn live_is_allocated_minus_freed_and_no_more_than_the_peak(steps in proptest::collection::vec(step(), 0..150)) {
        let events = tell(7, &steps);
        let snapshot = snapshot_of(&events);
        for process in &snapshot.processes {
            let total = process.total;
            prop_assert!(total.live_bytes <= total.peak_bytes);
            prop_assert!(total.peak_bytes <= total.allocated_bytes);
            prop_assert!(total.temporary_count <= total.freed_count());
            let delivered = process.losses.delivered;
            prop_assert_eq!(total.allocated_count, delivered.allocs + delivered.reallocs);
            // What is freed, was freed by an event or found out to be stale.
            prop_assert!(total.freed_count() <= delivered.frees + delivered.reallocs + process.losses.stale_blocks);
        }
    }

    #[test]
    fn the_order_between_processes_does_not_matter(
        first in proptest::collection::vec(step(), 0..60),
        second in proptest::collection::vec(step(), 0..60),
        order in proptest::collection::vec(any::<bool>(), 0..400),
    ) {
        let (first, second) = (tell(7, &first), tell(8, &second));
        let apart = snapshot_of(&[first.clone(), second.clone()].concat());
        let (mut first, mut second) = (first.into_iter(), second.into_iter());
        let mut mixed = Vec::new();
        for from_first in order {
            mixed.extend(if from_first { first.next() } else { second.next() });
        }
        mixed.extend(first.chain(second));
        let mixed = snapshot_of(&mixed);
        for view in View::ALL {
            prop_assert_eq!(collapsed(&mixed, view, Metric::Bytes), collapsed(&apart, view, Metric::Bytes));
            prop_assert_eq!(
                rows(&mixed, view, By::Line, Sort::OwnBytes),
                rows(&apart, view, By::Line, Sort::OwnBytes)
            );
        }
        let losses = |snapshot: &Snapshot| -> HashMap<_, _> {
            snapshot.processes.iter().map(|process| (process.info.key, process.losses.clone())).collect()
        };
        prop_assert_eq!(losses(&mixed), losses(&apart));
    }
}
