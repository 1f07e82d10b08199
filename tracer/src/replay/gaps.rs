//! Times in which something was not traced, as sentences: one for each reason.
//!
//! A recording of days can have thousands of gaps, and a report is for reading. Invariant: a gap that never ended counts,
//! with no time.

use std::collections::BTreeMap;

use crate::capture::Gap;

/// Sums of the gaps so far.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// By reason: how many, and nanoseconds.
    sums: BTreeMap<String, (u64, u64)>,
}

impl Gaps {
    /// One more. That of a group of sites is told when it begins and again when it has ended.
    pub(super) fn push(&mut self, gap: Gap) {
        let (count, time) = self.sums.entry(gap.reason).or_default();
        let begins = gap.to.get() == 0;
        *count += u64::from(begins || gap.group.is_none());
        if !begins {
            *time = time.saturating_add(gap.to.get().saturating_sub(gap.from.get()));
        }
    }

    pub(super) fn notes(&self) -> impl Iterator<Item = String> + '_ {
        self.sums.iter().map(|(reason, (count, time))| {
            format!(
                "not traced for {} ms in {count} gap(s): {reason}",
                time / 1_000_000
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MonotonicNs;

    #[test]
    fn gaps_of_a_reason_are_one_sentence() {
        let mut gaps = Gaps::default();
        for (from, to, group) in [
            (5, 0, Some(1)),
            (5, 3_000_005, Some(1)),
            (7, 0, Some(1)),
            (1, 2_000_001, None),
        ] {
            gaps.push(Gap {
                from: MonotonicNs(from),
                to: MonotonicNs(to),
                group,
                reason: if group.is_some() { "cost" } else { "late" }.to_owned(),
                ..Gap::default()
            });
        }
        let notes: Vec<String> = gaps.notes().collect();
        assert_eq!(
            notes,
            [
                "not traced for 3 ms in 2 gap(s): cost",
                "not traced for 2 ms in 1 gap(s): late"
            ]
        );
    }
}
