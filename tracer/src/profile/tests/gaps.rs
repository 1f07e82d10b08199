//! Large blocks that were traced a part of the time (heap mode): what is freed meanwhile, and what was not seen.

use tracer_ebpf::site::group;

use super::*;
use crate::{
    ingest::{HeapAudit, LibcBlock, event::BlockKind},
    mode::Mode,
    profile::{GroupGap, Profile, ProfileSettings},
    units::{BootNs, MonotonicNs, Pid},
};

/// The nth event of a story is at n milliseconds.
fn at(milliseconds: u64) -> MonotonicNs {
    MonotonicNs(milliseconds * 1_000_000)
}

/// Process 7 allocates two large blocks, at 2 and 3 ms. Then the group is off from 4 ms on, and on again or not; the audit
/// at 6 ms finds these blocks gone; at 10 ms there is another block.
fn story(to: Option<MonotonicNs>, gone: &[u64]) -> ProcessSummary {
    let mut story = Story::default();
    story
        .process(7, "python3 app.py")
        .alloc_by(7, 7, BlockKind::Raw, 0x1000, 1000, "main:1 a:2")
        .alloc_by(7, 7, BlockKind::Raw, 0x2000, 3000, "main:1 b:2");
    let mut profile = Profile::new(ProfileSettings::default());
    profile.set_mode(Mode::Heap);
    for event in &story.events {
        profile.apply(event);
    }
    profile.gap(GroupGap {
        group: group::LARGE,
        from: at(4),
        to: None,
    });
    profile.heap_audit(HeapAudit {
        pid: Pid(7),
        start: BootNs(1000),
        began: at(6),
        ended: at(6),
        since_start: true,
        complete: true,
        pool_bytes: 16384,
        gone: gone.to_vec(),
        ..HeapAudit::default()
    });
    if let Some(to) = to {
        profile.gap(GroupGap {
            group: group::LARGE,
            from: at(4),
            to: Some(to),
        });
    }
    let mut later = Story::default();
    later.stack(7, "main:1 c:3");
    let sent = later.events.len();
    for _ in 0..9 {
        later.process_at(9, 5, "idle");
    }
    later.alloc_by(7, 7, BlockKind::Raw, 0x3000, 500, "main:1 c:3");
    for event in later.events[..sent].iter().chain(later.events.last()) {
        profile.apply(event);
    }
    profile.finish();
    let snapshot = profile.snapshot();
    only(&snapshot).clone()
}

#[test]
fn blocks_that_were_freed_in_a_gap_are_gone_with_the_next_audit() {
    let process = story(Some(at(8)), &[0x1000, 0x9000]);
    assert_eq!((process.total.live_bytes, process.total.live_count), (3500, 2));
    assert!(process.is_partial);
    let process = story(Some(at(8)), &[]);
    assert_eq!((process.total.live_bytes, process.total.live_count), (4500, 3));
}

#[test]
fn what_was_allocated_is_scaled_by_the_time_that_was_not_looked_at() {
    // Nine milliseconds of life, of which four were not looked at.
    let process = story(Some(at(8)), &[]);
    assert_eq!(process.total.allocated_bytes, 1800 + 5400 + 900);
    // Six were not.
    let process = story(None, &[]);
    assert_eq!(process.total.allocated_bytes, 3000 + 9000 + 1500);
}

/// What an audit finds: when it began, in milliseconds, which blocks are gone, and address and bytes of those that are mappings.
type Found<'a> = (u64, &'a [u64], &'a [(u64, u64)]);

