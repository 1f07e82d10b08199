//! Audits of made-up processes: compared at the right moment, by class, or not at all.

use super::*;
use crate::{
    ingest::event::BlockKind,
    profile::{
        Profile, ProfileSettings,
        audit::{ByClass, PoolAudit},
    },
    units::{BootNs, MonotonicNs, Pid},
};

/// What `Story::process` says.
const START: BootNs = BootNs(1000);

/// The nth event of a story is at n milliseconds; this is a little later.
fn after(events: u64) -> MonotonicNs {
    MonotonicNs(events * 1_000_000 + 10)
}

/// An audit that found so many blocks of 16 and of 32 bytes.
fn found(began: MonotonicNs, ended: MonotonicNs, used: [u64; 2]) -> PoolAudit {
    let mut by_class = ByClass::default();
    by_class[..2].copy_from_slice(&used);
    PoolAudit {
        pid: Pid(7),
        start: START,
        began,
        ended,
        since_start: true,
        complete: true,
        pools: 2,
        used: by_class,
    }
}

/// The audits of a story's only process; each is given before the events that follow `at` events.
fn audited(story: &Story, audits: &[(usize, PoolAudit)]) -> crate::profile::Audits {
    let mut profile = Profile::new(ProfileSettings::default());
    for (index, event) in story.events.iter().enumerate() {
        for (_, audit) in audits.iter().filter(|(at, _)| *at == index) {
            profile.audit(audit.clone());
        }
        profile.apply(event);
    }
    for (_, audit) in audits.iter().filter(|(at, _)| *at >= story.events.len()) {
        profile.audit(audit.clone());
    }
    profile.finish();
    only(&profile.snapshot()).audits.clone()
}

/// Start, two blocks of 16 bytes, one of 32, one of 16 freed, one of 600: events at 1 to 6 ms.
fn story() -> Story {
    let mut story = Story::default();
    story.process(7, "python3 a.py");
    story
        .alloc(7, 0x10, 16, "")
        .alloc(7, 0x20, 16, "")
        .alloc(7, 0x40, 32, "");
    story.free(7, 0x10).alloc(7, 0x1000, 600, "");
    story
}

#[track_caller]
fn check(audit: (usize, PoolAudit), believed: u64, difference: i64, apart: u64, drift: u64) {
    let audits = audited(&story(), &[audit]);
    assert_eq!(audits.made, 1);
    let last = audits.last.unwrap();
    assert_eq!(
        (last.believed(), last.difference(), last.apart(), last.drift()),
        (believed, difference, apart, drift)
    );
}

#[test]
fn an_audit_is_compared_with_the_blocks_that_lived_then() {
    // Whenever it was written: before the events that were still in the ring, or after the last.
    for at in [1, 3, 4] {
        check((at, found(after(4), after(4), [2, 1])), 3, 0, 0, 0);
    }
    check((6, found(after(6), after(6), [1, 1])), 2, 0, 0, 0);
    check((1, found(after(1), after(1), [0, 0])), 0, 0, 0, 0);
}

#[test]
fn what_changes_while_the_pools_are_read_is_told() {
    // From one block of 16 bytes to two, and one of 32.
    check((2, found(after(2), after(4), [1, 1])), 1, -1, 1, 2);
    check((2, found(after(2), after(4), [1, 0])), 1, 0, 0, 2);
}

#[test]
fn differences_of_classes_do_not_make_up_for_each_other() {
    let audits = audited(&story(), &[(4, found(after(4), after(4), [1, 2]))]);
    let last = audits.last.as_ref().unwrap();
    assert_eq!((last.difference(), last.apart()), (0, 2));
    assert!((last.percent() - 200.0 / 3.0).abs() < 1e-9 && audits.is_far_off());
    assert_eq!(last.worst().map(|class| class.difference().abs()), Some(1));
    let old = PoolAudit {
        since_start: false,
        ..found(after(4), after(4), [1, 2])
    };
    assert!(!audited(&story(), &[(4, old)]).is_far_off());
}

#[test]
fn what_changed_meanwhile_is_no_reason_to_warn() {
    let changing = audited(&story(), &[(2, found(after(2), after(4), [1, 1]))]);
    let last = changing.last.as_ref().unwrap();
    assert!(last.percent() > 1.0 && !changing.is_far_off());
}

#[test]
fn the_last_audit_and_the_worst_are_kept() {
    let wrong = found(after(4), after(4), [4, 1]);
    let right = found(after(5), after(5), [1, 1]);
    let audits = audited(&story(), &[(2, wrong), (4, right)]);
    assert_eq!(audits.made, 2);
    assert!((audits.worst_percent - 40.0).abs() < 1e-9);
    assert_eq!(audits.last.unwrap().apart(), 0);
}

#[test]
fn an_audit_of_another_process_or_after_the_end_is_not_compared() {
    let mut story = story();
    story.exit(7, &counters(4, 1, 0, &[]));
    let audit = found(after(4), after(4), [2, 1]);
    let other = PoolAudit {
        start: BootNs(1),
        ..audit.clone()
    };
    let partial = PoolAudit {
        complete: false,
        ..audit.clone()
    };
    let late = found(after(7), after(7), [2, 1]);
    let audits = audited(
        &story,
        &[(4, audit), (4, other), (5, late.clone()), (5, partial), (9, late)],
    );
    assert_eq!((audits.made, audits.incomplete), (1, 1));
    assert_eq!(audits.last.unwrap().apart(), 0);
}

#[test]
fn blocks_are_counted_by_class_through_moves_and_lost_frees() {
    let mut story = Story::default();
    story.process(7, "python3 a.py").alloc(7, 0x10, 16, "");
    // Grown within the pools, grown out of them; a block made where another was not seen to be freed; a free of
    // libc's malloc where a pool block stood.
    story
        .realloc(7, 0x10, 0x20, 20, "")
        .realloc(7, 0, 0x100, 30, "")
        .realloc(7, 0x100, 0x100, 600, "");
    story.alloc(7, 0x300, 16, "").alloc(7, 0x300, 32, "");
    story.alloc(7, 0x400, 16, "").free_by(7, 7, BlockKind::Raw, 0x400);
    let end = after(story.events.len() as u64);
    let audits = audited(&story, &[(1, found(end, end, [0, 2]))]);
    assert_eq!(audits.last.unwrap().apart(), 0);
}
