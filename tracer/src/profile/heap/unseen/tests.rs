//! Blocks that stand for others, and what a region has for them.

use rustc_hash::FxHashSet;

use super::*;
use crate::{
    ingest::{Chunks, LibcBlock},
    profile::heap::{
        big::{Evidence, PageTouch},
        sizes::Sizes,
    },
};

const MIB: u64 = 1 << 20;

/// Blocks: region, bytes, tally, and for how many each stands. Expected: what is left, and what the tallies have.
#[track_caller]
fn check(
    blocks: &[(usize, u64, TallyIndex, f64)],
    mut left: [u64; 2],
    expected: [u64; 2],
    tallies: [u64; 2],
) {
    let (mut unseen, mut estimates) = (Unseen::default(), Estimates::default());
    for &(region, bytes, tally, stands_for) in blocks {
        let block = LargeBlock {
            addr: 0,
            bytes,
            tally,
            born: None,
        };
        unseen.add(region, false, &block, stands_for);
    }
    let before: u64 = left.iter().sum();
    let mut without_owner = Left {
        bytes: &mut left,
        places: &[Place::default(); 2],
        census: &Census::default(),
        big: &Big::default(),
    };
    let given = unseen.share_out(&mut without_owner, &mut estimates);
    assert_eq!(left, expected);
    assert_eq!(given, before - left.iter().sum::<u64>());
    let of = |tally| {
        estimates
            .get(&Holder::Tally(tally))
            .map_or(0, |estimate| estimate.bytes)
    };
    assert_eq!([of(0), of(1)], tallies);
    assert_eq!(of(0) + of(1), given);
}

#[test]
fn a_chunk_stands_for_others_of_its_region() {
    check(&[(0, 1000, 0, 10.0)], [50_000, 0], [40_000, 0], [10_000, 0]);
    check(
        &[(0, 1000, 0, 30.0), (0, 500, 1, 20.0)],
        [20_000, 9],
        [0, 9],
        [15_000, 5000],
    );
    check(&[(1, 1000, 0, 30.0)], [20_000, 9], [20_000, 0], [9, 0]);
    check(&[(7, 1000, 0, 30.0)], [20_000, 9], [20_000, 9], [0, 0]);
    check(&[(0, 1000, 0, 0.0)], [20_000, 9], [20_000, 9], [0, 0]);
}

#[test]
fn a_mapping_stands_for_others_anywhere() {
    check(
        &[(0, MIB, 0, 3.0)],
        [4 * MIB, 2 * MIB],
        [2 * MIB, MIB],
        [3 * MIB, 0],
    );
    check(
        &[(0, MIB, 0, 30.0), (1, MIB, 1, 10.0)],
        [0, 4 * MIB],
        [0, 0],
        [3 * MIB, MIB],
    );
}

/// Blocks of a region of 100 KB: bytes, tally, and for how many each stands; and what is in use of up to 128 KiB, and what
/// others touched. Expected: what is left, and what the tallies have.
#[track_caller]
fn check_counted(
    blocks: &[(u64, TallyIndex, f64)],
    in_use: u64,
    touched_by_others: u64,
    expected: (u64, [u64; 2]),
) {
    let (mut unseen, mut estimates) = (Unseen::default(), Estimates::default());
    for &(bytes, tally, stands_for) in blocks {
        let block = LargeBlock {
            addr: 0,
            bytes,
            tally,
            born: None,
        };
        unseen.add(0, true, &block, stands_for);
    }
    let census = Census::new(
        &[(1000, in_use), (400, 30_000), (MIB, 30_000)].map(|(block, bytes)| Chunks {
            region: 1,
            class: class_of(block),
            bytes,
        }),
    );
    let place = Place {
        start: 1,
        touched: touched_by_others / 6,
        touched_by_others,
    };
    let mut left = [100_000];
    unseen.share_out(
        &mut Left {
            bytes: &mut left,
            places: &[place],
            census: &census,
            big: &Big::default(),
        },
        &mut estimates,
    );
    let of = |tally| {
        let estimate = estimates.get(&Holder::Tally(tally));
        estimate.map_or(0, |estimate| estimate.bytes)
    };
    assert_eq!((left[0], [of(0), of(1)]), expected);
}

