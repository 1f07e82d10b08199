//! Blocks and the words around them, made up.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// So many, since then.
fn count(number: u64, since: u64) -> Count {
    let mut count = Count::default();
    count.add(number, MonotonicNs(since));
    count
}

/// Looks at blocks of 1024 usable bytes at 0x1000 and of 8 KiB, a mapping, at 0x8010.
#[track_caller]
fn check(words: &[(u64, u64)], began: u64, expected: &[u64]) {
    let words: BTreeMap<u64, u64> = words.iter().copied().collect();
    let mut large = Large::default();
    for (addr, bytes) in [(0x1000, 1032), (0x8010, 0x1ff0), (0x9010, 0x1ff0)] {
        large.add(ProcAddr(addr), bytes, MonotonicNs(5), Origin::Site, &mut 9);
    }
    large.remove(ProcAddr(0x9010), &mut 9);
    large.is_glibc = true;
    let mut look = || {
        large.take_gone(
            MonotonicNs(began),
            Unseen::All,
            |_| true,
            |places| {
                Ok(places
                    .iter()
                    .map(|place| words.get(&place.get()).copied())
                    .collect())
            },
        )
    };
    assert_eq!(look().unwrap().gone, expected);
    assert_eq!(look().unwrap().gone, [0; 0], "what is gone is forgotten");
}

#[test]
fn the_words_around_a_block_say_whether_it_is_in_use() {
    let (size, next, mapped) = ((0xff8, 0x411), (0x1000 + 1040 - 8, 0x91), (0x8008, 0x2002));
    check(&[size, next, mapped], 9, &[]);
    check(&[size, next], 9, &[0x8010]);
    check(&[size, next, (0x8008, 0x3002)], 9, &[0x8010]);
    check(&[(0xff8, 0x821), next, mapped], 9, &[0x1000]);
    check(&[size, (next.0, 0x90), mapped], 9, &[0x1000]);
    check(&[size, mapped], 9, &[0x1000]);
    check(&[], 9, &[0x1000, 0x8010]);
    check(&[], 5, &[]);
}

/// Whether any is gone of a hundred blocks, after they were looked at when so many of them had heads of glibc's, and then none;
/// and whether that could be told.
#[track_caller]
fn check_malloc(right: usize, expected: (usize, bool)) {
    let mut large = Large::default();
    for index in 0..100 {
        large.add(
            ProcAddr(0x1000 * (index + 1)),
            1032,
            MonotonicNs(5),
            Origin::Site,
            &mut 1000,
        );
    }
    let began = MonotonicNs(9);
    // Who is in use is read of what was there long enough only.
    large
        .learn(MonotonicNs(5), |places| Ok(vec![Some(0x411); places.len()]))
        .unwrap();
    assert!(!large.is_glibc);
    large
        .learn(began, |places| {
            let of = |(index, _)| Some(if index < right { 0x411 } else { 0x7f00 });
            Ok(places.iter().enumerate().map(of).collect())
        })
        .unwrap();
    let nothing = |places: &[ProcAddr]| Ok(vec![None; places.len()]);
    large.learn(began, nothing).unwrap();
    let gone = large
        .take_gone(began, Unseen::All, |_| true, nothing)
        .unwrap()
        .gone;
    assert_eq!((gone.len(), large.blind().is_none()), expected);
}

#[test]
fn of_another_malloc_none_is_taken_for_gone() {
    check_malloc(0, (0, false));
    check_malloc(6, (0, false));
    check_malloc(7, (100, true));
    check_malloc(100, (100, true));
}

#[test]
fn a_malloc_that_is_found_to_be_glibcs_later_is_seen_from_then_on() {
    let mut large = Large::default();
    let nothing = |places: &[ProcAddr]| Ok(vec![None; places.len()]);
    let gone = |large: &mut Large| {
        let changed = large.take_gone(MonotonicNs(9), Unseen::All, |_| true, nothing);
        changed.unwrap().gone
    };
    assert_eq!(gone(&mut large), [0; 0]);
    assert_eq!(large.blind(), None, "nothing was to be told");
    large.add(ProcAddr(0x1000), 1032, MonotonicNs(5), Origin::Site, &mut 9);
    assert_eq!(gone(&mut large), [0; 0]);
    assert_eq!(large.blind(), Some(MonotonicNs(9)));
    large.learn(MonotonicNs(9), |_| Ok(vec![Some(0x411)])).unwrap();
    assert_eq!(large.blind(), None);
    assert_eq!(gone(&mut large), [0x1000]);
}

