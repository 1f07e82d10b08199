//! Windows, looks and shares together. Blocks of class 3, in pools that were filled again up to address 0x100000.

use super::*;
use crate::{
    profile::{apply::Work, heap::pools::Filled},
    units::{BootNs, Pid},
};

/// A pool each.
const POOL: u64 = 0x1000;

fn at(second: f64) -> MonotonicNs {
    MonotonicNs(nanoseconds(second))
}

/// In those many seconds.
pub(super) fn nanoseconds(seconds: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small numbers"
    )]
    let nanos = (seconds * 1e9) as u64;
    nanos
}

/// A tenth of a second of all addresses, from `from` on.
fn window(refills: &mut Refills, from: f64) {
    refills.closed(SamplingWindow {
        from: at(from),
        to: at(from + 0.1),
        one_in: 1,
        work: Work {
            before: at(from).0,
            used: at(0.1).0,
            hits: 0,
        },
        since: at(0.0),
    });
}

fn look(refills: &mut Refills, second: f64, gone: &[u64], left: &[u64]) {
    refills.surveyed(&Survey {
        pid: Pid(1),
        start: BootNs(1),
        first: MonotonicNs(0),
        last: MonotonicNs(at(second).0 - 1),
        time: at(second),
        used: at(second).0,
        gone: gone.iter().map(|pool| pool * POOL).collect(),
        left: left.iter().map(|pool| pool * POOL).collect(),
        refused: Vec::new(),
    });
}

fn sampled(refills: &mut Refills, pools: &[u64], tally: TallyIndex, second: f64) {
    for pool in pools {
        refills.sampled(pool * POOL, 3, tally, at(second));
    }
}

fn filled(addr: u64, class: usize) -> Filled {
    match addr {
        0..0x10_0000 if class == 3 => Filled::Again(at(0.0)),
        _ => Filled::ByOwner,
    }
}

/// A look, and blocks of A, B and unknown ones, of so many refilled ones.
#[track_caller]
fn check(refills: &mut Refills, second: f64, all: u64, expected: [u64; 3]) {
    look(refills, second, &[], &[]);
    let mut refilled = [0; SIZE_CLASSES];
    refilled[3] = all;
    let shares = refills.share(at(second), &refilled, filled);
    let of = |tally| {
        let of_it = shares.iter().filter(|share| share.tally == tally);
        of_it.map(|share| share.blocks).sum::<u64>()
    };
    assert_eq!([of(Some(0)), of(Some(1)), of(None)], expected);
}

/// Ten seconds after the start A and B allocate two blocks and one, of which each stands for a hundred.
fn looked_at() -> Refills {
    let mut refills = Refills::default();
    check(&mut refills, 9.0, 500, [0, 0, 500]);
    sampled(&mut refills, &[1, 2], 0, 9.95);
    sampled(&mut refills, &[3, 0x200], 1, 9.95);
    window(&mut refills, 9.9);
    look(&mut refills, 10.3, &[], &[]);
    refills
}

#[test]
fn who_keeps_a_block_keeps_all_from_the_window_before() {
    let mut refills = looked_at();
    check(&mut refills, 10.5, 300, [200, 100, 0]);
    // The rate in the window and the time that went by tell of no more than this.
    check(&mut refills, 15.0, 900, [600, 300, 0]);
    check(&mut refills, 20.0, 9000, [800, 400, 7800]);
    let samples: u64 = refills
        .share(at(20.0), &[9000; SIZE_CLASSES], filled)
        .iter()
        .filter(|share| share.class == 3)
        .map(|share| share.samples)
        .sum();
    assert_eq!(samples, 3);
}

#[test]
fn what_settles_goes_when_its_samples_go() {
    let mut refills = looked_at();
    check(&mut refills, 10.5, 300, [200, 100, 0]);
    // A second later B allocates one more.
    sampled(&mut refills, &[5], 1, 11.0);
    window(&mut refills, 10.9);
    look(&mut refills, 11.3, &[], &[]);
    check(&mut refills, 11.3, 320, [200, 120, 0]);
    look(&mut refills, 12.0, &[2], &[]);
    check(&mut refills, 12.0, 220, [100, 120, 0]);
    // What is more than there is was so before.
    check(&mut refills, 12.0, 100, [50, 50, 0]);
    check(&mut refills, 12.0, 0, [0, 0, 0]);
}

