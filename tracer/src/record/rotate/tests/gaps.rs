//! Gaps that are open when files turn: each file tells of its own part.

use tracer_ebpf::site::group;

use super::*;
use crate::mode::Mode;

#[test]
fn a_gap_that_is_open_when_files_turn_is_in_each_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let meta = Meta {
        start_monotonic: now(),
        mode: Mode::Heap.name().to_owned(),
        ..Meta::default()
    };
    let name = directory.path().join("a");
    let mut rotation = Rotation::create(&name, Overwrite::Refuse, LARGE, 9, &meta).unwrap();
    let mut story = Story::default();
    story.process(PID, "python3 app.py").alloc(PID, 64, 32, "main:1");
    let events: Vec<u8> = story.events.iter().flat_map(bytes).collect();
    let again = bytes(story.events.last().unwrap());
    let gap = |from, to, group| Gap {
        from,
        to,
        group: Some(group),
        ..Gap::default()
    };
    rotation.events(&events).unwrap();
    let off = now();
    for group in [group::POOLS, group::LARGE] {
        rotation.gap(&gap(off, MonotonicNs(0), group)).unwrap();
    }
    let (mut turns, mut on) = (Vec::new(), now());
    for number in 2..=4 {
        rotation.next_file().unwrap();
        turns.push(rotation.meta.start_monotonic);
        rotation.events(&again).unwrap();
        if number == 3 {
            on = now();
            for group in [group::LARGE, group::POOLS] {
                rotation.gap(&gap(off, on, group)).unwrap();
            }
        }
    }
    let files = rotation.files();
    rotation.finish(&[], End::default()).unwrap();
    // When each file says that large blocks were traced no more, and again.
    let told = |path: &PathBuf| -> Vec<(MonotonicNs, MonotonicNs)> {
        let blocks = Reader::open(path).unwrap();
        let gaps = blocks.filter_map(|block| match block {
            Block::Gap(gap) if gap.group == Some(group::LARGE) => Some((gap.from, gap.to)),
            _ => None,
        });
        gaps.collect()
    };
    let told: Vec<_> = files.iter().map(told).collect();
    let opens = |from| (from, MonotonicNs(0));
    assert_eq!(told[0][0], opens(off));
    assert!((off..=turns[0]).contains(&told[0][1].1), "{told:?} {turns:?}");
    assert_eq!(told[1][0], opens(turns[0]));
    assert_eq!(told[1][1].0, turns[0]);
    assert!(
        (turns[0]..=turns[1]).contains(&told[1][1].1),
        "{told:?} {turns:?}"
    );
    assert_eq!(told[2], [opens(turns[1]), (turns[1], on)]);
    assert_eq!(told[3], []);
    let partial = read(&files).into_iter().map(|file| file.processes[0].is_partial);
    assert_eq!(partial.collect::<Vec<_>>(), [true, true, true, false]);
}