#[test]
fn a_mapping_that_grows_where_it_is_is_the_same_block() {
    let (mut large, mut room) = (Large::default(), 9);
    for addr in [0x10_0010, 0x20_0020] {
        large.add(ProcAddr(addr), 0x1_fff0, MonotonicNs(1), Origin::Site, &mut room);
    }
    large.is_glibc = true;
    let read = |places: &[ProcAddr]| Ok(vec![Some(0x3_0002); places.len()]);
    let mut look = || {
        large
            .take_gone(MonotonicNs(2), Unseen::All, |_| true, read)
            .unwrap()
    };
    let now = LibcBlock {
        addr: 0x10_0010,
        bytes: 0x2_fff0,
    };
    let changed = Changed {
        gone: vec![0x20_0020],
        resized: vec![now],
    };
    assert_eq!(look(), changed);
    assert_eq!(look(), Changed::default());
    // There is not so much memory: it grew after the memory map was read, or is gone.
    let mut look = |is_mapped: &dyn Fn(LibcBlock) -> bool| {
        let read = |places: &[ProcAddr]| Ok(vec![Some(0x5_0002); places.len()]);
        large
            .take_gone(MonotonicNs(2), Unseen::All, is_mapped, read)
            .unwrap()
    };
    assert_eq!(look(&|block| block.bytes < 0x3_0000), Changed::default());
    assert_eq!(look(&|_| false).gone, [0x10_0010]);
}

#[test]
fn what_came_by_a_mapping_is_looked_at_without_a_gap() {
    let (mut large, mut room) = (Large::default(), 9);
    for (addr, origin) in [(0x1000, Origin::Site), (0x10_0010, Origin::Mapping)] {
        large.add(ProcAddr(addr), 0x1_fff0, MonotonicNs(1), origin, &mut room);
    }
    large.is_glibc = true;
    let nothing = |places: &[ProcAddr]| Ok(vec![None; places.len()]);
    let gone = |large: &mut Large, unseen| {
        large
            .take_gone(MonotonicNs(2), unseen, |_| true, nothing)
            .unwrap()
            .gone
    };
    assert_eq!(gone(&mut large, Unseen::Mappings), [0x10_0010]);
    assert_eq!(gone(&mut large, Unseen::All), [0x1000]);
}

#[test]
fn what_is_too_much_is_counted_and_room_is_for_all() {
    let (mut large, mut room) = (Large::default(), 2);
    for (addr, time) in [(0x10, 1), (0x20, 2), (0x30, 3), (0x20, 4), (0x40, 5)] {
        large.add(ProcAddr(addr), 8, MonotonicNs(time), Origin::Site, &mut room);
    }
    assert_eq!((large.len(), room), (2, 0));
    assert_eq!(large.left_out(), count(2, 3));
    large.remove(ProcAddr(0x10), &mut room);
    large.remove(ProcAddr(0x10), &mut room);
    assert_eq!((large.len(), room), (1, 1));
    let (mut large, mut room) = (Large::default(), MOST * 2);
    for addr in 0..MOST as u64 + 7 {
        large.add(ProcAddr(addr * 16), 8, MonotonicNs(1), Origin::Site, &mut room);
    }
    assert_eq!((large.len(), room), (MOST, MOST));
    assert_eq!(large.left_out(), count(7, 1));
}

proptest! {
    #[test]
    fn whatever_the_memory_holds_what_is_gone_was_known(
        words in prop::collection::vec(any::<Option<u64>>(), 1..9),
        blocks in prop::collection::btree_map(any::<u64>(), any::<u64>(), 0..9),
    ) {
        let mut large = Large::default();
        for (&addr, &bytes) in &blocks {
            large.add(ProcAddr(addr), bytes, MonotonicNs(1), Origin::Site, &mut 9);
        }
        let mut words = words.iter().cycle();
        let mut read = |places: &[ProcAddr]| {
            Ok(places.iter().filter_map(|_| words.next().copied()).collect())
        };
        large.learn(MonotonicNs(2), &mut read).unwrap();
        large.is_glibc = true;
        let changed = large.take_gone(MonotonicNs(2), Unseen::All, |_| true, read).unwrap();
        prop_assert!(changed.resized.iter().all(|block| blocks.contains_key(&block.addr)));
        prop_assert!(changed.gone.iter().all(|addr| blocks.contains_key(addr)));
    }
}
