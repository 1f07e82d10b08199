//! Regions of some MiB, with blocks, pools and touches in them, and how they are shared out.

use super::*;
use crate::{
    ingest::chunk_class,
    profile::heap::faults::{HEAD, RECENT},
};

const MIB: u64 = 1 << 20;
const KEEPS: LargeUse = LargeUse::Keeps {
    small: 100 * MIB,
    big: MIB,
};

fn large(addr: u64, bytes: u64) -> LargeBlock {
    LargeBlock {
        addr,
        bytes,
        tally: 0,
        born: None,
    }
}

/// MiB in: A, B, before, free, unknown.
#[track_caller]
fn check(regions: &[(u64, u64, u64)], work: impl FnOnce(&mut Shares, &mut Faults), expected: [u64; 5]) {
    let regions: Vec<Region> = regions
        .iter()
        .map(|&(start, end, anonymous)| Region {
            start: start * MIB,
            end: end * MIB,
            anonymous: anonymous * MIB,
            huge: 0,
        })
        .collect();
    check_regions(&regions, work, expected);
}

/// The same, with regions of which more is known.
#[track_caller]
fn check_regions(regions: &[Region], work: impl FnOnce(&mut Shares, &mut Faults), expected: [u64; 5]) {
    check_counted(regions, &[], &[], work, expected);
}