#[test]
fn what_a_window_is_short_of_settles_too() {
    let mut refills = looked_at();
    check(&mut refills, 10.5, 630, [420, 210, 0]);
    sampled(&mut refills, &[5], 1, 11.0);
    window(&mut refills, 10.9);
    look(&mut refills, 11.3, &[], &[]);
    // The rest of it is what it was.
    check(&mut refills, 11.3, 630, [400 + 4, 200 + 26, 0]);
}

#[test]
fn what_goes_soon_stands_for_the_time_that_it_stays() {
    let mut refills = looked_at();
    // B's goes after two seconds: there are twenty like it at any time.
    look(&mut refills, 11.95, &[], &[]);
    look(&mut refills, 11.95, &[3], &[]);
    check(&mut refills, 12.0, 260, [240, 20, 0]);
    // What the next window tells cannot be the whole.
    sampled(&mut refills, &[6, 7, 8, 9], 0, 12.5);
    window(&mut refills, 12.45);
    look(&mut refills, 12.8, &[], &[]);
    check(&mut refills, 12.8, 1000, [200 + 224, 20, 556]);
}

#[test]
fn the_window_before_tells_how_long_a_block_will_stay() {
    let mut refills = Refills::default();
    sampled(&mut refills, &[1, 2, 3, 4, 5], 0, 9.95);
    sampled(&mut refills, &[11], 1, 9.95);
    window(&mut refills, 9.9);
    look(&mut refills, 10.95, &[], &[]);
    look(&mut refills, 10.95, &[1, 2, 3, 4, 5], &[]);
    sampled(&mut refills, &[1, 2, 3, 4, 5], 0, 19.95);
    window(&mut refills, 19.9);
    look(&mut refills, 20.3, &[], &[]);
    // Fifty a second, each for a second, beside what B keeps.
    check(&mut refills, 20.3, 150, [50, 100, 0]);
}

#[test]
fn what_was_no_refill_does_not_become_one_unless_the_pool_is_anybodys() {
    let mut refills = looked_at();
    let share = |refills: &mut Refills, second, filled: Filled| -> u64 {
        let shares = refills.share(at(second), &[100; SIZE_CLASSES], |_, _| filled);
        let known = shares
            .iter()
            .filter(|share| share.class == 3 && share.tally.is_some());
        known.map(|share| share.blocks).sum()
    };
    assert_eq!(share(&mut refills, 10.5, Filled::ByOwner), 0);
    assert_eq!(share(&mut refills, 10.6, Filled::Again(at(0.0))), 0);
    look(&mut refills, 10.6, &[1], &[]);
    assert_eq!(share(&mut refills, 10.7, Filled::Again(at(0.0))), 0);
    assert_eq!(share(&mut refills, 10.8, Filled::ByAnybody), 100);
    assert_eq!(share(&mut refills, 10.9, Filled::ByOwner), 100);
}

#[test]
fn what_was_there_before_a_pool_was_filled_again_is_no_refill() {
    for (since, expected) in [(9.9, 100), (10.2, 0)] {
        let mut refills = looked_at();
        look(&mut refills, 10.6, &[1], &[]);
        let shares = refills.share(at(10.7), &[100; SIZE_CLASSES], |_, _| Filled::Again(at(since)));
        let known = shares
            .iter()
            .filter(|share| share.class == 3 && share.tally.is_some());
        assert_eq!(known.map(|share| share.blocks).sum::<u64>(), expected);
    }
}

#[test]
fn who_is_not_looked_at_any_more_loses_nothing_to_others() {
    let mut refills = looked_at();
    check(&mut refills, 10.5, 300, [200, 100, 0]);
    look(&mut refills, 10.6, &[], &[3]);
    // A's by the rate, 0.6 seconds after the window.
    check(&mut refills, 10.6, 300, [212, 0, 88]);
}

#[test]
fn no_more_is_given_than_there_is() {
    let mut refills = looked_at();
    check(&mut refills, 10.5, 30, [20, 10, 0]);
    sampled(&mut refills, &[5], 1, 19.95);
    window(&mut refills, 19.9);
    look(&mut refills, 20.3, &[], &[]);
    check(&mut refills, 20.3, 130, [20, 110, 0]);
}

#[test]
fn a_class_that_a_window_says_nothing_of_is_whose_the_last_one_says() {
    let mut refills = looked_at();
    refills.sampled(7 * POOL, 4, 1, at(15.0));
    window(&mut refills, 14.9);
    look(&mut refills, 15.3, &[], &[]);
    check(&mut refills, 15.5, 600, [400, 200, 0]);
}

