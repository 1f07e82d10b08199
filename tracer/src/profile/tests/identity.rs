//! Which process and which stack an event belongs to, whatever is lost or reused; and what is said about losses.

use tracer_ebpf::reason::Reason;

use super::*;
use crate::{
    ingest::event::{BlockKind, Counters, GoneReason},
    profile::{End, Operations, Profile, ProfileSettings},
    units::{BootNs, Pid},
};

#[test]
fn an_exec_begins_another_incarnation_with_an_empty_live_set() {
    let mut story = Story::default();
    story.process(7, "python3 old.py").alloc(7, 0x100, 64, "a:1");
    story
        .gone(7, GoneReason::Exec, &Counters::default())
        .process(7, "python3 new.py");
    story.alloc(7, 0x100, 32, "b:1").free(7, 0x100);
    let snapshot = story.snapshot();
    let shown: Vec<_> = snapshot
        .processes
        .iter()
        .map(|process| {
            (
                process.info.name.as_str(),
                process.info.key.incarnation,
                process.info.end,
                process.total.live_bytes,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [("old.py", 0, End::Exec, 64), ("new.py", 1, End::Running, 0)]
    );
    assert_eq!(snapshot.losses.stale_blocks, 0);
}

#[test]
fn a_reused_pid_is_another_process_even_if_the_exit_was_lost() {
    let mut story = Story::default();
    story
        .process_at(7, 1000, "python3 a.py")
        .alloc(7, 0x100, 64, "a:1");
    story
        .process_at(7, 2000, "python3 a.py")
        .alloc(7, 0x100, 64, "a:1");
    let snapshot = story.snapshot();
    assert_eq!(snapshot.processes.len(), 2);
    assert_eq!(snapshot.processes[0].info.end, End::Unseen);
    assert_eq!(snapshot.processes[1].info.key.start, Some(BootNs(2000)));
    assert_eq!(snapshot.processes[1].info.key.incarnation, 0);
    assert_eq!(snapshot.losses.stale_blocks, 0);
    assert_eq!(snapshot.notes.len(), 1);
}

#[test]
fn a_process_event_that_comes_late_or_twice_describes_the_process_that_is_there() {
    let mut story = Story::default();
    story
        .alloc(7, 0x100, 64, "a:1")
        .process(7, "python3 a.py")
        .process(7, "python3 a.py");
    let snapshot = story.snapshot();
    assert_eq!(only(&snapshot).info.name, "a.py");
    assert_eq!(only(&snapshot).info.key.start, Some(BootNs(1000)));
    assert_eq!(only(&snapshot).python.as_deref(), Some("3.10.13"));
    assert_eq!(snapshot.notes, Vec::<String>::new());
}

#[test]
fn a_process_that_was_never_described_is_shown_and_noted() {
    let mut story = Story::default();
    story.alloc(7, 0x100, 64, "a:1");
    let snapshot = story.snapshot();
    assert_eq!(only(&snapshot).info.key.start, None);
    assert_eq!(only(&snapshot).info.name, "[unknown process]");
    assert_eq!(snapshot.notes.len(), 1);
}

#[test]
fn a_stack_that_comes_late_takes_over_what_named_it_before() {
    let mut story = Story::default();
    let mut early = Story::default();
    let id = early.stack(7, "main:1 late:2");
    story.alloc_id(7, 7, BlockKind::Pool, 0x100, 64, id);
    let before = story.snapshot();
    assert_eq!(by_stack(&before, only(&before))[0].0, "[unknown stack]");
    assert_eq!(before.losses.unknown_stacks, 1);
    assert!(only(&before).is_lossy());
    story.events.extend(early.events);
    story.alloc(7, 0x200, 64, "main:1 late:2");
    let after = story.snapshot();
    let stacks = by_stack(&after, only(&after));
    assert_eq!(stacks.len(), 1);
    assert_eq!(stacks[0].0, "main (/srv/app.py:1);late (/srv/app.py:2)");
    assert_eq!(stacks[0].1.of(View::InUse), (128, 2));
    assert_eq!(after.losses.unknown_stacks, 0);
}

#[test]
fn a_stack_id_that_means_something_new_leaves_the_old_tally_alone() {
    let mut story = Story::default();
    story.alloc(7, 0x100, 64, "a:1");
    let mut other = Story::default();
    // The same code address, and so the same stack, with another name.
    other.code(7, super::super::testing::number("a"), "renamed", "/srv/other.py");
    story.events.append(&mut other.events);
    other.stack(7, "a:1");
    story
        .events
        .extend(other.events.split_off(other.events.len() - 1));
    story.alloc(7, 0x200, 32, "a:1");
    let snapshot = story.snapshot();
    let stacks: Vec<_> = by_stack(&snapshot, only(&snapshot))
        .into_iter()
        .map(|(text, tally)| (text, tally.live_bytes))
        .collect();
    assert_eq!(
        stacks,
        [
            ("a (/srv/app.py:1)".to_owned(), 64),
            ("renamed (/srv/other.py:1)".to_owned(), 32)
        ]
    );
}

#[test]
fn stacks_of_equal_frames_are_one_whatever_their_ids() {
    let mut story = Story::default();
    story
        .alloc(7, 0x100, 64, "")
        .alloc(7, 0x200, 64, "")
        .alloc(7, 0x300, 64, "?")
        .alloc(7, 0x400, 64, "... deep:1");
    let snapshot = story.snapshot();
    let stacks: Vec<_> = by_stack(&snapshot, only(&snapshot))
        .into_iter()
        .map(|(text, _)| text)
        .collect();
    assert_eq!(
        stacks,
        [
            "[no Python frame]",
            "[unreadable]",
            "[truncated];deep (/srv/app.py:1)"
        ]
    );
}

#[test]
fn delivered_and_lost_make_up_what_was_produced() {
    let mut story = Story::default();
    story
        .process(7, "python3 a.py")
        .alloc(7, 0x100, 64, "a:1")
        .free(7, 0x100);
    let lost = [(Reason::RingFullAlloc, 4), (Reason::RingFullFree, 2)];
    story.exit(7, &counters(5, 3, 0, &lost));
    let snapshot = story.snapshot();
    let losses = &only(&snapshot).losses;
    assert_eq!(
        losses.missing(),
        Some(Operations {
            allocs: 4,
            frees: 2,
            reallocs: 0,
            faults: 0
        })
    );
    assert_eq!(losses.total(), 6);
    assert!(losses.is_lossy());
    assert_eq!(snapshot.totals.hits.count, 16);
}

#[test]
fn counters_of_a_running_process_count_and_host_losses_are_added() {
    let mut story = Story::default();
    story.process(7, "python3 a.py").alloc(7, 0x100, 64, "a:1");
    let mut profile = story.profile();
    assert_eq!(only(&profile.snapshot()).losses.produced, None);
    profile.set_counters(Pid(7), BootNs(0), counters(1, 0, 0, &[]));
    let mut host = [0; tracer_ebpf::reason::REASONS];
    host[Reason::SiteUnknown as usize] = 9;
    profile.set_host_losses(host);
    let snapshot = profile.snapshot();
    assert!(!only(&snapshot).is_lossy());
    assert_eq!(snapshot.losses.total(), 9);
}

#[test]
fn a_full_table_is_said_and_loses_no_bytes() {
    let mut story = Story::default();
    story
        .alloc(7, 0x100, 64, "a:1")
        .alloc(7, 0x200, 32, "b:1")
        .alloc(7, 0x300, 16, "c:1");
    let mut profile = Profile::new(ProfileSettings {
        max_frames: 1,
        max_stack_nodes: 2,
    });
    for event in &story.events {
        profile.apply(event);
    }
    let snapshot = profile.snapshot();
    let stacks: Vec<_> = by_stack(&snapshot, only(&snapshot))
        .into_iter()
        .map(|(text, tally)| (text, tally.live_bytes))
        .collect();
    assert_eq!(
        stacks,
        [
            ("a (/srv/app.py:1)".to_owned(), 64),
            ("[too many frames]".to_owned(), 48)
        ]
    );
    assert_eq!(snapshot.losses.table_full, 2);
    assert_eq!(
        snapshot
            .notes
            .iter()
            .filter(|note| note.contains("table was full"))
            .count(),
        1
    );
}
