//! The newest window in which blocks of one size class were allocated: at which rate, and how long they stayed.
//!
//! Who allocates a block every so often and keeps each for some time holds as many as the one divided by the other: that is what a
//! block of the window stands for, whether it is still there or not. Invariant: a block stands for no more than were allocated
//! in the time that the window stands for.

use rustc_hash::FxHashMap;
use tracer_ebpf::limits::MOST_TICK_NS;

use super::lives::{Lives, between};
use crate::profile::live::TallyIndex;

/// A window stands for what comes after it, too, until the next one: for no more time than this, which is how long it takes until
/// that one has been looked at, nanoseconds.
pub(super) const TAIL: u64 = 10_000_000_000;
/// Places in which blocks ended that are kept apart.
const MOST_UNDECIDED: usize = 1 << 16;
/// The first of so many parts of a window tells of those whose blocks soon go.
const PARTS: u64 = 3;
/// Lengths that are remembered.
const MOST_LIVES: usize = 1 << 15;
/// A place: what fits into the smallest pool.
const PLACE_BITS: u32 = 12;

/// A window, as one process went through it. Of what it says how much there is and how long it stays, the time is the process's own:
/// nanoseconds of its work, which stand still while it waits, and from which what its hits took is left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// By the clock.
    pub(super) from: u64,
    pub(super) to: u64,
    /// When the time begins that it stands for, by the clock: the end of the one before.
    pub(super) since: u64,
    pub(super) one_in: u32,
    /// Work before it, and in it.
    pub(super) begin: f64,
    pub(super) work: f64,
    /// Work of the time that it stands for, up to its end.
    pub(super) period: f64,
}

impl Window {
    /// Whether a block was allocated in it.
    pub(super) fn has(&self, born: u64) -> bool {
        // An event's time can be a tick of the clock before its own.
        (self.from.saturating_sub(MOST_TICK_NS)..=self.to).contains(&born)
    }

    /// Whether that was in its first part.
    pub(super) fn is_early(&self, born: u64) -> bool {
        born <= self.from + self.to.saturating_sub(self.from) / PARTS
    }

    /// Work up to a time in it.
    pub(super) fn work_at(&self, time: u64) -> f64 {
        let length = self.to.saturating_sub(self.from).max(1) as f64;
        let part = time.saturating_sub(self.from) as f64 / length;
        self.begin + self.work * part.min(1.0)
    }

    pub(super) fn end(&self) -> f64 {
        self.begin + self.work
    }

    /// Blocks of all that one of the sample stands for, in a nanosecond.
    fn rate(&self) -> f64 {
        f64::from(self.one_in) / self.work.max(1.0)
    }
}

/// Blocks that ended, of one stack.
#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    /// As far as a window stands for what comes after it.
    lengths: f64,
    /// The same lengths, as far as they are within the window's period.
    within: f64,
}

impl Ended {
    fn add(&mut self, other: Self) {
        self.lengths += other.lengths;
        self.within += other.within;
    }
}

/// Blocks that ended in one place, and when the last of them was allocated, by the clock.
#[derive(Clone, Copy, Debug, Default)]
struct Undecided {
    ended: Ended,
    born: u64,
}

/// What blocks of the window stand for: until now, and up to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct StandsFor {
    pub(super) now: f64,
    pub(super) at_end: f64,
}

/// A place in memory, and a stack.
type Place = (u64, TallyIndex);

/// See the module.
#[derive(Debug)]
pub(super) struct Young {
    pub(super) window: Window,
    /// Of those that were where blocks are filled again, and of those of which it is not known whether they were.
    ended: FxHashMap<TallyIndex, Ended>,
    undecided: FxHashMap<Place, Undecided>,
    /// Lengths of those that ended after it, by stack.
    lives: FxHashMap<TallyIndex, Vec<(f64, f64)>>,
    /// How many they are.
    known: usize,
    /// What is known of the window before.
    before: FxHashMap<TallyIndex, Lives>,
    /// How much of what they stand for there is room for.
    pub(super) fits: f64,
    /// Some were not looked at, so that there is more than these stand for.
    pub(super) is_partial: bool,
    /// How much of what there is can be of those stacks of which some were looked at.
    pub(super) part: f64,
}

