//! Profile -> snapshot: sums, names and notes, made when somebody asks.
//!
//! Apart from `apply`, whose per-event path stays small. Invariant: it changes nothing in the profile.

use rustc_hash::FxHashMap;

use super::{
    apply::Profile,
    context::Coverage,
    info::{End, version_name},
    losses::Losses,
    process::ProcessState,
    snapshot::{GrowthSeries, ProcessSummary, Snapshot, Totals},
    stacks::{StackId, StackTable},
    tally::Tally,
};
use crate::{mode::Mode, symbolize::FrameTable};

impl Profile {
    /// The state as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let mut stacks = self.stacks.clone();
        let unknown = stacks
            .intern(&[FrameTable::UNKNOWN_STACK])
            .unwrap_or(stacks.overflow());
        let folded = self.folded.as_ref().map(|(folded, _)| &**folded);
        let processes: Vec<_> = folded
            .into_iter()
            .chain(&self.processes)
            .map(|process| self.summary(process, &stacks, unknown))
            .collect();
        let mut losses = Losses::default();
        let mut totals = Totals {
            peak_bytes: self.all.peak(),
            duration_ns: self.duration_ns(),
            ..Totals::default()
        };
        for process in &processes {
            losses.add(&process.losses);
            totals.tally.add(&process.total);
            totals.hits = totals.hits.plus(process.hits.unwrap_or_default());
        }
        losses.add(&Losses {
            by_reason: self.host_losses,
            ..Losses::default()
        });
        Snapshot {
            context: self.context.clone(),
            frames: self.frames.clone(),
            notes: self.notes(&processes),
            stacks,
            processes,
            totals,
            losses,
            host_losses: self.host_losses,
            decode_problems: self.decode_problems,
            truncated: self.truncated.clone(),
        }
    }

    fn summary(&self, process: &ProcessState, table: &StackTable, unknown: StackId) -> ProcessSummary {
        let mut total = Tally::default();
        let mut stacks: Vec<(StackId, Tally)> = Vec::new();
        let mut places: FxHashMap<StackId, usize> = FxHashMap::default();
        let scale = process.scale();
        for entry in &process.tallies {
            let tally = entry.tally(&process.high_water, self.mode, process.info.end, scale);
            if tally.allocated_count == 0 && tally.live_bytes == 0 {
                continue;
            }
            total.add(&tally);
            let stack = entry.stack.unwrap_or(unknown);
            let place = *places.entry(stack).or_insert_with(|| {
                stacks.push((stack, Tally::default()));
                stacks.len() - 1
            });
            if let Some((_, sum)) = stacks.get_mut(place) {
                sum.add(&tally);
            }
        }
        let images = || {
            process
                .info
                .images
                .iter()
                .filter_map(|&id| self.context.image(id))
        };
        ProcessSummary {
            python: process.info.version_hex.map(version_name).or_else(|| {
                images()
                    .map(|image| image.version.clone())
                    .find(|version| !version.is_empty())
            }),
            coverage: images().map(|image| image.coverage).reduce(|a, b| Coverage {
                resolved: a.resolved.saturating_add(b.resolved),
                copies: a.copies.saturating_add(b.copies),
            }),
            losses: process.losses(table.overflow()),
            audits: process.audits().clone(),
            heap: process.heap(),
            is_partial: process.is_partial(),
            growth: growth(process, unknown),
            hits: process.counters.map(|counters| counters.hits()),
            info: process.info.clone(),
            total,
            stacks,
        }
    }

    fn duration_ns(&self) -> u64 {
        let seen = self
            .times
            .map_or(0, |(first, last)| last.0.saturating_sub(first.0));
        self.context.duration_ns.unwrap_or(seen)
    }

    fn notes(&self, processes: &[ProcessSummary]) -> Vec<String> {
        let mut notes = self.context.notes.clone();
        let mut note = |count: usize, text: &str| {
            if count > 0 {
                notes.push(format!("{count} {text}"));
            }
        };
        let count =
            |wanted: fn(&ProcessSummary) -> bool| processes.iter().filter(|process| wanted(process)).count();
        note(
            count(|process| process.info.parent.is_none()),
            "process(es) whose start was not delivered: name and start time are not known",
        );
        note(
            count(|process| process.info.end == End::Unseen),
            "process(es) whose end was not delivered: their last counters are not known",
        );
        note(
            count(|process| process.audits.is_far_off()),
            "process(es) whose live blocks are more than 1% apart from what the interpreter counts: `report stats` says more",
        );
        if self.mode == Mode::Heap {
            note(
                count(|process| process.heap.is_none() && process.losses.delivered.sum() > 0),
                "process(es) ended before their heap was read: `record --mode allocs` shows those that live for a moment",
            );
        }
        if self.frames.is_full() || self.stacks.is_full() {
            notes.push(format!(
                "a table was full ({} frames, {} stack nodes): what did not fit is shown as [too many frames]",
                self.settings.max_frames, self.settings.max_stack_nodes
            ));
        }
        notes
    }
}

/// What each stack held over time; `None` if no heap was read.
fn growth(process: &ProcessState, unknown: StackId) -> Option<GrowthSeries> {
    let growth = process.growth()?;
    let stacks = process.tallies.iter().zip(0..).filter_map(|(tally, index)| {
        let series = growth.of(index);
        (!series.is_empty()).then(|| (tally.stack.unwrap_or(unknown), series.to_vec()))
    });
    Some(GrowthSeries {
        times: growth.times().to_vec(),
        stacks: stacks.collect(),
    })
}
