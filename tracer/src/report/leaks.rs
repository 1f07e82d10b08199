//! `report leaks`: which places hold more and more, steadily, and how sure that is.
//!
//! A leak looks like any other growth at one moment; over time it is the growth that does not end. So the rows are sorted by
//! how much a place would grow over the whole recording at the least of the rates at which it grew in the later parts of it,
//! and no more than it holds at last, weighted with the confidence of the trend; what grows without a line of code that is known for it comes last.
//! Invariant: a place is listed only for what readings of the heap show.

use std::fmt::Write as _;

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::{
    footer,
    footer_json::{self, Footer},
    format::{count, duration, size},
    grid::{Column, Kind, draw},
    marks::Marks,
    rows::{self, By, Place},
};
use crate::{
    profile::{ProcessSummary, Snapshot, trend::lasting_trend},
    units::Pid,
};

/// Trends less sure than this are left out.
const LEAST_CONFIDENCE: f64 = 0.5;
/// So is what grows by less than this in the whole recording, bytes.
const LEAST_GROWTH: f64 = 64.0 * 1024.0;

/// A place that grows.
#[derive(Clone, Debug, Serialize)]
pub struct Leak {
    /// Process id.
    pub pid: Pid,
    /// Short name of the process.
    pub process: String,
    /// Qualified name of the function.
    pub function: Option<String>,
    /// File name; `None` for special frames.
    pub file: Option<String>,
    /// Line, if it is known.
    pub line: Option<u32>,
    /// Bytes held at the last reading.
    pub live_bytes: u64,
    /// Bytes a second.
    pub growth_per_second: f64,
    /// How sure it is that this grows, 0 to 1.
    pub confidence: f64,
    /// Growth over the time of the readings, bytes, times the confidence: what rows are sorted by.
    pub score: f64,
    /// Readings that the trend rests on.
    pub readings: usize,
    /// Whether something of the process was lost, so that the figures are not exact.
    pub lossy: bool,
    /// Whether the process was traced a part of the time, so that what was seen stands for what was not.
    pub partial: bool,
}

/// All places that grow, ready to be shown.
#[derive(Clone, Debug, Serialize)]
pub struct Leaks {
    rows: Vec<Leak>,
    /// Rows there are, shown or not.
    row_count: usize,
    /// From the first to the last reading of any process, seconds.
    observed: f64,
    #[serde(flatten)]
    footer: Footer,
    #[serde(skip)]
    footer_text: String,
    #[serde(skip)]
    width: Option<u16>,
}

impl Leak {
    fn marks(&self) -> Marks {
        Marks {
            lossy: self.lossy,
            partial: self.partial,
        }
    }
}

impl Leaks {
    /// The growing places of a snapshot; at most `limit` of them.
    pub fn from_snapshot(snapshot: &Snapshot, by: By, limit: Option<usize>, width: Option<u16>) -> Self {
        let mut rows: Vec<Leak> = Vec::new();
        let mut observed = 0.0_f64;
        for process in &snapshot.processes {
            let times = seconds(process);
            observed = observed.max(times.last().copied().unwrap_or(0.0));
            rows.extend(process_leaks(snapshot, process, &times, by));
        }
        rows.sort_by(|a, b| {
            let is_open = |leak: &Leak| leak.file.is_none();
            is_open(a).cmp(&is_open(b)).then(b.score.total_cmp(&a.score))
        });
        let row_count = rows.len();
        rows.truncate(limit.unwrap_or(usize::MAX));
        Self {
            rows,
            row_count,
            observed,
            footer: footer_json::json(snapshot),
            footer_text: footer::text(snapshot),
            width,
        }
    }

    /// As JSON.
    pub fn json(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::to_value(self)
    }

    /// As text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "Places that hold more and more, over {}: {} (bytes are bytes occupied; 1 KiB = 1024 bytes)\n",
            duration(whole(self.observed * 1e9)),
            count(self.row_count as u64)
        );
        if self.rows.is_empty() {
            let _ = writeln!(
                out,
                "Nothing grows steadily, or there were too few readings to tell: the longer the recording, the surer."
            );
        } else {
            let _ = writeln!(out, "{}", draw(self.columns(), self.width));
        }
        if self.rows.len() < self.row_count {
            let _ = writeln!(
                out,
                "({} more rows)",
                count((self.row_count - self.rows.len()) as u64)
            );
        }
        out.push_str(&Marks::legend(self.rows.iter().map(Leak::marks)));
        let _ = write!(out, "\n{}", self.footer_text);
        out
    }

    fn columns(&self) -> Vec<Column> {
        let rows = &self.rows;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        vec![
            Column::new("PID", Kind::Number, rows, |row| {
                format!("{}{}", row.marks(), row.pid)
            }),
            Column::new("Process", Kind::Name, rows, |row| row.process.clone()),
            Column::new("Function", Kind::Name, rows, |row| text(&row.function)),
            Column::new("File:line", Kind::Path, rows, |row| match row.line {
                Some(line) => format!("{}:{line}", text(&row.file)),
                None => text(&row.file),
            }),
            Column::new("Growth a minute", Kind::Number, rows, |row| {
                size(whole(row.growth_per_second * 60.0))
            }),
            Column::new("Confidence", Kind::Number, rows, |row| {
                format!("{:.0}%", row.confidence * 100.0)
            }),
            Column::new("Live", Kind::Number, rows, |row| size(row.live_bytes)),
            Column::new("Readings", Kind::NumberIfRoom, rows, |row| {
                count(row.readings as u64)
            }),
        ]
    }
}

