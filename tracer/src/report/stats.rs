//! `report stats`: the figures of a whole recording, as text or JSON.
//!
//! Invariant: the JSON's keys are always there, whatever was recorded; sums are over all processes and
//! `peak_bytes` is the most that all running processes held at one time.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    audit::{self, AuditsJson},
    footer,
    footer_json::{self, Footer},
    format::{count, duration, percent, size},
    grid::{Column, Kind, draw},
    heap,
    marks::Marks,
    rows::{By, Row, Sort, rows},
};
use crate::{
    mode::Mode,
    profile::{End, HeapSummary, Operations, ProcessSummary, Snapshot, View},
    symbolize::escape,
    units::{BootNs, Pid},
};

/// How many of the largest places are listed.
const TOP: usize = 5;

/// Statistics of a snapshot, ready to be shown.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Blocks ever allocated; a reallocation is one.
    total_allocations: u64,
    /// Bytes ever allocated.
    total_bytes: u64,
    /// Blocks freed; a reallocation is one.
    total_frees: u64,
    /// Bytes live at the end of the recording, or when their process exited.
    live_bytes: u64,
    /// Such blocks.
    live_blocks: u64,
    /// The most that all running processes held at one time, bytes.
    peak_bytes: u64,
    /// Blocks freed before the same thread allocated another.
    temporary_allocations: u64,
    /// Seconds recorded.
    duration: f64,
    /// Each process.
    processes: Vec<ProcessJson>,
    /// Places that allocated the most bytes.
    top_by_bytes: Vec<Row>,
    /// Places that allocated the most blocks.
    top_by_count: Vec<Row>,
    /// Host, kernel and mode of the recording.
    recording: RecordingJson,
    #[serde(flatten)]
    footer: Footer,
    #[serde(skip)]
    audit_text: String,
    #[serde(skip)]
    footer_text: String,
}

#[derive(Clone, Debug, Serialize)]
struct RecordingJson {
    host: String,
    kernel: String,
    mode: String,
    command: Vec<String>,
    started_unix_ns: Option<u64>,
    tool_version: String,
    /// Measured cost of one probe hit; `null` if it is not known.
    hit_cost_ns: Option<f64>,
}

/// One process as JSON.
#[derive(Clone, Debug, Serialize)]
struct ProcessJson {
    pid: Pid,
    start_ns: Option<BootNs>,
    incarnation: u32,
    parent: Option<Pid>,
    process: String,
    command_line: String,
    python: Option<String>,
    end: End,
    total_allocations: u64,
    total_bytes: u64,
    total_frees: u64,
    live_bytes: u64,
    live_blocks: u64,
    peak_bytes: u64,
    temporary_allocations: u64,
    hits: Option<u64>,
    /// Estimated time that probes took from it, nanoseconds; `null` if it is not known.
    probe_ns: Option<f64>,
    /// The same as a share of the time for which it was seen, percent; `null` if it is not known.
    overhead_percent: Option<f64>,
    coverage_percent: Option<f64>,
    produced: Option<Operations>,
    delivered: Operations,
    lost: u64,
    lossy: bool,
    /// What is believed alive beside what its pools held.
    audit: AuditsJson,
    /// Whether large blocks were traced a part of the time only.
    partial: bool,
    /// Of heap mode: what its last reading found; otherwise `null`.
    heap: Option<HeapSummary>,
}

impl Stats {
    /// The statistics of a snapshot.
    pub fn from_snapshot(snapshot: &Snapshot) -> Self {
        let (context, totals) = (&snapshot.context, &snapshot.totals);
        let view = match context.mode() {
            Mode::Heap => View::InUse,
            Mode::Allocs => View::Allocated,
        };
        let mut top_by_bytes = rows(snapshot, view, By::Line, Sort::OwnBytes);
        let mut top_by_count = rows(snapshot, view, By::Line, Sort::OwnCount);
        top_by_bytes.truncate(TOP);
        top_by_count.truncate(TOP);
        Self {
            total_allocations: totals.tally.allocated_count,
            total_bytes: totals.tally.allocated_bytes,
            total_frees: totals.tally.freed_count(),
            live_bytes: totals.tally.live_bytes,
            live_blocks: totals.tally.live_count,
            peak_bytes: totals.peak_bytes,
            temporary_allocations: totals.tally.temporary_count,
            duration: totals.duration_ns as f64 / 1e9,
            processes: snapshot
                .processes
                .iter()
                .map(|process| process_json(snapshot, process))
                .collect(),
            top_by_bytes,
            top_by_count,
            recording: RecordingJson {
                host: escape(&context.host),
                kernel: escape(&context.kernel),
                mode: escape(&context.mode),
                command: context.command.iter().map(|argument| escape(argument)).collect(),
                started_unix_ns: context.started_unix_ns,
                tool_version: escape(&context.tool_version),
                hit_cost_ns: context.cost_per_hit_ns,
            },
            footer: footer_json::json(snapshot),
            audit_text: format!("{}{}", audit::text(snapshot), heap::text(snapshot)),
            footer_text: footer::text(snapshot),
        }
    }

    /// As JSON.
    pub fn json(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::to_value(self)
    }

