//! What the governor decides, told made-up counters: no time passes here.
//!
//! Apart because the rules and their cases do not fit one file.

use super::*;
use crate::ingest::event::Counters;

const STEP_NS: u64 = 10_000_000;
const BEGAN: BootNs = BootNs(1);
const STEPS_PER_SECOND: u64 = 1_000_000_000 / STEP_NS;

/// A process that runs for a part of the time, and hits so often a second while a group is on; the share of what it has a
/// budget of that this takes, and how often the group was taken off. A hit takes a microsecond, 300 ns of it its program.
fn run(runs: f64, hits_per_second: f64, budget: Option<f64>, seconds: u64) -> (f64, u32) {
    let mut governor = Governor::new(Mode::Heap, budget, BEGAN);
    governor.set_hit_cost(340.0);
    let large = GROUPS[0];
    let (mut hits, mut on, mut taken) = (0.0, true, 0);
    for step in 0..seconds * STEPS_PER_SECOND {
        if on {
            hits += hits_per_second / STEPS_PER_SECOND as f64;
        }
        let used = Duration::from_nanos(step * STEP_NS).mul_f64(runs);
        let (mut hits_by_group, mut run_ns_by_group) = ([0; group::GROUPS], [0; group::GROUPS]);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        let whole = hits as u64;
        hits_by_group[large.place()] = whole;
        run_ns_by_group[large.place()] = whole * 300;
        let counters = LiveCounters {
            pid: Pid(7),
            start: BootNs(1),
            counters: Counters {
                hits_by_group,
                run_ns_by_group,
                ..Counters::default()
            },
        };
        match governor.judge(MonotonicNs(step * STEP_NS), &[counters], |_| Some(used)) {
            Some(Verdict::TakeOff(group)) => {
                assert_eq!(group, large);
                (on, taken) = (false, taken + 1);
            }
            Some(Verdict::PutBack(_)) => on = true,
            None => {}
        }
    }
    let time = seconds as f64 * runs.max(Share::Windows.least_use(1.0));
    (hits * 1000.0 / 1e9 / time, taken)
}

#[test]
fn what_is_cheap_stays_on() {
    let (share, taken) = run(1.0, 3_100.0, Some(2.0), 60);
    assert!(taken == 0 && share > 0.003, "{share} {taken}");
    // What others do not need is for it once they have saved up.
    let (share, taken) = run(1.0, 5_200.0, Some(2.0), 60);
    assert!((1..=2).contains(&taken) && share > 0.0045, "{share} {taken}");
    assert_eq!(run(1.0, 1e6, None, 60).1, 0);
    // Much for what it does, and little for the host.
    assert_eq!(run(0.001, 100.0, Some(2.0), 60).1, 0);
}

#[test]
fn what_is_dear_is_held_within_the_budget() {
    for rate in [50_000.0, 200_000.0, 1_000_000.0] {
        let (share, taken) = run(1.0, rate, Some(2.0), 120);
        assert!(taken > 1, "{rate}: {taken}");
        assert!(share < 0.02, "{rate}: {share}");
    }
    let (share, taken) = run(0.1, 50_000.0, Some(2.0), 600);
    assert!(taken > 1 && share < 0.02, "{share} {taken}");
}

/// A process that hits large blocks and pools a hundred thousand times a second while they stand, where putting a group in
/// place takes so long; how often each was put back in eleven seconds, and for how many steps each stood after that.
fn put_back(change: Duration) -> [(u32, u32); 2] {
    let mut governor = Governor::new(Mode::Heap, Some(2.0), BEGAN);
    governor.set_hit_cost(1000.0);
    let groups = [GROUPS[0], GROUPS[3]];
    let (mut hits, mut on, mut backs) = ([0; group::GROUPS], [true; 2], [(0, 0); 2]);
    for step in 0..11 * STEPS_PER_SECOND {
        for ((group, _), (times, steps)) in groups.iter().zip(on).zip(&mut backs).filter(|((_, on), _)| *on) {
            hits[group.place()] += 100_000 / STEPS_PER_SECOND;
            *steps += u32::from(*times > 0);
        }
        let counters = LiveCounters {
            pid: Pid(7),
            start: BootNs(1),
            counters: Counters {
                hits_by_group: hits,
                ..Counters::default()
            },
        };
        let used = Duration::from_nanos(step * STEP_NS);
        let verdict = governor.judge(MonotonicNs(step * STEP_NS), &[counters], |_| Some(used));
        let place = |group: Group| usize::from(group == groups[1]);
        match verdict {
            Some(Verdict::TakeOff(group)) => on[place(group)] = false,
            Some(Verdict::PutBack(group)) => {
                governor.changed(group.number, change);
                on[place(group)] = true;
                backs[place(group)].0 += 1;
            }
            None => {}
        }
    }
    backs
}