/// The same, where libc's chunks were counted.
#[track_caller]
fn check_counted(
    regions: &[Region],
    chunks: &[Chunks],
    big: &[LibcBlock],
    work: impl FnOnce(&mut Shares, &mut Faults),
    expected: [u64; 5],
) {
    let (mut shares, mut faults, mut estimates) = (
        Shares::new(regions, chunks, big.to_vec()),
        Faults::default(),
        Estimates::default(),
    );
    work(&mut shares, &mut faults);
    let uses = |tally| {
        if tally == 9 { LargeUse::Drops } else { KEEPS }
    };
    shares.settle(&mut faults, true, uses, &mut estimates);
    let of = |holder: Holder| estimates.get(&holder).map_or(0, |estimate| estimate.bytes / MIB);
    let found = [
        of(Holder::Tally(0)),
        of(Holder::Tally(1)),
        of(Holder::Special(Special::Before)),
        of(Holder::Special(Special::Free)),
        of(Holder::Special(Special::Unknown)),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_region_is_shared_out_by_who_touched_it() {
    check(
        &[(10, 20, 8)],
        |_, faults| {
            faults.touched(10 * MIB, 768, 0, MonotonicNs(1));
            faults.touched(11 * MIB, 256, 1, MonotonicNs(1));
            faults.touched(30 * MIB, 256, 1, MonotonicNs(1));
        },
        [3, 1, 0, 0, 4],
    );
    // More was touched than is still there.
    check(
        &[(10, 20, 2)],
        |_, faults| {
            faults.touched(10 * MIB, 768, 0, MonotonicNs(1));
            faults.touched(11 * MIB, 768, 1, MonotonicNs(1));
        },
        [1, 1, 0, 0, 0],
    );
}

#[test]
fn pools_and_large_blocks_come_first() {
    check(
        &[(10, 20, 8), (30, 40, 5)],
        |shares, faults| {
            shares.pool(10 * MIB, 5, 100, MIB / 64);
            shares.large(&large(31 * MIB, 3 * MIB), 0.0);
            faults.touched(31 * MIB, 10_000, 0, MonotonicNs(1));
            faults.touched(10 * MIB + 8000, 10_000, 1, MonotonicNs(1));
            faults.touched(11 * MIB, 1024, 1, MonotonicNs(1));
        },
        [2, 4, 0, 0, 3],
    );
}

/// Blocks as (stack, address, MiB), and the MiB of each of two stacks that are not resident.
#[track_caller]
fn check_untouched(anonymous: u64, blocks: &[(TallyIndex, u64, u64)], expected: [u64; 2]) {
    let region = Region {
        start: 10 * MIB,
        end: 30 * MIB,
        anonymous: anonymous * MIB,
        huge: 0,
    };
    let mut shares = Shares::new(&[region], &[], Vec::new());
    for &(tally, addr, bytes) in blocks {
        let block = LargeBlock {
            tally,
            ..large(addr * MIB, bytes * MIB)
        };
        shares.large(&block, 0.0);
    }
    let (mut faults, mut estimates) = (Faults::default(), Estimates::default());
    faults.touched(11 * MIB, 4 * 256, 0, MonotonicNs(1));
    shares.settle(&mut faults, true, |_| KEEPS, &mut estimates);
    let of = |tally| {
        estimates
            .get(&Holder::Tally(tally))
            .map_or(0, |of| of.untouched / MIB)
    };
    assert_eq!([of(0), of(1)], expected);
    assert_eq!(shares.untouched() / MIB, expected.iter().sum::<u64>());
}

#[test]
fn what_was_allocated_and_never_touched_is_not_resident() {
    check_untouched(9, &[(0, 10, 9)], [0, 0]);
    check_untouched(4, &[(0, 10, 4), (1, 20, 9)], [0, 9]);
    check_untouched(6, &[(0, 10, 8), (1, 20, 2)], [2, 1]);
    // One that is in no region.
    check_untouched(4, &[(0, 10, 4), (1, 40, 3)], [0, 3]);
}

#[test]
fn nothing_is_untouched_if_no_region_could_be_read() {
    let mut shares = Shares::new(&[], &[], Vec::new());
    shares.large(&large(10 * MIB, 9 * MIB), 0.0);
    shares.settle(&mut Faults::default(), true, |_| KEEPS, &mut Estimates::default());
    assert_eq!(shares.untouched(), 0);
}

#[test]
fn blocks_that_were_not_seen_come_before_what_was_touched() {
    check(
        &[(10, 20, 8)],
        |shares, faults| {
            shares.large(&large(11 * MIB, MIB / 8), 16.0);
            faults.touched(12 * MIB, 10_000, 1, MonotonicNs(1));
        },
        [2, 5, 0, 0, 0],
    );
}

#[test]
fn who_frees_what_it_allocates_holds_no_heap_that_it_touched() {
    for (block, expected) in [(11, [0, 3, 0, 0, 4]), (31, [0, 4, 0, 0, 0])] {
        check(
            &[(10, 20, 8), (30, 40, 1)],
            |shares, faults| {
                shares.large(&large(block * MIB, MIB), 0.0);
                faults.touched(12 * MIB, 1024, 9, MonotonicNs(1));
                faults.touched(13 * MIB, 1024, 1, MonotonicNs(1));
            },
            expected,
        );
    }
}

fn chunk(addr: u64, bytes: u64) -> LibcBlock {
    LibcBlock { addr, bytes }
}

#[test]
fn what_was_touched_for_blocks_that_are_freed_is_free() {
    // Of 5 MiB that were touched 3 were for blocks, of which 1 is left: by what is behind a block, and within it.
    let touch = |faults: &mut Faults| {
        faults.touched(11 * MIB + 4096, 256, 0, MonotonicNs(1));
        faults.allocated(chunk(11 * MIB, 4096 - HEAD), 0);
        faults.allocated(chunk(12 * MIB, MIB), 0);
        faults.touched(12 * MIB + 8192, 512, 1, MonotonicNs(1));
        faults.touched(15 * MIB, 512, 1, MonotonicNs(1));
    };
    check(
        &[(10, 20, 6)],
        |shares, faults| {
            shares.large(&large(10 * MIB, MIB), 0.0);
            touch(faults);
        },
        [0, 2, 0, 2, 1],
    );
    // All of them are there.
    check(
        &[(10, 20, 6)],
        |shares, faults| {
            shares.large(&large(10 * MIB, 3 * MIB), 0.0);
            touch(faults);
        },
        [0, 2, 0, 0, 1],
    );
    // Long after a block was allocated nothing is known of what a fault is for.
    check(
        &[(10, 20, 6)],
        |_, faults| {
            faults.allocated(chunk(12 * MIB, MIB), 0);
            for _ in 0..RECENT {
                faults.allocated(chunk(40 * MIB, MIB), 0);
            }
            faults.touched(12 * MIB, 512, 1, MonotonicNs(1));
        },
        [0, 2, 0, 0, 4],
    );
}

#[test]
fn what_was_touched_after_the_regions_were_read_is_kept_for_the_next_reading() {
    let read = Region {
        start: 10 * MIB,
        end: 20 * MIB,
        anonymous: MIB,
        huge: 0,
    };
    let mut faults = Faults::default();
    for (place, time) in [(11, 5), (12, 7), (31, 5), (32, 6), (33, 7)] {
        faults.touched(place * MIB, 1, 0, MonotonicNs(time));
    }
    let mut shares = Shares::new(&[read], &[], Vec::new());
    shares.forget_unmapped(&mut faults, MonotonicNs(6));
    let kept = |faults: &Faults| {
        let mut places: Vec<u64> = faults.pages.keys().map(|page| page * PAGE / MIB).collect();
        places.sort_unstable();
        places
    };
    assert_eq!(kept(&faults), [11, 12, 32, 33]);
    shares.pool(11 * MIB, 5, 100, MIB / 64);
    shares.forget_unmapped(&mut faults, MonotonicNs(9));
    assert_eq!(kept(&faults), [12]);
}

#[test]
fn what_was_there_before_stays_so() {
    let region = Region {
        start: MIB,
        end: 9 * MIB,
        anonymous: 2 * MIB,
        huge: 0,
    };
    let mut faults = Faults::default();
    for (anonymous, before, unknown) in [(2, 2, 0), (5, 2, 3), (1, 1, 0)] {
        let mut estimates = Estimates::default();
        let anonymous = anonymous * MIB;
        let mut shares = Shares::new(&[Region { anonymous, ..region }], &[], Vec::new());
        shares.settle(&mut faults, false, |_| KEEPS, &mut estimates);
        let of = |special| {
            estimates
                .get(&Holder::Special(special))
                .map_or(0, |of| of.bytes / MIB)
        };
        assert_eq!([of(Special::Before), of(Special::Unknown)], [before, unknown]);
    }
}

/// 10 to 20 MiB, so much of it resident and so much in huge pages.
fn huge(anonymous: u64, huge: u64) -> [Region; 1] {
    [Region {
        start: 9 * MIB,
        end: 20 * MIB,
        anonymous: anonymous * MIB,
        huge: huge * MIB,
    }]
}

#[test]
fn a_fault_that_brought_a_huge_page_stands_for_all_of_it() {
    let touch = |faults: &mut Faults| {
        faults.touched(10 * MIB, 1, 0, MonotonicNs(1));
        faults.touched(12 * MIB, 1, 0, MonotonicNs(1));
        faults.touched(15 * MIB, 1, 1, MonotonicNs(1));
        // No huge page: not all of it is in the region, and all pages were touched.
        faults.touched(9 * MIB, 4, 1, MonotonicNs(1));
        faults.touched(16 * MIB, 256, 1, MonotonicNs(1));
        faults.touched(17 * MIB, 256, 1, MonotonicNs(1));
    };
    check_regions(&huge(9, 6), |_, faults| touch(faults), [4, 4, 0, 0, 0]);
    // There are fewer than faults that could have brought one.
    check_regions(&huge(10, 3), |_, faults| touch(faults), [1, 2, 0, 0, 5]);
    check_regions(&huge(10, 0), |_, faults| touch(faults), [0, 2, 0, 0, 7]);
}

#[test]
fn what_became_a_huge_page_after_some_faults_is_whose_these_were() {
    let touch = |faults: &mut Faults| {
        for (page, tally) in [(10, 0), (11, 1), (12, 1), (13, 1)] {
            faults.touched(page * MIB, 1, tally, MonotonicNs(1));
        }
    };
    check_regions(&huge(5, 4), |_, faults| touch(faults), [1, 3, 0, 0, 1]);
    check_regions(&huge(5, 2), |_, faults| touch(faults), [0, 1, 0, 0, 2]);
}

#[test]
fn what_a_large_block_has_in_huge_pages_is_touched() {
    let mut shares = Shares::new(&huge(4, 4), &[], Vec::new());
    for (tally, addr) in [(0, 10), (1, 14)] {
        let block = LargeBlock {
            tally,
            ..large(addr * MIB, 4 * MIB)
        };
        shares.large(&block, 0.0);
    }
    let (mut faults, mut estimates) = (Faults::default(), Estimates::default());
    for addr in [10, 12] {
        faults.allocated(chunk(addr * MIB, 2 * MIB), 0);
        faults.touched(addr * MIB, 1, 0, MonotonicNs(1));
    }
    shares.settle(&mut faults, true, |_| KEEPS, &mut estimates);
    let untouched = |tally| estimates[&Holder::Tally(tally)].untouched / MIB;
    assert!(!estimates.contains_key(&Holder::Tally(0)) || untouched(0) == 0);
    assert_eq!(untouched(1), 4);
}

/// 10 to 30 MiB, all of it resident, of which so many MiB are in use in chunks of some KiB and of 4 MiB.
#[track_caller]
fn check_heap(small: u64, huge: u64, work: impl FnOnce(&mut Shares, &mut Faults), expected: [u64; 5]) {
    let region = Region {
        start: 10 * MIB,
        end: 30 * MIB,
        anonymous: 20 * MIB,
        huge: 0,
    };
    let chunks = [(8 << 10, small), (4 << 20, huge)].map(|(size, bytes)| Chunks {
        region: region.start,
        class: chunk_class(size),
        bytes: bytes * MIB,
    });
    check_counted(&[region], &chunks, &[], work, expected);
}

#[test]
fn what_libc_has_free_is_nobodys_whoever_touched_it() {
    let touch = |faults: &mut Faults| {
        faults.touched(11 * MIB, 2560, 0, MonotonicNs(1));
        faults.touched(12 * MIB, 2560, 1, MonotonicNs(1));
    };
    check_heap(4, 4, |_, faults| touch(faults), [4, 4, 0, 12, 0]);
    check_heap(0, 0, |_, faults| touch(faults), [0, 0, 0, 20, 0]);
    // More in use than there is: it is not resident.
    check_heap(20, 40, |_, faults| touch(faults), [10, 10, 0, 0, 0]);
    // Blocks that were seen are in use.
    let seen = |shares: &mut Shares, faults: &mut Faults| {
        touch(faults);
        shares.large(&large(20 * MIB, 4 * MIB), 0.0);
    };
    check_heap(4, 4, seen, [2, 2, 0, 12, 0]);
    // What was touched inside of one tells of nothing else.
    let inside = |shares: &mut Shares, faults: &mut Faults| {
        touch(faults);
        shares.large(&large(12 * MIB - 16, 4 * MIB), 0.0);
    };
    check_heap(4, 4, inside, [4, 0, 0, 12, 0]);
}

#[test]
fn chunks_are_of_those_whose_blocks_stay_and_not_of_who_touched_their_memory() {
    let blocks = |shares: &mut Shares, faults: &mut Faults, count: u64| {
        faults.touched(11 * MIB, 5120, 1, MonotonicNs(1));
        for index in 0..count {
            shares.large(&large(11 * MIB + index * 8192, 8 << 10), 64.0);
        }
    };
    // As many as they stand for, and all if they are many; the large chunks are of who touched them.
    let few = |shares: &mut Shares, faults: &mut Faults| blocks(shares, faults, 2);
    check_heap(8, 8, few, [1, 14, 0, 4, 0]);
    let many = |shares: &mut Shares, faults: &mut Faults| blocks(shares, faults, 200);
    check_heap(12, 4, many, [10, 4, 0, 4, 0]);
}

/// Two large chunks of 4 MiB that are in use in a heap of 20, at 11 and at 16 MiB.
#[track_caller]
fn check_big(work: impl FnOnce(&mut Shares, &mut Faults), expected: [u64; 5]) {
    let region = Region {
        start: 10 * MIB,
        end: 30 * MIB,
        anonymous: 20 * MIB,
        huge: 0,
    };
    let chunks = [Chunks {
        region: region.start,
        class: chunk_class(4 * MIB),
        bytes: 8 * MIB,
    }];
    let big = [11, 16].map(|at| LibcBlock {
        addr: at * MIB + 16,
        bytes: 4 * MIB - 8,
    });
    check_counted(&[region], &chunks, &big, work, expected);
}

#[test]
fn a_large_chunk_is_of_who_touched_it() {
    // However much others have touched of what is free.
    let touch = |faults: &mut Faults, tally| {
        faults.touched(12 * MIB, 1024, 0, MonotonicNs(1));
        faults.touched(17 * MIB, 512, tally, MonotonicNs(1));
        faults.touched(18 * MIB, 256, tally, MonotonicNs(1));
        faults.touched(25 * MIB, 2048, 0, MonotonicNs(1));
    };
    check_big(|_, faults| touch(faults, 1), [4, 3, 0, 12, 0]);
    // Of one that drops what it makes nothing is believed: what is left is of who is known to hold memory there.
    check_big(|_, faults| touch(faults, 9), [8, 0, 0, 12, 0]);
    // A block that is known is in one of them.
    let seen = |shares: &mut Shares, faults: &mut Faults| {
        touch(faults, 1);
        shares.large(&large(16 * MIB + 16, 4 * MIB - 8), 0.0);
    };
    check_big(seen, [4, 0, 0, 12, 0]);
}

#[test]
fn a_block_can_lie_in_regions_one_behind_the_other() {
    let (mut shares, mut faults, mut estimates) = (
        Shares::new(
            &[(10, 11, 1), (11, 20, 6), (25, 30, 1)].map(|(start, end, anonymous)| Region {
                start: start * MIB,
                end: end * MIB,
                anonymous: anonymous * MIB,
                huge: 0,
            }),
            &[],
            Vec::new(),
        ),
        Faults::default(),
        Estimates::default(),
    );
    shares.large(&large(10 * MIB, 8 * MIB), 0.0);
    // Of another one the middle is not resident.
    shares.large(&large(19 * MIB, 7 * MIB), 0.0);
    shares.settle(&mut faults, true, |_| KEEPS, &mut estimates);
    assert_eq!(shares.large_resident(), 8 * MIB);
    assert_eq!(estimates[&Holder::Tally(0)].untouched, 7 * MIB);
    assert_eq!(shares.untouched(), 7 * MIB);
}