    /// As text; `width` is that of the terminal, `None` for as wide as need be.
    pub fn text(&self, width: Option<u16>) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out, width);
        out
    }

    fn write(&self, out: &mut String, width: Option<u16>) -> std::fmt::Result {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "made from a u64 above"
        )]
        let recorded = (self.duration * 1e9) as u64;
        write!(out, "Recorded:          {}", duration(recorded))?;
        for (name, value) in [
            ("on", &self.recording.host),
            ("kernel", &self.recording.kernel),
            ("mode", &self.recording.mode),
        ] {
            if !value.is_empty() {
                write!(out, ", {name} {value}")?;
            }
        }
        writeln!(out, "\nProcesses:         {}", count(self.processes.len() as u64))?;
        writeln!(out, "Total allocations: {}", count(self.total_allocations))?;
        writeln!(out, "Total allocated:   {}", size(self.total_bytes))?;
        writeln!(out, "Total frees:       {}", count(self.total_frees))?;
        writeln!(
            out,
            "Temporary:         {} allocations",
            count(self.temporary_allocations)
        )?;
        writeln!(
            out,
            "Peak:              {} (all processes together)",
            size(self.peak_bytes)
        )?;
        writeln!(
            out,
            "Live at the end:   {} in {} blocks",
            size(self.live_bytes),
            count(self.live_blocks)
        )?;
        if !self.processes.is_empty() {
            writeln!(out, "\n{}", draw(self.columns(), width))?;
        }
        self.write_top(out, "Largest by bytes:", &self.top_by_bytes)?;
        self.write_top(out, "Largest by blocks:", &self.top_by_count)?;
        let legend = Marks::legend(self.processes.iter().map(ProcessJson::marks));
        if !legend.is_empty() {
            write!(out, "\n{legend}")?;
        }
        write!(out, "{}\n{}", self.audit_text, self.footer_text)?;
        writeln!(
            out,
            "Units:    bytes are bytes occupied, not asked for; 1 KiB = 1024 bytes"
        )
    }

    fn columns(&self) -> Vec<Column> {
        let all = &self.processes;
        let known = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), percent);
        vec![
            Column::new("PID", Kind::Number, all, |process| {
                format!("{}{}", process.marks(), process.pid)
            }),
            Column::new("Process", Kind::Name, all, |process| process.process.clone()),
            Column::new("Python", Kind::Word, all, |process| {
                process.python.clone().unwrap_or_else(|| "?".to_owned())
            }),
            Column::new("End", Kind::Word, all, |process| end_name(process.end).to_owned()),
            Column::new("Allocations", Kind::Number, all, |process| {
                count(process.total_allocations)
            }),
            Column::new("Allocated", Kind::Number, all, |process| {
                size(process.total_bytes)
            }),
            Column::new("Live", Kind::Number, all, |process| size(process.live_bytes)),
            Column::new("Peak", Kind::Number, all, |process| size(process.peak_bytes)),
            Column::new("Coverage", Kind::NumberIfRoom, all, |process| {
                known(process.coverage_percent)
            }),
            Column::new("Overhead", Kind::NumberIfRoom, all, |process| {
                known(process.overhead_percent)
            }),
            Column::new("Temporary", Kind::NumberIfRoom, all, |process| {
                count(process.temporary_allocations)
            }),
        ]
    }

    fn write_top(&self, out: &mut String, title: &str, rows: &[Row]) -> std::fmt::Result {
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n{title}")?;
        for row in rows {
            let place = match (&row.function, &row.file, row.line) {
                (Some(function), Some(file), Some(line)) => format!("{function} ({file}:{line})"),
                (Some(function), Some(file), None) => format!("{function} ({file})"),
                (function, ..) => function.clone().unwrap_or_default(),
            };
            let process = if self.processes.len() > 1 {
                format!(", {} ({})", row.process, row.pid)
            } else {
                String::new()
            };
            writeln!(
                out,
                "  {:>9} {:>11} blocks  {place}{process}",
                size(row.own_bytes),
                count(row.own_count)
            )?;
        }
        Ok(())
    }
}

impl ProcessJson {
    fn marks(&self) -> Marks {
        Marks {
            lossy: self.lossy,
            partial: self.partial,
        }
    }
}

fn end_name(end: End) -> &'static str {
    match end {
        End::Running => "running",
        End::Exit => "exit",
        End::Exec => "exec",
        End::Unseen => "unseen",
    }
}

fn process_json(snapshot: &Snapshot, process: &ProcessSummary) -> ProcessJson {
    let (info, total) = (&process.info, &process.total);
    ProcessJson {
        pid: info.key.pid,
        start_ns: info.key.start,
        incarnation: info.key.incarnation,
        parent: info.parent,
        process: info.name.clone(),
        command_line: info.command_line.clone(),
        python: process.python.as_deref().map(escape),
        end: info.end,
        total_allocations: total.allocated_count,
        total_bytes: total.allocated_bytes,
        total_frees: total.freed_count(),
        live_bytes: total.live_bytes,
        live_blocks: total.live_count,
        peak_bytes: total.peak_bytes,
        temporary_allocations: total.temporary_count,
        hits: process.hits.map(|hits| hits.count),
        probe_ns: process.probe_ns(&snapshot.context),
        overhead_percent: process.overhead(&snapshot.context).map(|share| share * 100.0),
        coverage_percent: process.coverage.and_then(crate::profile::Coverage::percent),
        produced: process.losses.produced,
        delivered: process.losses.delivered,
        lost: process.losses.total(),
        lossy: process.is_lossy(),
        audit: audit::json(process),
        partial: process.is_partial,
        heap: process.heap,
    }
}
