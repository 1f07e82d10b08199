//! Acquisitions and audits of a pool or two, step by step.

use super::*;

const POOL: u64 = 16384;

/// Blocks that A, B, the time before and the refilled pools hold after these steps.
#[track_caller]
fn check(steps: &[Step], expected: [u64; 4]) {
    let mut pools = Pools::default();
    for (step, time) in steps.iter().zip((10..).step_by(10)) {
        match step {
            Acquire(tally, pool) => {
                pools.acquired(pool * POOL + 64, 3, *tally, MonotonicNs(time));
            }
            Gap(begins) => pools.gap(MonotonicNs(time), (!begins).then_some(MonotonicNs(time))),
            Disown(tally, until) => {
                pools.disown(|class, of, time| class == 3 && of == *tally && time.0 <= *until);
            }
            Audit(changed) | Late(changed) | Part(changed, _) => pools.audit(&HeapAudit {
                complete: !matches!(step, Part(_, false)),
                is_partial: matches!(step, Part(..)),
                began: MonotonicNs(if matches!(step, Late(_)) { 0 } else { time }),
                ended: MonotonicNs(time + 1),
                pool_bytes: 16384,
                changed: changed
                    .iter()
                    .map(|&(pool, used, carved)| PoolState {
                        address: pool * POOL,
                        class: 3,
                        used,
                        carved,
                        arena: 0,
                    })
                    .collect(),
                ..HeapAudit::default()
            }),
        }
    }
    let of = |holder: Holder| {
        let uses = pools.uses().filter(|found| found.holder == holder);
        uses.map(|found| found.blocks).sum::<u64>()
    };
    let found = [
        of(Holder::Tally(0)),
        of(Holder::Tally(1)),
        of(Holder::Special(Special::Before)),
        of(Holder::Special(Special::Refilled)),
    ];
    assert_eq!(found, expected);
}

/// A reading of all pools of a program that was traced from its start: pool, class, and blocks in use of how many that were handed out.
fn reading(time: u64, changed: &[(u64, u8, u16, u16)]) -> HeapAudit {
    let state = |&(pool, class, used, carved): &(u64, u8, u16, u16)| PoolState {
        address: pool * POOL,
        class,
        used,
        carved,
        arena: 0,
    };
    HeapAudit {
        complete: true,
        since_start: true,
        began: MonotonicNs(time),
        ended: MonotonicNs(time + 1),
        pool_bytes: 16384,
        changed: changed.iter().map(state).collect(),
        ..HeapAudit::default()
    }
}

/// Pools in a gap, of which some pages were touched at these times; who has how much of each.
#[test]
fn a_pool_of_a_gap_is_of_who_touched_it_first_or_beside_it() {
    let mut pools = Pools::default();
    // Who acquires pools of which class is known from before; D does not of class 3, and of E and F nothing is known, of
    // whom F touched memory when acquisitions were traced.
    for (class, tally) in [(3, 7), (4, 8), (3, 9), (5, 6)] {
        pools.acquired(99 * POOL, class, tally, MonotonicNs(1));
    }
    let mut audit = |time: u64, changed: &[(u64, u8, u16)], touches: &[(u64, TallyIndex, u64)]| {
        let changed: Vec<_> = changed
            .iter()
            .map(|&(pool, class, used)| (pool, class, used, 200))
            .collect();
        let of_audit = reading(time, &changed);
        pools.audit(&of_audit);
        pools.claim(&of_audit, || {
            let all = touches.iter().map(|&(pool, tally, time)| Touched {
                addr: pool * POOL + 4096,
                tally,
                pages: 4,
                time,
            });
            all.collect()
        });
        if time == 10 {
            pools.gap(MonotonicNs(11), None);
        }
        let mut uses: Vec<_> = pools.uses().filter(|found| found.blocks > 0).collect();
        uses.sort_unstable_by_key(|found| found.address);
        uses.iter()
            .map(|found| (found.address / POOL, found.holder, found.samples))
            .collect::<Vec<_>>()
    };
    let (before, refilled) = (
        Holder::Special(Special::Before),
        Holder::Special(Special::Refilled),
    );
    // Without a gap it is known who acquires pools: here nobody did.
    assert_eq!(audit(10, &[(1, 3, 9)], &[(1, 7, 5)]), [(1, before, 0)]);
    let in_gap = [
        (2, 3, 9),
        (3, 4, 9),
        (4, 3, 9),
        (9, 3, 9),
        (20, 5, 9),
        (40, 3, 9),
        (60, 3, 9),
    ];
    let expected = [
        (1, before, 0),
        (2, Holder::Tally(7), 1),
        (3, Holder::Tally(8), 1),
        (4, Holder::Tally(7), 0),
        (9, Holder::Tally(9), 1),
        (20, refilled, 0),
        (40, Holder::Tally(5), 1),
        (60, Holder::Tally(5), 0),
    ];
    let touches = [
        (2, 7, 15),
        (3, 8, 15),
        (4, 6, 15),
        (9, 9, 15),
        (40, 5, 15),
        (60, 4, 10),
    ];
    assert_eq!(audit(20, &in_gap, &touches), expected);
    // It is theirs from then on; what is set up anew where a pool was is not new memory.
    let again = [(2, 3, 12), (4, 4, 9), (9, 3, 0)];
    let expected = [
        (1, before, 0),
        (2, Holder::Tally(7), 1),
        (2, refilled, 0),
        (3, Holder::Tally(8), 1),
        (4, refilled, 0),
        (20, refilled, 0),
        (40, Holder::Tally(5), 1),
        (60, Holder::Tally(5), 0),
    ];
    assert_eq!(audit(30, &again, &[(4, 8, 25)]), expected);
}

