//! The snapshot: plain data that every report, the live view and the daemon read; they never see an event.
//!
//! Invariant: it is whole. Whatever a report must say (losses, coverage, hits, notes) is in it, so that a
//! report is a function of one snapshot and of nothing else.

use std::collections::HashMap;

use tracer_ebpf::reason::REASONS;

use super::{
    audit::Audits,
    context::{Context, Coverage},
    heap::HeapSummary,
    info::ProcessInfo,
    losses::Losses,
    stacks::{StackId, StackTable},
    tally::Tally,
};
use crate::{ingest::event::Hits, symbolize::FrameTable, units::MonotonicNs};

/// One process in a snapshot.
#[derive(Clone, Debug)]
pub struct ProcessSummary {
    /// Who it is.
    pub info: ProcessInfo,
    /// Version of its interpreter, `3.11.2`, if it is known.
    pub python: Option<String>,
    /// What the probes see of its allocator, if its image is known.
    pub coverage: Option<Coverage>,
    /// What was lost.
    pub losses: Losses,
    /// Probe hits, if the kernel side's counters are known.
    pub hits: Option<Hits>,
    /// How far what is believed alive is from what its pools held.
    pub audits: Audits,
    /// In heap mode, what the last reading of its heap found.
    pub heap: Option<HeapSummary>,
    /// Whether large blocks were traced a part of the time only: those that were seen stand for the others.
    pub is_partial: bool,
    /// In heap mode, what each stack held over time.
    pub growth: Option<GrowthSeries>,
    /// Sum of all stacks. Its `peak_bytes` is the process's high-water mark.
    pub total: Tally,
    /// Each stack once, in the order in which they were first seen.
    pub stacks: Vec<(StackId, Tally)>,
}

/// What each stack of a process held at each reading of its heap.
#[derive(Clone, Debug, Default)]
pub struct GrowthSeries {
    /// When.
    pub times: Vec<MonotonicNs>,
    /// Bytes at each of these times, or at the first of them; a stack that began later held nothing before.
    pub stacks: Vec<(StackId, Vec<u64>)>,
}

/// Sums over all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Sum of all processes; its peak fields are sums of marks that were reached at different times.
    pub tally: Tally,
    /// The most that all running processes held at one time, bytes. What a process held when it exited is no
    /// longer held, so this can be less than the sum of what was live at each exit.
    pub peak_bytes: u64,
    /// Probe hits of all processes whose counters are known.
    pub hits: Hits,
    /// How long was recorded, nanoseconds.
    pub duration_ns: u64,
}

/// The aggregated state.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Host, settings, images.
    pub context: Context,
    /// Frames that stacks consist of.
    pub frames: FrameTable,
    /// Stacks that tallies belong to.
    pub stacks: StackTable,
    /// Processes in the order in which they were first seen.
    pub processes: Vec<ProcessSummary>,
    /// Sums.
    pub totals: Totals,
    /// Losses of all processes together, and those of no process.
    pub losses: Losses,
    /// Of these, the losses of no process.
    pub host_losses: [u64; REASONS],
    /// Records that could not be decoded.
    pub decode_problems: u64,
    /// Why the capture ends early, if it does.
    pub truncated: Option<String>,
    /// What else a reader should know, one sentence each.
    pub notes: Vec<String>,
}

impl ProcessSummary {
    /// Whether something of it was lost: reports mark it.
    pub fn is_lossy(&self) -> bool {
        self.losses.is_lossy()
    }

    /// Estimated time that probes took from it, nanoseconds, if that is known.
    pub fn probe_ns(&self, context: &Context) -> Option<f64> {
        Some(self.hits?.cost_ns(context.cost_per_hit_ns?))
    }

    /// Its share of the time that probes took, 0 to 1 and more, if that is known.
    pub fn overhead(&self, context: &Context) -> Option<f64> {
        let seen = self.info.seen_ns().filter(|&ns| ns > 0)?;
        Some(self.probe_ns(context)? / seen as f64)
    }
}

impl Snapshot {
    /// Leaves out all processes but these, from the sums too. The most that all held at one time stays that of all: it is not known of
    /// some.
    pub fn retain(&mut self, is_kept: impl FnMut(&ProcessSummary) -> bool) {
        self.processes.retain(is_kept);
        let mut tally = Tally::default();
        for process in &self.processes {
            tally.add(&process.total);
        }
        self.totals.tally = tally;
    }

    /// Processes with losses.
    pub fn lossy(&self) -> impl Iterator<Item = &ProcessSummary> {
        self.processes.iter().filter(|process| process.is_lossy())
    }

    /// Estimated time that probes took from all processes, nanoseconds, if that is known.
    pub fn probe_ns(&self) -> Option<u64> {
        let cost = self.context.cost_per_hit_ns.filter(|cost| *cost > 0.0)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive estimate; `as` saturates"
        )]
        let spent = self.totals.hits.cost_ns(cost) as u64;
        Some(spent)
    }

    /// Its share of the time for which all processes were seen, 0 to 1 and more, if that is known.
    pub fn overhead(&self) -> Option<f64> {
        let all = self.processes.iter();
        let seen: f64 = all
            .filter_map(|process| Some(process.info.seen_ns()? as f64))
            .sum();
        (seen > 0.0).then_some(self.probe_ns()? as f64 / seen)
    }

    /// The least coverage of any image that a process used, percent; `None` if none is known.
    pub fn coverage_percent(&self) -> Option<f64> {
        let known = self
            .processes
            .iter()
            .filter_map(|process| process.coverage?.percent());
        known.min_by(f64::total_cmp)
    }

    /// How many processes used each image, by its id.
    pub fn processes_by_image(&self) -> HashMap<u32, usize> {
        let mut counts = HashMap::new();
        for image in self.processes.iter().flat_map(|process| &process.info.images) {
            *counts.entry(*image).or_insert(0) += 1;
        }
        counts
    }
}