impl Young {
    /// `before`: how long the blocks of the window before stayed.
    pub(super) fn new(window: Window, before: FxHashMap<TallyIndex, Lives>) -> Self {
        Self {
            window,
            ended: FxHashMap::default(),
            undecided: FxHashMap::default(),
            lives: FxHashMap::default(),
            known: 0,
            before,
            fits: 1.0,
            is_partial: false,
            part: 1.0,
        }
    }

    /// A block ended that was in use at `seen` and was not at `until`.
    pub(super) fn ended(&mut self, addr: u64, tally: TallyIndex, life: Life) {
        let born = self.window.work_at(life.born);
        let length = between((life.seen - born).max(0.0), life.until - born);
        let of_it = Ended {
            lengths: life.weight * length.min(self.window.period + TAIL as f64),
            within: life.weight * length.min(self.window.period),
        };
        let place = (addr >> PLACE_BITS << PLACE_BITS, tally);
        match life.refills {
            Some(true) => self.ended.entry(tally).or_default().add(of_it),
            None if self.undecided.len() < MOST_UNDECIDED || self.undecided.contains_key(&place) => {
                let undecided = self.undecided.entry(place).or_default();
                undecided.ended.add(of_it);
                undecided.born = undecided.born.max(life.born);
            }
            Some(false) | None => {}
        }
        if life.until > self.window.end() && self.known < MOST_LIVES {
            self.known += 1;
            self.lives.entry(tally).or_default().push((length, life.weight));
        }
    }

    /// A reading tells where blocks are filled again, and from when on.
    pub(super) fn decide(&mut self, refills: impl Fn(u64, u64) -> bool) {
        for ((place, tally), of_it) in self.undecided.drain() {
            if refills(place, of_it.born) {
                self.ended.entry(tally).or_default().add(of_it.ended);
            }
        }
    }

    /// What those stand for that ended, by stack.
    pub(super) fn of_ended(&self) -> impl Iterator<Item = (TallyIndex, StandsFor)> {
        self.ended.iter().map(|(&tally, ended)| {
            let stands_for = StandsFor {
                now: self.window.rate() * ended.lengths,
                at_end: self.window.rate() * ended.within,
            };
            (tally, stands_for)
        })
    }

    /// What one stands for that is still in use, by the time that the process has worked for.
    pub(super) fn of_living(&self, tally: TallyIndex, life: Life, now: f64) -> StandsFor {
        let period = self.window.period;
        let since = (now - self.window.end()).clamp(0.0, TAIL as f64);
        let most = period + since;
        let age = (life.seen - self.window.work_at(life.born)).max(0.0);
        let expected = |most: f64| {
            let of_it = self.before.get(&tally);
            of_it.and_then(|lives| lives.expected(age, most)).unwrap_or(most)
        };
        let rate = self.window.rate() * life.weight;
        StandsFor {
            now: rate * expected(most),
            at_end: rate * expected(period),
        }
    }

    /// What one is worth that is still in use when the next window takes this one's place.
    pub(super) fn settled(&self, weight: f64) -> f64 {
        self.window.rate() * self.window.period * self.fits * weight
    }

    /// How long its blocks stayed. `living`: those that still are.
    pub(super) fn into_lives(mut self, living: &[(TallyIndex, f64)]) -> FxHashMap<TallyIndex, Lives> {
        for &(tally, weight) in living {
            self.lives.entry(tally).or_default().push((f64::INFINITY, weight));
        }
        let all = self.lives.into_iter();
        all.map(|(tally, lives)| (tally, Lives::new(lives))).collect()
    }
}