#[test]
fn what_is_not_looked_at_any_more_counts_by_the_others_of_its_stack() {
    let mut refills = looked_at();
    look(&mut refills, 10.5, &[], &[2]);
    check(&mut refills, 10.5, 300, [200, 100, 0]);
    sampled(&mut refills, &[5], 1, 11.0);
    window(&mut refills, 10.9);
    look(&mut refills, 11.3, &[], &[]);
    check(&mut refills, 11.3, 310, [200, 110, 0]);
    // The last one of its stack: from here on it goes as all do.
    look(&mut refills, 11.5, &[], &[1]);
    check(&mut refills, 11.5, 310, [200, 110, 0]);
    check(&mut refills, 11.5, 150, [100, 50, 0]);
}

#[test]
fn what_was_refused_counts_for_nobody() {
    let mut refills = looked_at();
    sampled(&mut refills, &[6, 7], 1, 11.0);
    window(&mut refills, 10.9);
    refills.surveyed(&Survey {
        last: at(11.3),
        used: at(11.3).0,
        refused: vec![6 * POOL],
        ..Survey::default()
    });
    check(&mut refills, 11.3, 310, [200, 110, 0]);
}

#[test]
fn of_whom_nothing_can_be_looked_at_the_others_do_not_get_the_part() {
    let mut refills = Refills::default();
    sampled(&mut refills, &[1], 0, 9.95);
    sampled(&mut refills, &[2, 3, 4], 1, 9.95);
    window(&mut refills, 9.9);
    let look = |refused: &[u64]| Survey {
        pid: Pid(1),
        start: BootNs(1),
        first: MonotonicNs(0),
        last: at(10.2),
        time: at(10.3),
        used: at(10.3).0,
        gone: Vec::new(),
        left: Vec::new(),
        refused: refused.iter().map(|pool| pool * POOL).collect(),
    };
    refills.surveyed(&look(&[2, 3, 4]));
    // By its rate alone A has a hundred.
    check(&mut refills, 10.3, 80, [20, 0, 60]);
    // Of B something is known: it is not said to have nothing.
    let mut refills = Refills::default();
    sampled(&mut refills, &[1], 0, 9.95);
    sampled(&mut refills, &[2, 3, 4], 1, 9.95);
    window(&mut refills, 9.9);
    refills.surveyed(&look(&[2, 3]));
    check(&mut refills, 10.3, 80, [40, 40, 0]);
}

#[test]
fn one_refusal_gives_nobody_what_others_put_where_he_dropped() {
    let check_refused = |refused: &[u64]| {
        let mut refills = Refills::default();
        // Of ten in each tenth of the window one is left, where somebody's block is.
        for tenth in 0..10 {
            let blocks: Vec<u64> = (tenth * 10..tenth * 10 + 10).collect();
            sampled(&mut refills, &blocks, 0, 9.901 + 0.01 * tenth as f64);
        }
        window(&mut refills, 9.9);
        let gone: Vec<u64> = (0..100)
            .filter(|block| block % 10 > 0)
            .map(|block| block * POOL)
            .collect();
        refills.surveyed(&Survey {
            last: at(10.3),
            time: at(10.3),
            used: at(10.3).0,
            gone,
            refused: refused.iter().map(|block| block * POOL).collect(),
            ..Survey::default()
        });
        let mut first_part = refills.samples.values().map(|sample| sample.born);
        first_part.all(|born| born <= at(9.934).0)
    };
    assert!(check_refused(&[]));
    assert!(check_refused(&[5]));
}

#[test]
fn a_block_of_the_window_before_that_is_replaced_in_the_next_one_ended_there() {
    let mut refills = Refills::default();
    sampled(&mut refills, &[1, 2, 3, 4, 5], 0, 9.95);
    window(&mut refills, 9.9);
    look(&mut refills, 11.0, &[], &[]);
    look(&mut refills, 11.0, &[], &[]);
    // They were still there after a second, and ended before two were over: after one and a half, as far as one knows.
    sampled(&mut refills, &[1, 2, 3, 4, 5], 1, 11.95);
    sampled(&mut refills, &[20], 0, 11.95);
    window(&mut refills, 11.9);
    check(&mut refills, 12.3, 130, [15, 115, 0]);
}