/// Large blocks are not traced from 2 ms on, mappings are told of. The story of process 7 goes on, event by event, one each
/// millisecond from 2 ms on, and then there are audits.
fn with_mappings(
    tell: impl FnOnce(&mut Story),
    audits: &[Found<'_>],
) -> (ProcessSummary, Vec<(String, u64)>) {
    let mut story = Story::default();
    story.process(7, "python3 app.py");
    tell(&mut story);
    let mut profile = Profile::new(ProfileSettings::default());
    profile.set_mode(Mode::Heap);
    let mut events = story.events.iter();
    profile.apply(events.next().unwrap());
    profile.gap(GroupGap {
        group: group::LARGE,
        from: at(2),
        to: None,
    });
    for event in events {
        profile.apply(event);
    }
    for (began, gone, mapped) in audits {
        profile.heap_audit(HeapAudit {
            pid: Pid(7),
            start: BootNs(1000),
            began: at(*began),
            ended: at(*began),
            since_start: true,
            complete: true,
            pool_bytes: 16384,
            gone: gone.to_vec(),
            mapped: mapped
                .iter()
                .map(|&(addr, bytes)| LibcBlock { addr, bytes })
                .collect(),
            ..HeapAudit::default()
        });
    }
    profile.finish();
    let snapshot = profile.snapshot();
    let process = only(&snapshot).clone();
    let stacks = by_stack(&snapshot, &process).into_iter();
    let held = stacks.filter(|(_, tally)| tally.live_bytes > 0);
    let mut lines: Vec<(String, u64)> = held.map(|(stack, tally)| (stack, tally.live_bytes)).collect();
    lines.sort();
    (process, lines)
}

const MIB: u64 = 1 << 20;

#[test]
fn blocks_of_a_gap_that_are_mappings_are_known() {
    let tell = |story: &mut Story| {
        story
            .mapping(7, MIB, 256, "main:1 a:2")
            .mapping(7, 2 * MIB, 256, "main:1 b:2")
            .mapping(7, 3 * MIB, 256, "main:1 arena:3");
    };
    let block = |mib: u64| (mib * MIB + 16, MIB - 16);
    let (process, lines) = with_mappings(tell, &[(9, &[], &[block(1), block(2)])]);
    assert_eq!(process.total.live_count, 2);
    let line = |name: &str, bytes| (format!("main (/srv/app.py:1);{name} (/srv/app.py:2)"), bytes);
    assert_eq!(lines, [line("a", MIB - 16), line("b", MIB - 16)]);
    // What a mapping tells of is what was allocated at least.
    assert_eq!(process.total.allocated_bytes, 2 * MIB - 32);
    // It grows where it is, and goes.
    let audits: [Found<'_>; 3] = [
        (9, &[], &[block(1), block(2)]),
        (12, &[], &[(MIB + 16, 3 * MIB - 16)]),
        (15, &[2 * MIB + 16], &[]),
    ];
    let (_, lines) = with_mappings(tell, &audits);
    assert_eq!(lines, [line("a", 3 * MIB - 16)]);
    // What two readings did not find was none.
    let audits: [Found<'_>; 3] = [(9, &[], &[]), (12, &[], &[]), (15, &[], &[block(1)])];
    let (process, _) = with_mappings(tell, &audits);
    assert_eq!(process.total.live_count, 0);
}

#[test]
fn a_block_of_a_mapping_is_freed_by_whoever_frees_it() {
    for kind in [BlockKind::Raw, BlockKind::Any, BlockKind::Domain] {
        let mut profile = Profile::new(ProfileSettings::default());
        profile.set_mode(Mode::Heap);
        let mut story = Story::default();
        story
            .process(7, "python3 app.py")
            .mapping(7, MIB, 256, "main:1 a:2")
            .free_by(7, 7, kind, MIB + 16);
        let (free, before) = story.events.split_last().unwrap();
        for event in before {
            profile.apply(event);
        }
        profile.heap_audit(HeapAudit {
            pid: Pid(7),
            start: BootNs(1000),
            began: MonotonicNs(at(2).0 + 1),
            ended: MonotonicNs(at(2).0 + 1),
            mapped: vec![LibcBlock {
                addr: MIB + 16,
                bytes: MIB - 16,
            }],
            ..HeapAudit::default()
        });
        profile.apply(free);
        profile.finish();
        let snapshot = profile.snapshot();
        assert_eq!(only(&snapshot).total.live_count, 0, "{kind:?}");
        assert_eq!(only(&snapshot).losses.unmatched_frees, 0, "{kind:?}");
    }
}

#[test]
fn what_an_extension_tells_of_is_not_counted_again() {
    let tell = |story: &mut Story| {
        let stack = "main:1 a:2";
        story
            .mapping(7, MIB, 256, stack)
            .alloc_by(7, 7, BlockKind::Domain, MIB + 16, MIB - 100, stack);
    };
    let (process, lines) = with_mappings(tell, &[(9, &[], &[(MIB + 16, MIB - 16)])]);
    assert_eq!(
        lines.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(),
        [MIB - 100]
    );
    assert_eq!(
        (process.total.allocated_bytes, process.total.allocated_count),
        (MIB - 100, 1)
    );
}