#[test]
fn of_a_size_that_is_counted_there_is_no_more_and_no_less() {
    check_counted(&[(1000, 0, 80.0)], 60_000, 0, (40_000, [60_000, 0]));
    // Two blocks say nothing of the rest.
    check_counted(&[(1000, 0, 10.0); 2], 60_000, 0, (80_000, [20_000, 0]));
    check_counted(&[(1000, 0, 10.0); 3], 60_000, 0, (40_000, [60_000, 0]));
    let two = [(1000, 0, 10.0), (1000, 0, 10.0), (1000, 1, 10.0)];
    check_counted(&two, 60_000, 0, (40_000, [40_000, 20_000]));
    check_counted(&[(MIB, 0, 1.0)], 60_000, 0, (70_000, [30_000, 0]));
}

#[test]
fn what_others_touched_is_theirs_as_long_as_few_blocks_tell() {
    // They have the small ones, and of the others less than those of whom blocks tell.
    check_counted(&[(1000, 0, 10.0); 3], 60_000, 60_000, (52_857, [47_143, 0]));
    check_counted(&[(1000, 0, 1.0); 30], 60_000, 60_000, (46_923, [53_077, 0]));
}

/// Blocks of 32 KiB of one tally, so many, which stand for one each, and what another one touched first; 12 such chunks are in
/// use, of which half was touched. Expected: bytes of both in chunks.
#[track_caller]
fn check_big(blocks: u64, expected: [u64; 2]) {
    const CHUNK: u64 = 32 << 10;
    let (mut unseen, mut estimates) = (Unseen::default(), Estimates::default());
    for _ in 0..blocks {
        let block = LargeBlock {
            addr: 0,
            bytes: CHUNK - 8,
            tally: 0,
            born: None,
        };
        unseen.add(0, true, &block, 1.0);
    }
    let census = Census::new(&[Chunks {
        region: 0x1000,
        class: class_of(CHUNK - 8),
        bytes: 12 * CHUNK,
    }]);
    let chunks: Vec<LibcBlock> = (1..=6)
        .map(|chunk| LibcBlock {
            addr: chunk * CHUNK + 16,
            bytes: CHUNK - 8,
        })
        .collect();
    let touches: Vec<PageTouch> = chunks
        .iter()
        .map(|chunk| PageTouch {
            page: chunk.addr / 4096 * 4096 + 8192,
            bytes: 16384,
            tally: 1,
            drops: false,
            for_block: false,
        })
        .collect();
    let evidence = Evidence {
        known: &FxHashSet::default(),
        touches: &touches,
        sizes: &Sizes::default(),
    };
    let big = Big::new(&chunks, evidence, |_| Some((0x1000, false)));
    let mut left = [20 * CHUNK];
    unseen.share_out(
        &mut Left {
            bytes: &mut left,
            places: &[Place {
                start: 0x1000,
                ..Place::default()
            }],
            census: &census,
            big: &big,
        },
        &mut estimates,
    );
    let of = |tally| {
        let estimate = estimates.get(&Holder::Tally(tally));
        estimate.map_or(0, |estimate| (estimate.bytes + CHUNK / 2) / CHUNK)
    };
    assert_eq!([of(0), of(1)], expected);
    assert!(left[0] >= 8 * CHUNK, "more was given away than is in use");
}

#[test]
fn large_chunks_are_of_who_touched_them_until_many_blocks_tell() {
    check_big(0, [0, 6]);
    // Two blocks stand for two chunks that nobody touched.
    check_big(2, [2, 5]);
    check_big(10, [9, 3]);
    check_big(90, [11, 1]);
}
