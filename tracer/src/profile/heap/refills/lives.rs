//! How long blocks stay in use: as looks at them tell, and what that lets expect of those that still are.
//!
//! Pure. Invariant: nobody is expected to live for less than he has, nor for more than is asked for.

/// Lives, with how many blocks each stands for. Nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Lives {
    /// Ordered by length.
    all: Vec<(f64, f64)>,
    /// Sums over those before each, and one more: of the blocks, and of their lengths.
    sums: Vec<(f64, f64)>,
}

/// From so many on one can expect something.
const FEW: usize = 4;
/// What is dropped in the next line lives for no less, nanoseconds.
const SHORTEST: f64 = 1e4;

impl Lives {
    /// Length, and how many blocks it stands for; infinite for those that have not ended.
    pub(super) fn new(mut all: Vec<(f64, f64)>) -> Self {
        all.sort_unstable_by(|(one, _), (other, _)| one.total_cmp(other));
        let mut sums = Vec::with_capacity(all.len() + 1);
        let (mut blocks, mut lengths) = (0.0, 0.0);
        sums.push((blocks, lengths));
        for &(length, weight) in &all {
            blocks += weight;
            lengths += weight * length;
            sums.push((blocks, lengths));
        }
        Self { all, sums }
    }

    /// How long a block lives that has lived for `age`, if at most `most` counts: the mean of those that lived longer. Nothing
    /// if they are too few.
    pub(super) fn expected(&self, age: f64, most: f64) -> Option<f64> {
        let longer = self.all.partition_point(|&(length, _)| length <= age);
        let too_long = self.all.partition_point(|&(length, _)| length < most).max(longer);
        if self.all.len() - longer < FEW {
            return None;
        }
        let sums = |at: usize| self.sums.get(at).copied().unwrap_or_default();
        let (before, middle, all) = (sums(longer), sums(too_long), sums(self.all.len()));
        let lengths = middle.1 - before.1 + (all.0 - middle.0) * most;
        Some(lengths / (all.0 - before.0))
    }
}

/// How long a block lived that was still in use at one age and was not at another: where every length is as likely as its double,
/// the mean of those between.
pub(super) fn between(least: f64, most: f64) -> f64 {
    let least = least.max(SHORTEST);
    if most <= least * 1.001 {
        return most.max(0.0);
    }
    (most - least) / (most / least).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lives: &[f64], age: f64, most: f64, expected: Option<f64>) {
        let lives = Lives::new(lives.iter().map(|&length| (length, 2.0)).collect());
        assert_eq!(lives.expected(age, most), expected);
    }

    #[test]
    fn those_that_lived_longer_tell_what_to_expect() {
        let lives = [5.0, 1.0, f64::INFINITY, 3.0, 7.0, 2.0];
        check(&lives, 2.5, 10.0, Some((3.0 + 5.0 + 7.0 + 10.0) / 4.0));
        check(&lives, 2.5, 6.0, Some((3.0 + 5.0 + 6.0 + 6.0) / 4.0));
        check(&lives, 1.5, 1.75, Some(1.75));
        check(&lives, 3.0, 10.0, None);
        check(&[], 0.0, 10.0, None);
    }

    #[test]
    fn some_stand_for_more() {
        let lives = Lives::new(vec![(1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 3.0)]);
        assert_eq!(lives.expected(0.0, 10.0), Some(3.0));
    }

    #[test]
    fn a_length_between_two_is_nearer_to_the_shorter_one() {
        assert!((between(100e6, 200e6) - 144.27e6).abs() < 1e4);
        assert!((between(0.0, 100e6) - 10.86e6).abs() < 1e5);
        for (least, most) in [(5e6, 5e6), (0.0, 1e3), (7e6, 5e6), (0.0, 0.0)] {
            assert!((between(least, most) - most).abs() < 1e-6);
        }
    }
}
