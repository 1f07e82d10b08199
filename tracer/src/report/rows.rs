//! Rows: tallies grouped by where the memory was allocated. What a table shows, as plain data.
//!
//! *Own* is what the place allocated itself (it is the leaf of the stack), *total* what it and all it called
//! allocated (it is anywhere in the stack, counted once however often it recurs). Invariant: the sum of the own
//! figures of all rows is the sum over all events of the view.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::marks::Marks;
use crate::{
    profile::{ProcessSummary, Snapshot, View},
    symbolize::{FrameId, StrId},
    units::Pid,
};

/// What makes two allocations belong to the same row. The process always does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Function, file and line.
    #[default]
    Line,
    /// Function and file.
    Function,
    /// File.
    File,
    /// Nothing but the process.
    Process,
}

/// What rows are sorted by, largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// Own bytes.
    #[default]
    OwnBytes,
    /// Total bytes.
    TotalBytes,
    /// Own count.
    OwnCount,
    /// Total count.
    TotalCount,
    /// Live bytes.
    LiveBytes,
}

/// One row. What the grouping does not tell apart is `None`, and `null` in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Process id.
    pub pid: Pid,
    /// Short name of the process.
    pub process: String,
    /// Qualified name of the function.
    pub function: Option<String>,
    /// File name; `None` for special frames too.
    pub file: Option<String>,
    /// Line; `None` if it is not known, too.
    pub line: Option<u32>,
    /// Bytes of the view that this place allocated itself.
    pub own_bytes: u64,
    /// Bytes of the view that it and what it called allocated.
    pub total_bytes: u64,
    /// Blocks of the view that this place allocated itself.
    pub own_count: u64,
    /// Blocks of the view that it and what it called allocated.
    pub total_count: u64,
    /// Bytes that this place allocated itself and that are live, whatever the view.
    pub live_bytes: u64,
    /// Blocks that this place allocated itself and that are live.
    pub live_count: u64,
    /// In heap mode, the acquisitions of pools and the page faults that `live_bytes` rests on beside what is exact: the
    /// relative error of an estimate is about one over the root of this.
    pub samples: u64,
    /// In heap mode, what of large blocks that this place allocated itself is not resident, bytes: not in `live_bytes`.
    pub untouched_bytes: u64,
    /// Whether something of the process was lost, so that the figures are not exact.
    pub lossy: bool,
    /// Whether the process was traced a part of the time, so that what was seen stands for what was not.
    pub partial: bool,
}

impl Row {
    pub(super) fn marks(&self) -> Marks {
        Marks {
            lossy: self.lossy,
            partial: self.partial,
        }
    }
}

/// Names that make a row one; a special frame always keeps its name, as it has no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Place {
    function: Option<StrId>,
    file: Option<StrId>,
    line: Option<u32>,
}

struct Sums {
    row: Row,
    /// The last stack that was added, so that a recursion adds it once.
    stamp: Option<usize>,
}

/// All rows of a snapshot that have something in this view, sorted.
pub fn rows(snapshot: &Snapshot, view: View, by: By, sort: Sort) -> Vec<Row> {
    let mut rows = Vec::new();
    for process in &snapshot.processes {
        rows.extend(process_rows(snapshot, process, view, by));
    }
    sort_rows(&mut rows, sort);
    rows
}

fn process_rows(
    snapshot: &Snapshot,
    process: &ProcessSummary,
    view: View,
    by: By,
) -> impl Iterator<Item = Row> {
    let mut places: FxHashMap<Place, usize> = FxHashMap::default();
    let mut sums: Vec<Sums> = Vec::new();
    for (stamp, (stack, tally)) in process.stacks.iter().enumerate() {
        let (bytes, count) = tally.of(view);
        for (depth, frame) in snapshot.stacks.leaf_first(*stack).enumerate() {
            let place = place(snapshot, frame, by);
            let index = *places.entry(place).or_insert_with(|| {
                sums.push(Sums {
                    row: empty_row(snapshot, process, place),
                    stamp: None,
                });
                sums.len() - 1
            });
            let Some(Sums { row, stamp: last }) = sums.get_mut(index) else {
                continue;
            };
            if depth == 0 {
                row.own_bytes = row.own_bytes.saturating_add(bytes);
                row.own_count = row.own_count.saturating_add(count);
                row.live_bytes = row.live_bytes.saturating_add(tally.live_bytes);
                row.live_count = row.live_count.saturating_add(tally.live_count);
                row.samples = row.samples.saturating_add(tally.samples);
                row.untouched_bytes = row.untouched_bytes.saturating_add(tally.untouched_bytes);
            }
            if last.replace(stamp) != Some(stamp) {
                row.total_bytes = row.total_bytes.saturating_add(bytes);
                row.total_count = row.total_count.saturating_add(count);
            }
        }
    }
    sums.into_iter()
        .map(|sums| sums.row)
        .filter(|row| row.total_count > 0 || row.total_bytes > 0)
}

pub(super) fn place(snapshot: &Snapshot, frame: FrameId, by: By) -> Place {
    let Some(symbol) = snapshot.frames.symbol(frame) else {
        return Place::default();
    };
    let file = (!snapshot.frames.str(symbol.file).is_empty()).then_some(symbol.file);
    let line = (symbol.line > 0).then_some(symbol.line);
    match by {
        By::Process => Place::default(),
        By::File if file.is_some() => Place {
            file,
            ..Place::default()
        },
        By::File | By::Function => Place {
            function: Some(symbol.function),
            file,
            line: None,
        },
        By::Line => Place {
            function: Some(symbol.function),
            file,
            line,
        },
    }
}

pub(super) fn empty_row(snapshot: &Snapshot, process: &ProcessSummary, place: Place) -> Row {
    let name = |id: StrId| snapshot.frames.str(id).to_owned();
    Row {
        pid: process.info.key.pid,
        process: process.info.name.clone(),
        function: place.function.map(name),
        file: place.file.map(name),
        line: place.line,
        own_bytes: 0,
        total_bytes: 0,
        own_count: 0,
        total_count: 0,
        live_bytes: 0,
        live_count: 0,
        samples: 0,
        untouched_bytes: 0,
        lossy: process.is_lossy(),
        partial: process.is_partial,
    }
}

/// Largest first; what is equal in order of its names, so that a report is the same every time.
fn sort_rows(rows: &mut [Row], sort: Sort) {
    let first = |row: &Row| match sort {
        Sort::OwnBytes => row.own_bytes,
        Sort::TotalBytes => row.total_bytes,
        Sort::OwnCount => row.own_count,
        Sort::TotalCount => row.total_count,
        Sort::LiveBytes => row.live_bytes,
    };
    rows.sort_by(|a, b| {
        let numbers = |row: &Row| Reverse((first(row), row.own_bytes, row.total_bytes, row.total_count));
        let names = |row: &Row| (row.pid, row.line);
        numbers(a)
            .cmp(&numbers(b))
            .then_with(|| names(a).cmp(&names(b)))
            .then_with(|| (&a.file, &a.function, &a.process).cmp(&(&b.file, &b.function, &b.process)))
    });
}