/// Seconds from the first reading to each.
fn seconds(process: &ProcessSummary) -> Vec<f64> {
    let Some(growth) = &process.growth else {
        return Vec::new();
    };
    let first = growth.times.first().map_or(0, |time| time.0);
    growth
        .times
        .iter()
        .map(|time| time.0.saturating_sub(first) as f64 / 1e9)
        .collect()
}

fn process_leaks(snapshot: &Snapshot, process: &ProcessSummary, times: &[f64], by: By) -> Vec<Leak> {
    let mut places: FxHashMap<Place, Vec<f64>> = FxHashMap::default();
    for (stack, series) in process.growth.iter().flat_map(|growth| &growth.stacks) {
        let Some(leaf) = snapshot.stacks.leaf_first(*stack).next() else {
            continue;
        };
        let sums = places.entry(rows::place(snapshot, leaf, by)).or_default();
        sums.resize(times.len(), 0.0);
        for (sum, &bytes) in sums.iter_mut().zip(series) {
            *sum += bytes as f64;
        }
    }
    let observed = times.last().copied().unwrap_or(0.0);
    places
        .into_iter()
        .filter_map(|(place, sums)| {
            let points: Vec<(f64, f64)> = times.iter().copied().zip(sums.iter().copied()).collect();
            let trend = lasting_trend(&points)?;
            let live = sums.last().copied().unwrap_or(0.0);
            // What was leaked is there still.
            let grown = (trend.slope * observed).min(live);
            if trend.confidence < LEAST_CONFIDENCE || grown < LEAST_GROWTH {
                return None;
            }
            let row = rows::empty_row(snapshot, process, place);
            Some(Leak {
                pid: row.pid,
                process: row.process,
                function: row.function,
                file: row.file,
                line: row.line,
                live_bytes: whole(live),
                growth_per_second: trend.slope,
                confidence: trend.confidence,
                score: grown * trend.confidence,
                readings: points.len(),
                lossy: row.lossy,
                partial: row.partial,
            })
        })
        .collect()
}

/// A number of bytes or nanoseconds that was computed with; never negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the conversion saturates"
)]
fn whole(value: f64) -> u64 {
    value.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

    use super::*;
    use crate::{
        profile::{GrowthSeries, testing::Story},
        units::MonotonicNs,
    };

    #[test]
    fn what_keeps_growing_comes_first_and_what_nobody_is_known_for_last() {
        let mut snapshot = Story::default()
            .alloc(7, 0x1000, 32, "main:1 leak:2")
            .alloc(7, 0x2000, 32, "main:1 cache:3")
            .alloc(7, 0x3000, 32, "main:1 burst:4")
            .alloc(7, 0x4000, 32, "main:1 small:5")
            .alloc(7, 0x6000, 32, "main:1 gone:6")
            .alloc(7, 0x5000, 32, "")
            .snapshot();
        let leaf_line = |stack| {
            let leaf = snapshot.stacks.leaf_first(stack).next()?;
            let place = rows::place(&snapshot, leaf, By::Line);
            rows::empty_row(&snapshot, &snapshot.processes[0], place).line
        };
        let times: Vec<u64> = (0..20).chain((2..18).map(|tens| tens * 10)).collect();
        let mebibytes = |of: fn(u64) -> u64| times.iter().map(|&time| of(time) << 20).collect();
        let stacks = snapshot.processes[0].stacks.iter().map(|&(stack, _)| {
            let held = match leaf_line(stack) {
                Some(2) => mebibytes(|time| time),
                Some(3) => mebibytes(|time| 900 * time.min(30)),
                Some(4) => mebibytes(|time| if time > 130 { 9000 } else { 10 }),
                Some(6) => mebibytes(|time| if time < 160 { 5 * time } else { 0 }),
                Some(_) => mebibytes(|time| time / 10),
                None => mebibytes(|time| 9 * time),
            };
            (stack, held)
        });
        let stacks = stacks.collect();
        snapshot.processes[0].growth = Some(GrowthSeries {
            times: times
                .iter()
                .map(|time| MonotonicNs(time * 1_000_000_000))
                .collect(),
            stacks,
        });
        let leaks = Leaks::from_snapshot(&snapshot, By::Line, None, None);
        let lines: Vec<Option<u32>> = leaks.rows.iter().map(|row| row.line).collect();
        assert_eq!(lines, [Some(2), Some(5), None]);
        assert!((leaks.rows[0].growth_per_second - 1_048_576.0).abs() < 1.0);
    }
}
