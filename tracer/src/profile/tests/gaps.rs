//! Large blocks that were traced a part of the time (heap mode): what is freed meanwhile, and what was not seen.

use tracer_ebpf::site::group;

use super::*;
use crate::{
    ingest::{HeapAudit, event::BlockKind},
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