#[test]
fn a_block_of_the_window_before_that_is_gone_when_the_next_one_is_looked_at_ended() {
    let blocks = [1, 2, 3, 4, 5];
    let mut refills = Refills::default();
    sampled(&mut refills, &blocks, 0, 9.95);
    window(&mut refills, 9.9);
    look(&mut refills, 11.0, &[], &[]);
    sampled(&mut refills, &[20], 0, 11.95);
    window(&mut refills, 11.9);
    // They ended after 1.05 to 2.35 seconds, so after 1.6 as far as one knows: ten a second are sixteen, of which there may be twice as many.
    look(&mut refills, 12.3, &blocks, &[]);
    check(&mut refills, 12.3, 130, [32, 0, 98]);
}

#[test]
fn what_comes_late_is_of_the_window_all_the_same() {
    let mut refills = looked_at();
    sampled(&mut refills, &[7], 1, 9.97);
    look(&mut refills, 10.4, &[], &[]);
    check(&mut refills, 10.5, 400, [200, 200, 0]);
    // Its address was handed out once more: when that was is known with the next window.
    sampled(&mut refills, &[7], 0, 12.0);
    look(&mut refills, 12.2, &[], &[]);
    check(&mut refills, 12.2, 320, [213, 107, 0]);
}

#[test]
fn who_drops_all_is_told_at_the_first_look() {
    let mut refills = Refills::default();
    window(&mut refills, 0.9);
    let churned: Vec<u64> = (1..100).collect();
    for round in [9.91, 9.93, 9.95, 9.97, 9.99] {
        sampled(&mut refills, &churned, 0, round);
    }
    window(&mut refills, 9.9);
    let drops = |refills: &Refills, second| refills.drops(3, 0, at(second));
    look(&mut refills, 9.95, &[], &[]);
    assert!(!drops(&refills, 9.95));
    look(&mut refills, 10.3, &churned[20..], &[]);
    assert!(drops(&refills, 1.1) && drops(&refills, 99.0));
    assert!(!drops(&refills, 0.9));
    // The next window says something else of the time since this one.
    sampled(&mut refills, &churned, 0, 29.95);
    window(&mut refills, 29.9);
    look(&mut refills, 30.3, &[], &[]);
    assert!(drops(&refills, 1.1) && drops(&refills, 9.9));
    assert!(!drops(&refills, 10.1) && !drops(&refills, 99.0));
}

#[test]
fn windows_that_are_first_looked_at_together_speak_each_of_its_time() {
    let mut refills = Refills::default();
    let churned: Vec<u64> = (1..100).collect();
    for second in [9.0, 19.0] {
        for round in [0.91, 0.93, 0.95, 0.97, 0.99] {
            sampled(&mut refills, &churned, 0, second + round);
        }
        window(&mut refills, second + 0.9);
    }
    sampled(&mut refills, &churned, 1, 29.95);
    window(&mut refills, 29.9);
    // Of the last window all are still there.
    look(&mut refills, 30.3, &[], &[]);
    let drops = |tally, second| refills.drops(3, tally, at(second));
    assert!(drops(0, 1.0) && drops(0, 19.0));
    assert!(!drops(0, 25.0) && !drops(1, 1.0) && !drops(1, 25.0));
}

#[test]
fn who_drops_all_in_every_round_is_told_by_the_window_though_the_last_round_is_there() {
    let blocks: Vec<u64> = (1..100).collect();
    let drops = |rounds: &[f64]| {
        let mut refills = Refills::default();
        for &round in rounds {
            sampled(&mut refills, &blocks, 0, round);
        }
        window(&mut refills, 9.9);
        look(&mut refills, 10.3, &[], &[]);
        refills.drops(3, 0, at(5.0))
    };
    assert!(drops(&[9.91, 9.93, 9.95, 9.97, 9.99]));
    assert!(!drops(&[9.95]));
}

#[test]
fn a_cache_that_has_turned_over_at_a_look_was_not_dropped_soon() {
    let cached: Vec<u64> = (1..100).collect();
    for first in [&[][..], &cached] {
        let mut refills = Refills::default();
        sampled(&mut refills, &cached, 0, 9.95);
        window(&mut refills, 9.9);
        look(&mut refills, 10.3, first, &[]);
        look(&mut refills, 13.3, &cached, &[]);
        assert!(!refills.drops(3, 0, at(5.0)) && !refills.drops(3, 0, at(13.0)));
    }
}

