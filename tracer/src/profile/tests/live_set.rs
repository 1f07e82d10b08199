//! What is allocated, live, freed, temporary and at the peak.

use super::*;
use crate::ingest::event::BlockKind;

#[track_caller]
fn check(story: &Story, view: View, expected: (u64, u64)) {
    assert_eq!(only(&story.snapshot()).total.of(view), expected, "{view:?}");
}

#[test]
fn live_is_what_was_allocated_and_not_freed() {
    let mut story = Story::default();
    story.process(7, "python3 app.py");
    story
        .alloc(7, 0x100, 64, "main:1 work:5")
        .alloc(7, 0x200, 32, "main:1 work:5")
        .alloc(7, 0x300, 16, "main:2");
    story.free(7, 0x100);
    check(&story, View::Allocated, (112, 3));
    check(&story, View::InUse, (48, 2));
    check(&story, View::Leaked, (48, 2));
    check(&story, View::Peak, (112, 3));
    let snapshot = story.snapshot();
    let stacks = by_stack(&snapshot, only(&snapshot));
    assert_eq!(stacks[0].0, "main (/srv/app.py:1);work (/srv/app.py:5)");
    assert_eq!(stacks[0].1.of(View::InUse), (32, 1));
    assert_eq!(stacks[1].1.of(View::InUse), (16, 1));
}

#[test]
fn the_peak_is_what_each_stack_held_when_the_process_held_the_most() {
    let mut story = Story::default();
    story
        .alloc(7, 0x100, 100, "a:1")
        .alloc(7, 0x200, 50, "b:1")
        .free(7, 0x100)
        .alloc(7, 0x300, 60, "c:1");
    let snapshot = story.snapshot();
    let peaks: Vec<_> = by_stack(&snapshot, only(&snapshot))
        .iter()
        .map(|(_, tally)| tally.of(View::Peak))
        .collect();
    assert_eq!(peaks, [(100, 1), (50, 1), (0, 0)]);
    assert_eq!(snapshot.totals.peak_bytes, 150);
}

#[test]
fn a_block_is_temporary_if_its_thread_allocated_nothing_else_before_it_was_freed() {
    let mut story = Story::default();
    let pool = BlockKind::Pool;
    story
        .alloc_by(7, 1, pool, 0x100, 16, "t:1")
        .alloc_by(7, 2, pool, 0x200, 32, "t:2");
    // Another thread's allocation and other frees do not matter.
    story.free_by(7, 9, pool, 0x900).free_by(7, 1, pool, 0x100);
    // Freed by another thread: not temporary, as for memray.
    story.free_by(7, 1, pool, 0x200);
    // Another allocation of the same thread lies between.
    story
        .alloc_by(7, 1, pool, 0x300, 64, "t:3")
        .alloc_by(7, 1, pool, 0x400, 128, "t:4")
        .free_by(7, 1, pool, 0x300);
    story.free_by(7, 1, pool, 0x400);
    check(&story, View::Temporary, (16 + 128, 2));
}

#[test]
fn a_realloc_is_one_free_and_one_allocation() {
    let mut story = Story::default();
    story
        .alloc(7, 0x100, 64, "a:1")
        .realloc(7, 0x100, 0x500, 1000, "b:1")
        .realloc(7, 0, 0x600, 20, "c:1");
    check(&story, View::Allocated, (64 + 1008 + 32, 3));
    check(&story, View::InUse, (1008 + 32, 2));
    // The old block is the thread's last allocation.
    check(&story, View::Temporary, (64, 1));
    let snapshot = story.snapshot();
    assert_eq!(
        (
            only(&snapshot).losses.delivered.allocs,
            only(&snapshot).losses.delivered.reallocs
        ),
        (1, 2)
    );
    assert_eq!(snapshot.losses.unmatched_frees, 0);
}

#[test]
fn a_pool_block_reallocated_in_place_keeps_its_size() {
    let mut story = Story::default();
    story
        .alloc(7, 0x100, 64, "a:1")
        .realloc(7, 0x100, 0x100, 50, "b:1");
    check(&story, View::InUse, (64, 1));
    let snapshot = story.snapshot();
    assert_eq!(only(&snapshot).losses.stale_blocks, 0);
    assert_eq!(by_stack(&snapshot, only(&snapshot))[1].1.of(View::InUse), (64, 1));
}

#[test]
fn a_free_that_matches_nothing_is_counted_and_changes_nothing() {
    let mut story = Story::default();
    story.alloc(7, 0x100, 64, "a:1").free(7, 0x999);
    check(&story, View::InUse, (64, 1));
    let losses = only(&story.snapshot()).losses.clone();
    assert_eq!(losses.unmatched_frees, 1);
    assert!(!losses.is_lossy());
}

#[test]
fn a_pool_free_of_a_raw_block_leaves_it_to_the_raw_free() {
    let mut story = Story::default();
    story
        .alloc_by(7, 7, BlockKind::Raw, 0x100, 1000, "a:1")
        .free_by(7, 7, BlockKind::Pool, 0x100);
    check(&story, View::InUse, (1000, 1));
    story.free_by(7, 7, BlockKind::Raw, 0x100);
    check(&story, View::InUse, (0, 0));
    assert_eq!(only(&story.snapshot()).losses.unmatched_frees, 0);
}

#[test]
fn a_lost_free_is_found_out_and_counted() {
    let mut story = Story::default();
    // The address is allocated again.
    story.alloc(7, 0x100, 64, "a:1").alloc(7, 0x100, 32, "b:1");
    // A raw free where a pool block stood.
    story
        .alloc(7, 0x200, 16, "c:1")
        .free_by(7, 7, BlockKind::Raw, 0x200);
    check(&story, View::InUse, (32, 1));
    check(&story, View::Temporary, (0, 0));
    let losses = only(&story.snapshot()).losses.clone();
    assert_eq!((losses.stale_blocks, losses.unmatched_frees), (2, 1));
    assert!(losses.is_lossy());
}

#[test]
fn what_a_process_held_when_it_exited_stays_live_and_is_held_by_nobody() {
    let mut story = Story::default();
    for pid in [7, 8] {
        story.process(pid, "python3 app.py").alloc(pid, 0x100, 100, "a:1");
        story.exit(pid, &counters(1, 0, 0, &[]));
    }
    let snapshot = story.snapshot();
    assert_eq!(snapshot.totals.tally.of(View::InUse), (200, 2));
    assert_eq!(snapshot.totals.peak_bytes, 100);
    assert_eq!(snapshot.processes[1].total.of(View::Peak), (100, 1));
    assert!(!snapshot.processes[0].is_lossy());
}