#[test]
fn what_a_change_costs_is_saved_up_first_and_by_its_own_share() {
    let [large, pools] = put_back(Duration::ZERO);
    assert!(
        (2..=4).contains(&large.0) && (6..=10).contains(&pools.0),
        "{large:?} {pools:?}"
    );
    // A change costs a busy process five milliseconds, of which each share has five or six a second.
    let [large, pools] = put_back(Duration::from_millis(10));
    assert!(
        (2..=4).contains(&large.0) && (3..=6).contains(&pools.0),
        "{large:?} {pools:?}"
    );
    for (times, steps) in [large, pools] {
        assert!(steps >= times * 4, "{times} looks of {steps} steps");
    }
    // More than can be saved up: seldom, but not never.
    let [large, pools] = put_back(Duration::from_secs(1));
    assert!(
        (1..=2).contains(&large.0) && (1..=2).contains(&pools.0),
        "{large:?} {pools:?}"
    );
}

#[test]
fn there_is_room_for_a_window_unless_the_budget_is_too_small() {
    let ms = Duration::from_millis;
    let mut governor = Governor::new(Mode::Heap, Some(2.0), BEGAN);
    governor.changed(group::BLOCKS, ms(1000));
    assert!((ms(40)..ms(60)).contains(&governor.most_room()));
    assert!(Governor::new(Mode::Heap, Some(0.02), BEGAN).most_room() < ms(5));
    assert_eq!(Governor::new(Mode::Heap, None, BEGAN).most_room(), Duration::MAX);
}

#[test]
fn what_ends_large_blocks_looks_in_time_is_known_from_the_last_one() {
    let ms = Duration::from_millis;
    let mut governor = Governor::new(Mode::Heap, Some(2.0), BEGAN);
    governor.set_hit_cost(1000.0);
    let large = GROUPS[0];
    // Nearly half of the time of a process that always works, while it stands.
    let (mut time, mut hits, mut stands) = (ms(0), 0, true);
    let (mut looks, mut look) = (Vec::new(), Duration::ZERO);
    while time < ms(60_000) {
        let mut hits_by_group = [0; group::GROUPS];
        hits_by_group[large.place()] = hits;
        let counters = LiveCounters {
            pid: Pid(7),
            start: BootNs(1),
            counters: Counters {
                hits_by_group,
                ..Counters::default()
            },
        };
        let at = later(MonotonicNs(0), time);
        match governor.judge(at, &[counters], |_| Some(time)) {
            Some(Verdict::TakeOff(_)) => {
                looks.push(look);
                (stands, look) = (false, Duration::ZERO);
            }
            Some(Verdict::PutBack(_)) => stands = true,
            None => {}
        }
        let pace = governor.pace(ms(250));
        if stands {
            look += pace;
            hits += u64::try_from(pace.as_micros()).unwrap_or(0) * 2 / 5;
        }
        time += pace;
    }
    assert!(looks.len() > 8, "{looks:?}");
    let later = looks.get(1..).unwrap_or_default();
    assert!(
        later.iter().all(|look| (ms(20)..ms(60)).contains(look)),
        "{looks:?}"
    );
    let cost = Duration::from_micros(hits).as_secs_f64() / time.as_secs_f64();
    assert!((0.003..0.02).contains(&cost), "{cost}");
}

#[test]
fn what_takes_the_recorder_long_to_put_in_place_rests_longer() {
    let at = |seconds| MonotonicNs(seconds * 1_000_000_000);
    let mut governor = Governor::new(Mode::Heap, Some(2.0), BEGAN);
    governor.judge(at(0), &[], |_| None);
    assert!(!governor.rests(group::LARGE, at(0)));
    governor.cost_us(group::LARGE, Duration::from_millis(48));
    assert!(governor.rests(group::LARGE, at(0)) && !governor.rests(group::BLOCKS, at(0)));
    // Forty milliseconds are owed.
    let ends = 40 * Share::Large.change_share() / 1000;
    for (second, rests) in [(ends - 1, true), (ends, false)] {
        governor.judge(at(second), &[], |_| None);
        assert_eq!(governor.rests(group::LARGE, at(second)), rests, "{second}");
    }
    // With many at work it counts for more.
    governor.at_work = 8.0;
    governor.cost_us(group::LARGE, Duration::from_millis(20));
    for (second, rests) in [(ends + 19, true), (ends + 20, false)] {
        governor.judge(at(second), &[], |_| None);
        assert_eq!(governor.rests(group::LARGE, at(second)), rests, "{second}");
    }
    let mut unbounded = Governor::new(Mode::Heap, None, BEGAN);
    unbounded.cost_us(group::LARGE, Duration::from_secs(9));
    assert!(!unbounded.rests(group::LARGE, at(0)));
}

