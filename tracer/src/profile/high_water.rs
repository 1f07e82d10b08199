//! The high-water mark of a heap, and what each stack held at it, at constant cost per event.
//!
//! Nothing is copied when a new mark is reached: the mark gets a new generation number, and an entry that is
//! about to change first settles what it held at the mark it has not seen yet. (The idea is memray's.)
//! Invariant: the sum of all entries' values at the mark is the mark.

/// The mark itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HighWater {
    current: u64,
    peak: u64,
    generation: u64,
}

/// Bytes and blocks held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) bytes: u64,
    pub(super) count: u64,
}

/// One entry: what it holds, and what it held at the last mark that it knows of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    now: Held,
    at_peak: Held,
    generation: u64,
}

impl HighWater {
    /// What is held now, bytes.
    pub(super) fn current(&self) -> u64 {
        self.current
    }

    /// The most that was ever held, bytes.
    pub(super) fn peak(&self) -> u64 {
        self.peak
    }

    /// More is held; perhaps a new mark. The entry it belongs to must have been changed before.
    pub(super) fn grow(&mut self, bytes: u64) {
        self.current = self.current.saturating_add(bytes);
        if self.current > self.peak {
            self.peak = self.current;
            self.generation += 1;
        }
    }

    /// Less is held.
    pub(super) fn shrink(&mut self, bytes: u64) {
        self.current = self.current.saturating_sub(bytes);
    }
}

impl Entry {
    /// What is held now.
    pub(super) fn now(&self) -> Held {
        self.now
    }

    /// What was held at the last mark.
    pub(super) fn at_peak(&self, mark: &HighWater) -> Held {
        if self.generation == mark.generation {
            self.at_peak
        } else {
            self.now
        }
    }

    /// A block more.
    pub(super) fn add(&mut self, bytes: u64, mark: &mut HighWater) {
        self.settle(mark);
        self.now.bytes = self.now.bytes.saturating_add(bytes);
        self.now.count += 1;
        mark.grow(bytes);
    }

    /// A block less.
    pub(super) fn remove(&mut self, bytes: u64, mark: &mut HighWater) {
        self.settle(mark);
        self.now.bytes = self.now.bytes.saturating_sub(bytes);
        self.now.count = self.now.count.saturating_sub(1);
        mark.shrink(bytes);
    }

    /// Adds what another one of a heap that is gone held at its end and at its mark. For entries that nothing else
    /// changes.
    pub(super) fn absorb(&mut self, now: Held, at_peak: Held) {
        for (own, more) in [(&mut self.now, now), (&mut self.at_peak, at_peak)] {
            own.bytes = own.bytes.saturating_add(more.bytes);
            own.count = own.count.saturating_add(more.count);
        }
    }

    fn settle(&mut self, mark: &HighWater) {
        if self.generation != mark.generation {
            self.at_peak = self.now;
            self.generation = mark.generation;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lazy_marks_are_what_copying_at_every_mark_would_give(
            steps in proptest::collection::vec((0_usize..4, 1_u64..50, any::<bool>()), 0..200)
        ) {
            let mut mark = HighWater::default();
            let mut entries = [Entry::default(); 4];
            let mut blocks: [Vec<u64>; 4] = Default::default();
            let (mut best, mut copied) = (0, [Held::default(); 4]);
            for (index, bytes, grow) in steps {
                if grow {
                    entries[index].add(bytes, &mut mark);
                    blocks[index].push(bytes);
                } else if let Some(bytes) = blocks[index].pop() {
                    entries[index].remove(bytes, &mut mark);
                }
                let total: u64 = blocks.iter().flatten().sum();
                if total > best {
                    best = total;
                    for (held, blocks) in copied.iter_mut().zip(&blocks) {
                        *held = Held { bytes: blocks.iter().sum(), count: blocks.len() as u64 };
                    }
                }
                prop_assert_eq!(mark.current(), total);
            }
            prop_assert_eq!(mark.peak(), best);
            prop_assert_eq!(entries.map(|entry| entry.at_peak(&mark)), copied);
        }
    }
}