/// What is known of a block, and how many it stands for since others are not looked at any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// By the clock, in the window.
    pub(super) born: u64,
    /// How long the process had worked when it was last found in use, or nothing,
    pub(super) seen: f64,
    /// ... and when it was not.
    pub(super) until: f64,
    pub(super) weight: f64,
    /// Whether it was where blocks are filled again, if that is known.
    pub(super) refills: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::{super::tests::nanoseconds as seconds, *};

    const SECOND: u64 = 1_000_000_000;

    /// A window of a second and half a second of work, of every fourth block, ten seconds of work after the one before.
    fn young(before: &[f64]) -> Young {
        let window = Window {
            from: 20 * SECOND,
            to: 21 * SECOND,
            since: 0,
            one_in: 4,
            begin: 9.5e9,
            work: 0.5e9,
            period: 10e9,
        };
        let lives = Lives::new(before.iter().map(|&length| (length * 1e9, 1.0)).collect());
        Young::new(window, FxHashMap::from_iter([(0, lives)]))
    }

    /// Born by the clock, the rest in work.
    fn life(born: f64, seen: f64, until: f64) -> Life {
        Life {
            born: seconds(born),
            seen: seen * 1e9,
            until: until * 1e9,
            weight: 1.0,
            refills: None,
        }
    }

    #[track_caller]
    fn check(found: StandsFor, now: f64, at_end: f64) {
        let is_near = |one: f64, other: f64| (one - other).abs() <= other * 1e-3;
        assert!(
            is_near(found.now, now) && is_near(found.at_end, at_end),
            "{found:?}"
        );
    }

    #[test]
    fn one_that_ended_stands_for_as_many_as_come_while_it_lives() {
        let mut young = young(&[]);
        // Eight blocks a second, of which each of the sample lives for two seconds.
        young.ended(0x1000, 0, life(20.0, 11.5, 11.5));
        young.ended(0x2000, 0, life(20.5, 11.75, 11.75));
        young.ended(0x5000, 1, life(20.5, 11.75, 11.75));
        let sum = |young: &Young, tally| {
            let mut of_it = young.of_ended().filter(|(of, _)| *of == tally);
            of_it
                .next()
                .map_or(StandsFor::default(), |(_, stands_for)| stands_for)
        };
        check(sum(&young, 0), 0.0, 0.0);
        young.decide(|place, born| place < 0x5000 && born >= seconds(20.0));
        check(sum(&young, 0), 32.0, 32.0);
        check(sum(&young, 1), 0.0, 0.0);
        // One that outlived the window's period, and one that was elsewhere.
        let [mut known, mut elsewhere] = [life(21.0, 30.0, 30.0); 2];
        (known.refills, elsewhere.refills) = (Some(true), Some(false));
        young.ended(0x9010, 0, known);
        young.ended(0x1010, 0, elsewhere);
        young.decide(|_, _| true);
        check(sum(&young, 0), 32.0 + 160.0, 32.0 + 80.0);
        // A block that is still there after so long does not stand for more.
        known.until = 90e9;
        known.seen = 90e9;
        young.ended(0x9010, 2, known);
        check(sum(&young, 2), 160.0, 80.0);
    }

    #[test]
    fn one_that_is_still_there_stands_for_all_that_came_unless_the_window_before_knows_better() {
        let living = life(20.0, 10.5, 10.5);
        check(young(&[]).of_living(0, living, 15e9), 8.0 * 15.0, 80.0);
        check(young(&[]).of_living(0, living, 10e9), 8.0 * 10.0, 80.0);
        // For no more than ten seconds after it.
        check(young(&[]).of_living(0, living, 90e9), 8.0 * 20.0, 80.0);
        let knows = young(&[1.5, 2.0, 2.5, 4.0, 30.0, 0.5, 0.75]);
        check(
            knows.of_living(0, living, 15e9),
            8.0 * 25.0 / 5.0,
            8.0 * 20.0 / 5.0,
        );
        check(knows.of_living(1, living, 15e9), 8.0 * 15.0, 80.0);
    }

    #[test]
    fn what_settles_has_room() {
        let mut young = young(&[]);
        assert!((young.settled(2.0) - 160.0).abs() < 1e-6);
        young.fits = 0.25;
        assert!((young.settled(2.0) - 40.0).abs() < 1e-6);
        young.ended(0x1000, 0, life(20.0, 9.75, 9.75));
        young.ended(0x1000, 0, life(20.0, 11.5, 11.5));
        let lives = young.into_lives(&[(0, 1.0), (0, 1.0), (0, 1.0)]);
        // Those that ended in the window tell nothing of what outlived it.
        let expected = lives[&0].expected(0.0, 6e9);
        assert_eq!(expected, Some((2e9 + 3.0 * 6e9) / 4.0));
    }
}
