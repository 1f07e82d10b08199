//! What readings of heaps may cost the recorder, all processes together, and what changes of what stands may: a small share of one
//! processor, so that pyrobe does not cost more the more processes there are.
//!
//! Pure. Apart from `audit` and `governor`, which ask before and are told what it took. Invariant: what is paid in any time is at
//! most the share of that time, what can be saved up, and what was paid while the account was empty.

use std::time::Duration;

use crate::units::MonotonicNs;

/// Up to so many processes are few: with the share of many they are read so rarely that what grows is not told from what fills up.
const FEW: usize = 4;
const SHARE_OF_FEW: u64 = 200;
/// Readings of more take one part in so many of a processor,
const SHARE: u64 = 600;
/// ... which can be saved up, so that all of a few processes are read at one time,
const MOST_SAVED: Duration = Duration::from_millis(20);
/// ... and owed, since a process that is new is read whatever others have cost.
const MOST_OWED: Duration = Duration::from_millis(50);

/// Changes of what stands have less: the first ones cost what they may, and not every short run is full of them.
const MOST_SAVED_FOR_CHANGES: Duration = Duration::from_millis(8);

/// Processor time of the recorder that something may take; it grows while time goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    /// One part in so many.
    share: u64,
    /// Nanoseconds.
    balance: i64,
    least: i64,
    most: i64,
    last: Option<MonotonicNs>,
}

impl Account {
    pub(super) fn of_readings() -> Self {
        Self {
            share: SHARE,
            balance: 0,
            least: -nanos(MOST_OWED),
            most: nanos(MOST_SAVED),
            last: None,
        }
    }

    /// Of changes of what stands, which take one part in so many.
    pub(super) fn of_changes(share: u64) -> Self {
        Self {
            share,
            balance: nanos(MOST_SAVED_FOR_CHANGES),
            least: i64::MIN,
            most: nanos(MOST_SAVED_FOR_CHANGES),
            last: None,
        }
    }

    /// Of so many processes.
    pub(super) fn share_of_readings(&mut self, processes: usize) {
        self.share = if processes <= FEW { SHARE_OF_FEW } else { SHARE };
    }

    /// It is now this time.
    pub(super) fn grow(&mut self, time: MonotonicNs) {
        let before = self.last.replace(time).unwrap_or(time);
        let elapsed = time.get().saturating_sub(before.get()) / self.share;
        let grown = self.balance.saturating_add_unsigned(elapsed);
        self.balance = grown.min(self.most);
    }

    /// It took so long once.
    pub(super) fn pay(&mut self, took: Duration) {
        self.balance = self.balance.saturating_sub(nanos(took)).max(self.least);
    }

    /// Whether more was paid than there was.
    pub(super) fn is_empty(&self) -> bool {
        self.balance < 0
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> MonotonicNs {
        MonotonicNs(seconds * 1_000_000_000)
    }

    #[test]
    fn readings_take_their_share_and_no_more() {
        for (processes, share) in [(FEW + 1, SHARE), (FEW, SHARE_OF_FEW)] {
            let mut account = Account::of_readings();
            account.share_of_readings(processes);
            account.grow(at(0));
            let (reading, mut read) = (Duration::from_millis(5), Duration::ZERO);
            for step in 1..=40_000 {
                account.grow(MonotonicNs(step * 100_000_000));
                if !account.is_empty() {
                    account.pay(reading);
                    read += reading;
                }
            }
            let share = Duration::from_millis(4_000_000 / share);
            assert!(
                read <= share + reading && read + reading * 2 >= share,
                "{read:?} of {share:?}"
            );
        }
    }

    #[test]
    fn neither_rest_nor_debt_is_without_a_bound() {
        let mut account = Account::of_readings();
        account.grow(at(0));
        account.grow(at(1_000_000));
        account.pay(MOST_SAVED);
        assert!(!account.is_empty());
        account.pay(Duration::from_nanos(1));
        assert!(account.is_empty());
        account.pay(Duration::from_hours(1));
        let owed = MOST_OWED * u32::try_from(SHARE).unwrap_or(u32::MAX);
        account.grow(at(1_000_000 + 1 + owed.as_secs()));
        assert!(!account.is_empty());
    }

    #[test]
    fn what_a_change_cost_is_earned_again_however_long_that_takes() {
        let mut account = Account::of_changes(500);
        account.grow(at(0));
        account.pay(MOST_SAVED_FOR_CHANGES + Duration::from_secs(2));
        for (second, is_empty) in [(0, true), (999, true), (1000, false), (1_000_000, false)] {
            account.grow(at(second));
            assert_eq!(account.is_empty(), is_empty, "{second}");
        }
    }
}
