//! Windows that are over and wait for a look, and blocks that were handed out again before it.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::{
    sample::{Key, Sample, State},
    young::Window,
};

/// Windows that wait; those of a process that cannot be read would be ever more.
pub(super) const MAX_WINDOWS: usize = 8;
/// Blocks remembered that were handed out again. A loop does so with a million a second.
pub(super) const MAX_ENDED: usize = 1 << 18;

/// Of those that came and went at one address, so many tell of their stack in a window: which addresses are of the sample is chance, and who
/// has a temporary at the same one each time would seem to make nothing else.
const MOST_OF_PLACE: usize = 4;

/// A block that was handed out again: its address, and when, by the clock. How long the process had worked by then is known when
/// that window is.
pub(super) type Ended = (u64, Sample, u64);

#[derive(Debug, Default)]
pub(super) struct Waiting {
    windows: VecDeque<Window>,
    ended: Vec<Ended>,
    /// Of whom not all of those are remembered, and when the last of them was allocated.
    lost: FxHashMap<Key, u64>,
}

impl Waiting {
    pub(super) fn push(&mut self, window: Window) {
        self.windows.push_back(window);
        if self.windows.len() > MAX_WINDOWS {
            self.windows.pop_front();
        }
    }

    /// The oldest window, if a look at what was allocated up to this time is one at all of it.
    pub(super) fn pop(&mut self, last: u64) -> Option<Window> {
        self.windows.pop_front_if(|window| window.to <= last)
    }

    /// A block was handed out again.
    pub(super) fn ended(&mut self, addr: u64, sample: Sample, time: u64) {
        if self.ended.len() < MAX_ENDED {
            self.ended.push((addr, sample, time));
        } else {
            self.lost.insert((sample.class, sample.tally), sample.born);
        }
    }

    /// Takes out what was handed out again up to a window's end: its own blocks, and those of the windows before it.
    pub(super) fn take_ended(&mut self, window: &Window) -> (Vec<Ended>, Vec<Ended>) {
        let ended = self.ended.extract_if(.., |(_, _, until)| *until <= window.to);
        let (young, mut own): (Vec<_>, Vec<_>) =
            ended.partition(|(_, sample, _)| sample.state == State::Young);
        own.retain(|(_, sample, _)| sample.waits_for(window));
        (own, young)
    }

    /// A window's blocks that were handed out again in a later one, which has not been looked at either.
    pub(super) fn ended_later(&mut self, window: &Window) -> impl Iterator<Item = &mut Sample> {
        let later = self.ended.iter_mut().map(|(_, sample, _)| sample);
        later.filter(|sample| sample.waits_for(window))
    }

    /// Whether not all is remembered of who allocated in a window.
    pub(super) fn has_lost(&self, key: Key, window: &Window) -> bool {
        self.lost.get(&key).is_some_and(|&born| born >= window.from)
    }

    /// Takes out of whom not all that was allocated up to this time is remembered.
    pub(super) fn take_lost(&mut self, last: u64) -> Vec<Key> {
        let lost = self.lost.extract_if(|_, born| *born <= last);
        lost.map(|(key, _)| key).collect()
    }

    /// Windows, blocks that were handed out again, and of whom some of these are lost.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 3] {
        [self.windows.len(), self.ended.len(), self.lost.len()]
    }
}

/// Those that tell of their stacks, evenly.
pub(super) fn few_of_each_place(ended: &[Ended]) -> impl Iterator<Item = &Ended> {
    let place = |(addr, sample, _): &Ended| (*addr, sample.class, sample.tally);
    let mut all: FxHashMap<_, usize> = FxHashMap::default();
    for ended in ended {
        *all.entry(place(ended)).or_default() += 1;
    }
    let mut passed: FxHashMap<_, usize> = FxHashMap::default();
    ended.iter().filter(move |ended| {
        let place = place(ended);
        let all = all.get(&place).copied().unwrap_or(1).max(MOST_OF_PLACE);
        let passed = passed.entry(place).or_default();
        let before = *passed * MOST_OF_PLACE / all;
        *passed += 1;
        *passed * MOST_OF_PLACE / all > before
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_place_where_many_came_and_went_a_few_tell_evenly() {
        let sample = |class, tally| Sample {
            class,
            tally,
            born: 0,
            seen: 0.0,
            state: State::Waiting,
            weight: 1.0,
            refills: None,
        };
        let mut ended: Vec<Ended> = (1..=100).map(|until| (16, sample(3, 7), until)).collect();
        // Another stack's there, and few at another place.
        ended.insert(50, (16, sample(3, 8), 1000));
        ended.extend([(32, sample(3, 7), 2000), (32, sample(3, 7), 2001)]);
        let untils: Vec<u64> = few_of_each_place(&ended).map(|(.., until)| *until).collect();
        assert_eq!(untils, [25, 50, 1000, 75, 100, 2000, 2001]);
        assert_eq!(few_of_each_place(&[]).count(), 0);
    }
}