#[test]
fn a_pool_is_known_to_have_been_filled_again_from_the_last_audit_on_that_found_it_was_not() {
    let mut pools = Pools::default();
    let mut check = |time: u64, used: u16, is_partial: bool, expected: Filled| {
        // One that did not come to the pool tells nothing of it.
        let of_others = is_partial.then_some(2 * POOL);
        pools.audit(&HeapAudit {
            complete: true,
            is_partial,
            began: MonotonicNs(time),
            ended: MonotonicNs(time + 1),
            pool_bytes: 16384,
            changed: vec![PoolState {
                address: of_others.unwrap_or(POOL),
                class: 3,
                used,
                carved: 200,
                arena: 0,
            }],
            ..HeapAudit::default()
        });
        assert_eq!(pools.filled(POOL + 64, 3, 16384), expected);
    };
    check(10, 200, false, Filled::ByOwner);
    check(20, 4, false, Filled::ByOwner);
    check(25, 9, true, Filled::ByOwner);
    for time in [30, 40] {
        check(time, 100, false, Filled::Again(MonotonicNs(21)));
    }
    check(50, 0, false, Filled::ByOwner);
}

enum Step {
    Acquire(TallyIndex, u64),
    Gap(bool),
    /// Who drops what he allocates, until then.
    Disown(TallyIndex, u64),
    /// Pools that changed: number, used, carved.
    Audit(Vec<(u64, u16, u16)>),
    /// The same of an audit that may not have known of anything before it.
    Late(Vec<(u64, u16, u16)>),
    /// Of one that did not read all, and whether all were read by then.
    Part(Vec<(u64, u16, u16)>, bool),
}
use Step::{Acquire, Audit, Disown, Gap, Late, Part};

#[test]
fn a_pool_is_its_acquirers_until_its_blocks_are_used_again() {
    check(&[Acquire(0, 1), Audit(vec![(1, 50, 50)])], [50, 0, 0, 0]);
    check(
        &[
            Acquire(0, 1),
            Audit(vec![(1, 50, 50)]),
            Audit(vec![(1, 200, 200)]),
        ],
        [200, 0, 0, 0],
    );
    check(
        &[
            Acquire(0, 1),
            Audit(vec![(1, 200, 200)]),
            Audit(vec![(1, 4, 200)]),
            Audit(vec![(1, 200, 200)]),
        ],
        [4, 0, 0, 196],
    );
    check(
        &[
            Acquire(0, 1),
            Audit(vec![(1, 100, 100)]),
            Audit(vec![(1, 50, 100)]),
            Audit(vec![(1, 120, 120)]),
        ],
        [70, 0, 0, 50],
    );
}

#[test]
fn an_acquisition_waits_for_an_audit_that_is_newer() {
    check(
        &[
            Acquire(0, 1),
            Late(vec![(2, 5, 5)]),
            Audit(vec![(1, 50, 50)]),
            Audit(vec![(1, 60, 60)]),
        ],
        [60, 0, 5, 0],
    );
    // It is not applied again.
    check(
        &[
            Acquire(0, 1),
            Late(vec![(1, 50, 50)]),
            Acquire(1, 1),
            Audit(vec![(1, 20, 20)]),
            Audit(vec![(1, 30, 30)]),
        ],
        [0, 30, 0, 0],
    );
}

#[test]
fn the_newest_acquisition_owns_the_pool() {
    check(
        &[
            Acquire(0, 1),
            Audit(vec![(1, 200, 200)]),
            Acquire(1, 1),
            Audit(vec![(1, 30, 30)]),
        ],
        [0, 30, 0, 0],
    );
    check(
        &[Acquire(0, 1), Acquire(1, 1), Audit(vec![(1, 30, 30)])],
        [0, 30, 0, 0],
    );
    check(
        &[Acquire(0, 1), Audit(vec![(1, 30, 30)]), Audit(vec![(1, 0, 0)])],
        [0, 0, 0, 0],
    );
}