#[test]
fn of_who_keeps_less_than_half_the_first_part_of_a_window_counts() {
    let mut refills = Refills::default();
    for (block, second) in (1..=10).zip([9.91, 9.92, 9.925, 9.93, 9.96, 9.97, 9.98, 9.985, 9.99, 9.995]) {
        sampled(&mut refills, &[block], 0, second);
    }
    sampled(&mut refills, &[20, 21], 1, 9.99);
    window(&mut refills, 9.9);
    look(&mut refills, 10.3, &[1, 3, 4, 5, 6, 7, 8], &[]);
    // Of A's there are 2, 9 and 10, of which only the first counts, for all as four of ten were allocated so early.
    let weights = |refills: &Refills, tally| -> Vec<f64> {
        let of_it = refills.samples.values().filter(|sample| sample.tally == tally);
        of_it.map(|sample| sample.weight).collect()
    };
    assert_eq!(weights(&refills, 0), [2.5]);
    assert_eq!(weights(&refills, 1), [1.0, 1.0]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut refills = Refills::default();
    for addr in 0..2 * waiting::MAX_ENDED as u64 {
        refills.sampled(addr, 3, 0, at(1.0));
        refills.sampled(addr % 7, 3, 0, at(1.0));
        refills.sampled(addr, usize::MAX, 0, at(1.0));
    }
    assert_eq!(
        (refills.samples.len(), refills.waiting.sizes()),
        (MAX_SAMPLES, [0, waiting::MAX_ENDED, 1])
    );
    for second in 0..20 {
        window(&mut refills, f64::from(second));
    }
    assert_eq!(refills.waiting.sizes()[0], waiting::MAX_WINDOWS);
    // Of these windows none has any of them.
    look(&mut refills, 100.0, &[], &[]);
    assert!(refills.samples.is_empty());
    assert_eq!(refills.waiting.sizes(), [0; 3]);
}

#[test]
fn of_whom_not_all_is_remembered_it_is_not_known_whether_he_drops() {
    let drops = |rounds: u64| {
        let mut refills = Refills::default();
        for round in 0..rounds {
            for addr in 0..1024 {
                refills.sampled(addr, 3, 0, MonotonicNs(at(9.9).0 + round));
            }
        }
        window(&mut refills, 9.9);
        look(&mut refills, 10.3, &[], &[]);
        let is_partial = refills.young(3).is_some_and(|young| young.is_partial);
        (refills.drops(3, 0, at(5.0)), is_partial)
    };
    assert_eq!(drops(200), (true, false));
    assert_eq!(drops(300), (false, true));
}

proptest::proptest! {
    #[test]
    fn shares_add_up_to_what_was_filled_again(
        steps in proptest::collection::vec((0..4u8, 0..40u64, 0..3u32, 0..500u64), 0..60)
    ) {
        let mut refills = Refills::default();
        let mut second = 10.0;
        for (step, pool, tally, all) in steps {
            second += 0.3;
            match step {
                0 => sampled(&mut refills, &[pool, pool + 1], tally, second),
                1 => window(&mut refills, second - 0.5),
                2 => look(&mut refills, second, &[pool], &[pool + 20]),
                _ => {
                    let mut refilled = [0; SIZE_CLASSES];
                    refilled[3] = all;
                    let shares = refills.share(at(second), &refilled, |addr, _| match addr / POOL % 3 {
                        0 => Filled::ByOwner,
                        1 => Filled::Again(at(second - 1.0)),
                        _ => Filled::ByAnybody,
                    });
                    let sum: u64 = shares.iter().map(|share| share.blocks).sum();
                    proptest::prop_assert_eq!(sum, all, "{:?}", shares);
                }
            }
        }
    }
}

#[test]
fn whether_somebody_drops_all_is_not_known_if_some_were_refused() {
    for (refused, expected) in [(&[][..], true), (&[6], false)] {
        let mut refills = looked_at();
        let pools: Vec<u64> = (6..46).collect();
        for round in [10.91, 10.93, 10.95, 10.97, 10.99] {
            sampled(&mut refills, &pools, 1, round);
        }
        window(&mut refills, 10.9);
        let addr = |pool: &u64| pool * POOL;
        refills.surveyed(&Survey {
            last: at(11.3),
            used: at(11.3).0,
            gone: pools
                .iter()
                .map(addr)
                .filter(|gone| !refused.iter().map(addr).any(|addr| addr == *gone))
                .collect(),
            refused: refused.iter().map(addr).collect(),
            ..Survey::default()
        });
        assert_eq!(refills.drops(3, 1, at(10.95)), expected);
    }
}
