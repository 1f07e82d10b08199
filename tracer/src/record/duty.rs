//! What stands when: groups of sites that are taken off and put back for the sake of their cost, and the windows in which
//! every allocation is looked at. Each leaves its trace in the capture.
//!
//! Apart from `governor` and `windows`, which decide; here it is done. A part of the owner.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tracer_ebpf::{limits::SAMPLED_BLOCKS, site::group};

use super::{
    attach::now,
    feeders::{self, Input, TICK},
    governor::{Group, Verdict},
    owner::Owner,
    survey::nanos,
    window::{Closed, SHORTEST, Spent, SpentBy},
};
use crate::{
    capture::{AtWork, Gap, Window, WriteError},
    discover::{cpu_time, own_time},
    mode::Mode,
    units::MonotonicNs,
};

/// Looking at the counters takes one part in so many of this thread's time.
const LOOK_SHARE: u32 = 1000;

impl Owner<'_> {
    /// Keeps the cost within its budget, and looks at every allocation if it is time for that; when to look again.
    pub(super) fn govern(&mut self, to: &Sender<Input>) -> Result<Duration, WriteError> {
        let mut wait = TICK;
        if self.settings.max_overhead.is_some() {
            let before = own_time();
            let verdict = self.judge_costs();
            let took = own_time().saturating_sub(before);
            let apart = (took * LOOK_SHARE).min(TICK);
            match verdict {
                Some((Verdict::TakeOff(group), _)) => {
                    tracing::debug!("{}: over the budget, off", group.name);
                    let from = now();
                    self.take_off(group.number);
                    self.gap(group, from, MonotonicNs(0))?;
                }
                Some((Verdict::PutBack(group), since)) => {
                    tracing::debug!("{}: on again", group.name);
                    let to = self.put_on(group.number);
                    self.gap(group, since, to)?;
                }
                None => {}
            }
            wait = self.governor.pace(apart);
        }
        self.open_window(to);
        Ok(wait)
    }

    /// What is to be done, and since when the group is off that it is about.
    fn judge_costs(&mut self) -> Option<(Verdict, MonotonicNs)> {
        let mut counters = self.tracer.counters().ok()?;
        // Who is not recorded did not ask for it at all.
        counters.extend(self.tracer.bystanders().ok()?);
        let off = self.governor.off().to_vec();
        let verdict = self.governor.judge(now(), &counters, cpu_time)?;
        let since = match verdict {
            Verdict::PutBack(group) => off.iter().find(|(known, _)| *known == group),
            Verdict::TakeOff(_) => None,
        };
        Some((verdict, since.map_or_else(now, |(_, since)| *since)))
    }

    fn wants_window(&self) -> bool {
        !self.governor.rests(group::BLOCKS, now())
            && self.governor.most_room() >= SHORTEST
            && self.windows.is_due(now(), self.auditor.grown())
    }

    /// Looks at every allocation for a moment, if a window is due and the budget allows it.
    fn open_window(&mut self, to: &Sender<Input>) {
        let most = self.governor.most_room();
        let enough = self.windows.least_room().min(most / 4 * 3);
        let room = self.governor.room();
        if !self.wants_window() || room < enough.max(SHORTEST) {
            return;
        }
        let grown = self.auditor.grown();
        let wanted = self.windows.next_length(self.auditor.start_anew());
        tracing::debug!(
            "{} blocks were filled again, {} for the first time: looking at every allocation for {:?}",
            grown.refilled,
            grown.first,
            wanted.min(room)
        );
        let from = self.put_on(group::BLOCKS);
        self.windows.opened(from, wanted, room, self.spent());
        feeders::window_over(wanted.min(room), to.clone());
    }

    /// What was sure to be paid for of a window is over: it goes on if it cost less.
    pub(super) fn window_over(&mut self, to: &Sender<Input>) -> Result<(), WriteError> {
        let cost = |hits| Duration::from_secs_f64(self.governor.cost_ns(hits) / 1e9);
        let spent = self.spent();
        let more = spent.and_then(|spent| self.windows.more(now(), &spent, cost));
        let Some(more) = more else {
            return self.close_window();
        };
        feeders::window_over(more, to.clone());
        Ok(())
    }

    /// Puts a group in place where processes run that are traced; from when on it is looked at.
    fn put_on(&mut self, number: u32) -> MonotonicNs {
        let images = self.auditor.images();
        let (start, before) = (Instant::now(), own_time());
        if let Err(error) = self.tracer.put_on(number, |image| images.contains(&image)) {
            self.problems.push(error.to_string());
        }
        let from = now();
        self.tracer.listen(number);
        self.governor.changed(number, start.elapsed());
        self.governor.cost_us(number, own_time().saturating_sub(before));
        from
    }

    /// Takes a group off.
    fn take_off(&mut self, number: u32) {
        let took = self.tracer.take_off(number);
        self.governor.cost_us(number, took);
    }

    /// Closes the window if one is open.
    pub(super) fn close_window(&mut self) -> Result<(), WriteError> {
        if !self.windows.is_open() {
            return Ok(());
        }
        self.tracer.silence(group::BLOCKS);
        let to = now();
        let spent = self.spent();
        self.take_off(group::BLOCKS);
        let Some(Closed { from, was_cut, spent }) = self.windows.closed(to, spent) else {
            return Ok(());
        };
        for ((pid, _), _) in &spent {
            self.auditor.window_closed(*pid, to, was_cut);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the conversion saturates, and no cost is negative"
        )]
        let at_work = spent.into_iter().map(|((pid, start), [before, inside])| AtWork {
            pid,
            start,
            before: before.used,
            used: inside.used,
            hits: self.governor.cost_ns(inside.hits) as u64,
        });
        self.output.window(Window {
            from,
            to,
            one_in: SAMPLED_BLOCKS,
            at_work: at_work.collect(),
        })
    }

    /// Hits of small blocks so far, and what the processes have used. One that is gone is left out.
    fn spent(&self) -> Option<SpentBy> {
        let counters = self.tracer.counters().ok()?;
        let each = counters.into_iter().filter_map(|known| {
            let spent = Spent {
                hits: known.counters.hits_of(group::BLOCKS as usize),
                used: nanos(cpu_time(known.pid)?),
            };
            Some(((known.pid, known.start), spent))
        });
        Some(each.collect())
    }

    /// Groups that were put back where they were missed most stand everywhere, now that they were cheap for a while.
    pub(super) fn complete_groups(&mut self) {
        if self.settings.max_overhead.is_none() {
            return;
        }
        for group in [group::POOLS, group::LARGE, group::DOMAINS, group::BLOCKS] {
            let is_off = self.governor.off().iter().any(|(off, _)| off.number == group);
            let is_window = group == group::BLOCKS && self.settings.mode == Mode::Heap;
            if !is_off
                && !is_window
                && let Err(error) = self.tracer.complete(group)
            {
                self.problems.push(error.to_string());
            }
        }
    }

    /// Puts a gap on record, behind everything that came before.
    pub(super) fn gap(&mut self, group: Group, from: MonotonicNs, to: MonotonicNs) -> Result<(), WriteError> {
        self.auditor.gap(group.number, to == MonotonicNs(0));
        self.output.flush()?;
        self.output.gap(Gap {
            from,
            to,
            group: Some(group.number),
            reason: format!("{}: over --max-overhead", group.name),
            ..Gap::default()
        })
    }
}