#[test]
fn what_comes_while_nobody_looks_is_whose_the_windows_say() {
    let first = || Audit(vec![(1, 30, 30)]);
    check(
        &[first(), Gap(true), Audit(vec![(2, 5, 5)]), Audit(vec![(3, 4, 4)])],
        [0, 0, 30, 9],
    );
    check(
        &[
            first(),
            Gap(true),
            Gap(false),
            Acquire(0, 3),
            Audit(vec![(2, 5, 5), (3, 4, 4)]),
            Acquire(1, 4),
            Audit(vec![(4, 2, 2)]),
        ],
        [4, 2, 30, 5],
    );
    // Nothing is known of what was there before the first audit.
    check(&[Gap(true), first()], [0, 0, 30, 0]);
}

#[test]
fn pools_that_are_read_late_are_whose_they_would_have_been() {
    // The search goes on: they may have been there before the gap. It ends with the third; what comes behind it was not.
    check(
        &[
            Part(vec![(1, 30, 30)], false),
            Gap(true),
            Part(vec![(2, 5, 5)], false),
            Gap(false),
            Audit(vec![(3, 4, 4)]),
            Audit(vec![(4, 2, 2)]),
        ],
        [0, 0, 39, 2],
    );
    // All were read once; one came in the gap, and the first reading behind it did not come there. Where others come from that no
    // event told of is not known, but they were not there before tracing.
    check(
        &[
            Audit(vec![(1, 30, 30)]),
            Gap(true),
            Gap(false),
            Part(vec![], true),
            Part(vec![(2, 5, 5)], true),
            Audit(vec![(3, 4, 4)]),
            Audit(vec![(4, 2, 2)]),
        ],
        [0, 0, 30, 11],
    );
    // They were acquired before a reading that did not come there: one is new, one was set up anew.
    check(
        &[
            Audit(vec![(2, 90, 90)]),
            Acquire(0, 1),
            Acquire(0, 2),
            Acquire(1, 2),
            Part(vec![(3, 5, 5)], true),
            Part(vec![(1, 50, 50)], true),
            Audit(vec![(2, 7, 7)]),
        ],
        [50, 7, 5, 0],
    );
}

#[test]
fn what_is_left_in_the_pools_of_who_drops_everything_is_anybodys() {
    check(
        &[
            Acquire(0, 1),
            Acquire(1, 2),
            Audit(vec![(1, 50, 50), (2, 50, 50)]),
            Disown(0, 15),
            Audit(vec![(1, 60, 60)]),
            Acquire(0, 3),
            Audit(vec![(3, 20, 20)]),
            Disown(0, 15),
        ],
        [20, 50, 0, 60],
    );
}

#[test]
fn what_nobody_acquired_was_there_before() {
    check(&[Audit(vec![(1, 30, 30), (2, 5, 5)])], [0, 0, 35, 0]);
    check(
        &[Audit(vec![(1, 30, 255)]), Audit(vec![(1, 35, 255)])],
        [0, 0, 30, 5],
    );
}

/// A reading finds pools where events told of some; of a new arena they tell when the gap is over.
#[test]
fn what_was_acquired_in_a_gap_is_found_long_after_it() {
    let mut pools = Pools::default();
    pools.gap(MonotonicNs(30), None);
    pools.gap(MonotonicNs(30), Some(MonotonicNs(40)));
    for (time, pool) in [(20, 1), (25, 2), (50, 3), (60, 4), (90, 5)] {
        pools.audit(&reading(time, &[(pool, 3, 5, 5)]));
    }
    let before = |found: &Use| found.holder == Holder::Special(Special::Before);
    let found: Vec<u64> = pools
        .uses()
        .filter(|found| found.blocks > 0 && before(found))
        .map(|found| found.address / POOL)
        .collect();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&1) && found.contains(&2), "{found:?}");
}

#[test]
fn what_lies_in_disowned_pools_is_of_who_keeps_those_of_that_time() {
    let mut pools = Pools::default();
    let acquired = [
        (0, 1, 10),
        (1, 2, 20),
        (1, 3, 30),
        (0, 4, 40),
        (2, 5, 25),
        (2, 6, 90),
    ];
    for (tally, pool, time) in acquired {
        pools.acquired(pool * POOL + 64, 3, tally, MonotonicNs(time));
    }
    let changed = acquired.map(|(_, pool, _)| PoolState {
        address: pool * POOL,
        class: 3,
        used: 5,
        carved: 5,
        arena: 0,
    });
    pools.audit(&HeapAudit {
        complete: true,
        began: MonotonicNs(100),
        ended: MonotonicNs(101),
        pool_bytes: 16384,
        changed: changed.to_vec(),
        ..HeapAudit::default()
    });
    assert!(pools.disowned().is_empty());
    pools.disown(|_, tally, _| tally == 0);
    let keepers = FxHashMap::from_iter([(1, 10), (2, 5)]);
    assert_eq!(pools.disowned(), FxHashMap::from_iter([(3, (10, keepers))]));
}
