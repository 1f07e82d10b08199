//! What a process may spend.

use std::time::Duration;

use super::share::Share;
use crate::units::MonotonicNs;

/// Seconds' budget that the start of a program can owe: what it costs before anybody looks is spent, and is not to keep a group off
/// for a minute.
const FORGIVEN: f64 = 0.5;

/// What groups once cost counts for so much of it at the next look.
const FADES: f64 = 0.8;

/// What one process may spend on one share's groups.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purse {
    /// Seconds of its time that probes may still take, and the most that can be saved up.
    pub(super) balance: f64,
    pub(super) full: f64,
    /// What of it was there at first, and is still to be earned.
    advance: f64,
    /// What can be owed at most.
    debt: f64,
    /// What its groups cost while they stand, as far as that was seen: seconds in a second of the clock.
    cost_rate: Option<f64>,
    /// It was overdrawn, and saves up until this time at least.
    pub(super) recovers_until: MonotonicNs,
}

impl Purse {
    /// `first`: for how long it is paid in advance, seconds of a process's time, in which it earns nothing.
    pub(super) fn new(share: Share, budget: f64, first: f64) -> Self {
        let full = Self::full(share, budget);
        let budget = budget * share.part();
        Self {
            balance: budget * first,
            full,
            advance: budget * first,
            debt: budget * FORGIVEN,
            cost_rate: None,
            recovers_until: MonotonicNs(0),
        }
    }

    /// The most that can be saved up.
    pub(super) fn full(share: Share, budget: f64) -> f64 {
        budget * share.part() * share.reserve()
    }

    /// Its groups stood for so many seconds, which cost so much.
    pub(super) fn stood(&mut self, seconds: f64, cost: f64) {
        if seconds > 0.0 {
            // Of the first seconds a part is what it took to put them in place.
            let known = self.cost_rate.unwrap_or_default() * FADES;
            self.cost_rate = Some((cost / seconds).max(known));
        }
    }

    /// Takes in and spends; what it has no room for.
    pub(super) fn settle(&mut self, earned: f64, spent: f64, saved_up: MonotonicNs) -> f64 {
        let repaid = self.advance.min(earned);
        self.advance -= repaid;
        let balance = self.balance + earned - repaid - spent;
        // What was overdrawn does not keep a group off for hours.
        self.balance = balance.clamp(-self.debt, self.full);
        if self.balance < 0.0 {
            self.recovers_until = saved_up;
        } else if self.recovers_until != MonotonicNs(0) {
            self.debt = self.full;
        }
        (balance - self.full).max(0.0)
    }

    /// What its groups cost in such a time, if they cost what they did when they last stood; seconds.
    pub(super) fn cost_of(&self, time: Duration) -> f64 {
        self.cost_rate.unwrap_or_default() * time.as_secs_f64()
    }

    /// How long it is sure to last at that cost, once so much was spent.
    pub(super) fn lasts(&self, spent: f64) -> Duration {
        let seconds = self
            .cost_rate
            .map_or(0.0, |rate| (self.balance - spent).max(0.0) / rate);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}