#[test]
fn what_the_start_of_a_program_costs_is_forgiven_once() {
    let mut purse = Purse::new(Share::Windows, 0.02, 1.0);
    let mut owes = |earned, spent| {
        purse.settle(earned, spent, MonotonicNs(1));
        -purse.balance
    };
    // Half a second of its budget, and not the seven that it took.
    assert!((owes(0.0, 0.03) - 0.01 * Share::Windows.part()).abs() < 1e-6);
    // What was paid in advance is earned first.
    let advance = 0.02 * Share::Windows.part();
    assert!((owes(advance, 0.0) - 0.5 * advance).abs() < 1e-6);
    assert!(owes(0.0025, 0.0) < 0.0);
    assert!(owes(0.0, 0.03) > 0.029);
}

/// What a window may cost at the first look at a process that started then, and two and six seconds of work later.
fn first_rooms(start: BootNs) -> [Duration; 3] {
    let mut governor = Governor::new(Mode::Heap, Some(2.0), BootNs(100));
    let counters = [LiveCounters {
        pid: Pid(7),
        start,
        counters: Counters::default(),
    }];
    [0, 2, 6].map(|second| {
        let used = Duration::from_secs(second);
        governor.judge(MonotonicNs(second * 1_000_000_000), &counters, |_| Some(used));
        governor.room()
    })
}

#[test]
fn who_ran_before_the_recording_begins_with_nothing() {
    let ms = Duration::from_millis;
    // Of a bystander it is not known.
    for start in [BootNs(100), BootNs(0)] {
        let [first, second, third] = first_rooms(start);
        // It is paid for 3.4 seconds in advance.
        assert!(
            (ms(14)..ms(15)).contains(&first) && second == first && third > first + ms(8),
            "{start}: {first:?} {second:?} {third:?}"
        );
    }
    let [first, second, third] = first_rooms(BootNs(99));
    assert!(
        first.is_zero() && (ms(8)..ms(20)).contains(&second) && third > second + ms(8),
        "{first:?} {second:?} {third:?}"
    );
}

#[test]
fn a_short_run_is_not_spent_on_what_was_saved_for_a_long_one() {
    let (share, taken) = run(1.0, 500_000.0, Some(2.0), 1);
    assert!(taken > 0 && share < 0.02, "{share} {taken}");
}

/// So many processes that use a hundredth of the time each and hit large blocks so often a second while they stand; what all of that
/// costs, seconds in a second, behind what each begins with.
fn many(processes: u32, hits_per_second: u64) -> f64 {
    const BEGINS: u64 = 60;
    const SECONDS: u64 = 600;
    let mut governor = Governor::new(Mode::Heap, Some(2.0), BEGAN);
    governor.set_hit_cost(1000.0);
    let (mut hits, mut stands, mut first) = (0, true, 0);
    for step in 0..SECONDS * 10 {
        if step == BEGINS * 10 {
            first = hits;
        }
        if stands {
            hits += hits_per_second / 10;
        }
        let mut hits_by_group = [0; group::GROUPS];
        hits_by_group[GROUPS[0].place()] = hits;
        let counters: Vec<LiveCounters> = (0..processes)
            .map(|pid| LiveCounters {
                pid: Pid(pid),
                start: BootNs(1),
                counters: Counters {
                    hits_by_group,
                    ..Counters::default()
                },
            })
            .collect();
        let used = Duration::from_millis(step);
        match governor.judge(MonotonicNs(step * 100_000_000), &counters, |_| Some(used)) {
            Some(Verdict::TakeOff(_)) => stands = false,
            Some(Verdict::PutBack(_)) => stands = true,
            None => {}
        }
    }
    f64::from(processes) * (hits - first) as f64 * 1e-6 / (SECONDS - BEGINS) as f64
}

#[test]
fn who_sleeps_does_not_count_as_at_work() {
    let process = |pid| LiveCounters {
        pid: Pid(pid),
        start: BootNs(1),
        counters: Counters::default(),
    };
    let counters: Vec<LiveCounters> = (0..50).map(process).collect();
    let mut governor = Governor::new(Mode::Heap, Some(2.0), BEGAN);
    for step in 0..100 {
        // Three work for a tenth of the time.
        let used = |pid: Pid| Some(Duration::from_millis(if pid.get() < 3 { step * 10 } else { 7 }));
        governor.judge(MonotonicNs(step * 100_000_000), &counters, used);
    }
    assert!((governor.at_work - 3.0).abs() < 1e-9, "{}", governor.at_work);
}

#[test]
fn the_least_that_each_of_many_has_is_shared() {
    let (few, crowd) = (many(4, 2000), many(100, 2000));
    // Three thousandths of a processor's 2%, and a hundredth of it more than the other shares do not need.
    assert!((0.001..0.02).contains(&few), "{few}");
    assert!((0.001..0.02).contains(&crowd), "{crowd}");
}
