//! The parts of an aggregated capture to the snapshot that they were made of.
//!
//! They are hostile input: a place that does not exist becomes `[too many frames]`, every name is escaped. Invariant:
//! where the last part is missing, the snapshot says so.

use tracer_ebpf::reason::REASONS;

use crate::{
    capture::{
        EndReason, Tallies,
        tallies::{ProcessPart, State},
    },
    profile::{
        Context, GrowthSeries, Losses, ProcessInfo, ProcessSummary, ProfileSettings, Snapshot, StackId,
        StackTable, Tally, Totals,
    },
    symbolize::{FrameId, FrameTable, StrId, Symbol, escape},
    units::MonotonicNs,
};

/// What the parts so far say.
pub(super) struct Restored {
    frames: FrameTable,
    stacks: StackTable,
    processes: Vec<ProcessSummary>,
    state: Option<State>,
    /// What the places in the parts mean in the tables here.
    names: Vec<StrId>,
    frame_ids: Vec<FrameId>,
    nodes: Vec<StackId>,
    decode_problems: u64,
}

impl Restored {
    pub(super) fn new(settings: ProfileSettings) -> Self {
        Self {
            frames: FrameTable::new(settings.max_frames),
            // The stack that stands for those that were not delivered is one more.
            stacks: StackTable::new(settings.max_stack_nodes.saturating_add(1)),
            processes: Vec::new(),
            state: None,
            names: Vec::new(),
            frame_ids: Vec::new(),
            nodes: Vec::new(),
            decode_problems: 0,
        }
    }

    pub(super) fn add_decode_problems(&mut self, count: u64) {
        self.decode_problems = self.decode_problems.saturating_add(count);
    }

    pub(super) fn part(&mut self, part: Tallies) {
        match part {
            Tallies::Names(names) => {
                for name in names {
                    self.names.push(self.frames.intern_str(&escape(&name)));
                }
            }
            Tallies::Frames(rows) => rows.into_iter().for_each(|row| self.frame(row)),
            Tallies::Stacks(rows) => rows.into_iter().for_each(|row| self.node(row)),
            Tallies::Process(process) => {
                let process = self.summary(*process);
                self.processes.push(process);
            }
            Tallies::Counted(rows) => rows.into_iter().for_each(|row| self.counted(row)),
            Tallies::State(state) => self.state = Some(*state),
        }
    }

    fn frame(&mut self, (function, file, line): (u32, u32, u32)) {
        let name = |place: u32| self.names.get(place as usize).copied();
        let id = match (name(function), name(file)) {
            (Some(function), Some(file)) => self.frames.intern(Symbol { function, file, line }),
            _ => FrameTable::OVERFLOW,
        };
        self.frame_ids.push(id);
    }

    fn node(&mut self, (parent, frame): (Option<u32>, u32)) {
        let frame = self.frame_ids.get(frame as usize).copied();
        let parent = parent.map(|parent| self.nodes.get(parent as usize).copied());
        let node = match (parent, frame) {
            (Some(None), _) | (_, None) => None,
            (parent, Some(frame)) => self.stacks.child(parent.flatten(), frame),
        };
        self.nodes.push(node.unwrap_or(self.stacks.overflow()));
    }

    fn counted(&mut self, (node, tally): (u32, Tally)) {
        let stack = self.nodes.get(node as usize).copied();
        if let Some(process) = self.processes.last_mut() {
            process.total.add(&tally);
            process
                .stacks
                .push((stack.unwrap_or(self.stacks.overflow()), tally));
        }
    }

    /// The snapshot, with what the other blocks say.
    pub(super) fn snapshot(
        self,
        mut context: Context,
        start: Option<MonotonicNs>,
        end: Option<EndReason>,
        mut truncated: Option<String>,
    ) -> Snapshot {
        let whole = self.state.is_some();
        let state = self.state.unwrap_or_default();
        let age = state.at.get().saturating_sub(start.unwrap_or_default().get());
        context.notes.insert(
            0,
            "this capture holds tallies, which were made while it was recorded, and no events".to_owned(),
        );
        if !whole && (end.is_none() || !self.processes.is_empty()) {
            truncated = Some("the capture has no whole tallies: the figures are a part of them".to_owned());
        } else if truncated.is_some() && end.is_none() {
            context.duration_ns = Some(age);
            truncated = Some(format!(
                "the recording did not come to its end; the figures are those of {} s after its start",
                age / 1_000_000_000
            ));
        } else if end == Some(EndReason::Full) {
            context.duration_ns = Some(age);
            context.notes.push(format!(
                "larger tallies would have passed the greatest size; the figures are those of {} s after its start",
                age / 1_000_000_000
            ));
        }
        let mut losses = Losses::default();
        let mut totals = Totals {
            peak_bytes: state.peak_bytes,
            duration_ns: context.duration_ns.unwrap_or(state.seen_ns),
            ..Totals::default()
        };
        for process in &self.processes {
            losses.add(&process.losses);
            totals.tally.add(&process.total);
            totals.hits = totals.hits.plus(process.hits.unwrap_or_default());
        }
        let mut host_losses = [0; REASONS];
        for (to, from) in host_losses.iter_mut().zip(&state.host_losses) {
            *to = *from;
        }
        losses.add(&Losses {
            by_reason: host_losses,
            ..Losses::default()
        });
        let mut notes = context.notes.clone();
        notes.extend(state.notes.iter().map(|note| escape(note)));
        Snapshot {
            context,
            frames: self.frames,
            stacks: self.stacks,
            processes: self.processes,
            totals,
            losses,
            host_losses,
            decode_problems: state.decode_problems.saturating_add(self.decode_problems),
            truncated,
            notes,
        }
    }

    fn summary(&self, process: ProcessPart) -> ProcessSummary {
        let ProcessPart {
            info,
            python,
            coverage,
            losses,
            hits,
            audits,
            heap,
            partial,
            growth,
        } = process;
        let node = |place: u32| self.nodes.get(place as usize).copied();
        ProcessSummary {
            info: ProcessInfo {
                name: escape(&info.name),
                comm: escape(&info.comm),
                command_line: escape(&info.command_line),
                ..info
            },
            python: python.map(|version| escape(&version)),
            coverage,
            losses,
            hits,
            audits,
            heap,
            is_partial: partial,
            growth: growth.map(|growth| GrowthSeries {
                times: growth.times,
                stacks: growth
                    .stacks
                    .into_iter()
                    .map(|(place, series)| (node(place).unwrap_or(self.stacks.overflow()), series))
                    .collect(),
            }),
            total: Tally::default(),
            stacks: Vec::new(),
        }
    }
}
