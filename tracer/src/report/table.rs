//! `report table`: where memory was allocated, as a text table or JSON.
//!
//! The text has a title, a Markdown-shaped table and the footer. The JSON is an object with `rows` and the
//! footer's keys. Invariant: a limit shortens the list, never the sums.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table as TextTable, presets};
use serde::Serialize;

use super::{
    footer::{self, Footer},
    format::{count, keep_end, keep_start, size},
    rows::{By, Row, Sort, rows},
};
use crate::profile::{Snapshot, View};

/// What the table shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// Which blocks.
    pub view: View,
    /// What makes a row.
    pub by: By,
    /// What it is sorted by.
    pub sort: Sort,
    /// Most rows shown; `None` for all.
    pub limit: Option<usize>,
    /// Columns of the terminal; `None` for as wide as need be.
    pub width: Option<u16>,
}

/// A table, ready to be shown.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    view: View,
    by: By,
    sort: Sort,
    /// Rows there are, shown or not.
    row_count: usize,
    /// Sum of the view over all rows.
    bytes: u64,
    /// Blocks of the view over all rows.
    count: u64,
    rows: Vec<Row>,
    #[serde(flatten)]
    footer: Footer,
    #[serde(skip)]
    footer_text: String,
    #[serde(skip)]
    width: Option<u16>,
}

/// Narrowest terminal that names are shortened for; a narrower one wraps.
const MIN_WIDTH: usize = 80;
/// Narrowest that a name becomes.
const MIN_NAME: usize = 12;

impl Table {
    /// The rows of a snapshot.
    pub fn from_snapshot(snapshot: &Snapshot, options: &TableOptions) -> Self {
        let mut rows = rows(snapshot, options.view, options.by, options.sort);
        let row_count = rows.len();
        rows.truncate(options.limit.unwrap_or(usize::MAX));
        let (bytes, count) = snapshot.totals.tally.of(options.view);
        Self {
            view: options.view,
            by: options.by,
            sort: options.sort,
            row_count,
            bytes,
            count,
            rows,
            footer: footer::json(snapshot),
            footer_text: footer::text(snapshot),
            width: options.width,
        }
    }

    /// The rows shown.
    pub fn rows(&self) -> &[Row] {
        &self.rows
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
            "{}: {} in {} blocks, {} rows (bytes are bytes occupied; 1 KiB = 1024 bytes)\n",
            capital(self.view.title()),
            size(self.bytes),
            count(self.count),
            count(self.row_count as u64),
        );
        if self.rows.is_empty() {
            let _ = writeln!(out, "Nothing to show.");
        } else {
            let _ = writeln!(out, "{}", self.table());
        }
        if self.rows.len() < self.row_count {
            let _ = writeln!(
                out,
                "({} more rows)",
                count((self.row_count - self.rows.len()) as u64)
            );
        }
        if self.rows.iter().any(|row| row.lossy) {
            let _ = writeln!(
                out,
                "(! something of this process was lost: its figures are not exact)"
            );
        }
        let _ = write!(out, "\n{}", self.footer_text);
        out
    }

    fn table(&self) -> TextTable {
        let mut cells: Vec<Vec<String>> = vec![self.header()];
        cells.extend(self.rows.iter().map(|row| self.cells(row)));
        self.shorten(&mut cells);
        let mut table = TextTable::new();
        table
            .load_preset(presets::ASCII_MARKDOWN)
            .set_content_arrangement(ContentArrangement::Disabled);
        let mut cells = cells.into_iter();
        if let Some(header) = cells.next() {
            table.set_header(header);
        }
        table.add_rows(cells);
        let names = 2 + self.name_columns();
        for (index, column) in table.column_iter_mut().enumerate() {
            if index == 0 || index >= names {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    /// How many columns say where, besides pid and process.
    fn name_columns(&self) -> usize {
        match self.by {
            By::Line | By::Function => 2,
            By::File => 1,
            By::Process => 0,
        }
    }

    fn header(&self) -> Vec<String> {
        let names: &[&str] = match self.by {
            By::Line => &["Function", "File:line"],
            By::Function => &["Function", "File"],
            By::File => &["File"],
            By::Process => &[],
        };
        let numbers = [
            "Own",
            "Total",
            "Own blocks",
            "Total blocks",
            "Live",
            "Live blocks",
        ];
        ["PID", "Process"]
            .iter()
            .chain(names)
            .chain(&numbers)
            .map(|&name| name.to_owned())
            .collect()
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let mut cells = vec![
            format!("{}{}", if row.lossy { "! " } else { "" }, row.pid),
            row.process.clone(),
        ];
        match (self.by, row.line) {
            (By::Line, Some(line)) => {
                cells.extend([text(&row.function), format!("{}:{line}", text(&row.file))])
            }
            (By::Line | By::Function, _) => cells.extend([text(&row.function), text(&row.file)]),
            (By::File, _) => cells.push(row.file.clone().unwrap_or_else(|| text(&row.function))),
            (By::Process, _) => {}
        }
        cells.extend([
            size(row.own_bytes),
            size(row.total_bytes),
            count(row.own_count),
            count(row.total_count),
            size(row.live_bytes),
            count(row.live_count),
        ]);
        cells
    }

    /// Shortens the names so that a row fits on a line of the terminal, the widest first.
    fn shorten(&self, cells: &mut [Vec<String>]) {
        let Some(width) = self.width else { return };
        let columns = cells.first().map_or(0, Vec::len);
        let mut widths: Vec<usize> = (0..columns)
            .map(|column| {
                cells
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        // "| a | b |": three characters for each column and one more.
        let frame = columns * 3 + 1;
        let mut excess =
            (widths.iter().sum::<usize>() + frame).saturating_sub(usize::from(width).max(MIN_WIDTH));
        while excess > 0 {
            let names = widths.iter_mut().skip(1).take(1 + self.name_columns());
            match names.max() {
                Some(widest) if *widest > MIN_NAME => *widest -= 1,
                _ => break,
            }
            excess -= 1;
        }
        let location = 1 + self.name_columns();
        for row in cells {
            for (index, (cell, &width)) in row.iter_mut().zip(&widths).enumerate().skip(1).take(location) {
                // The end of a file name says more; so does the start of any other.
                *cell = if index == location && index > 1 {
                    keep_end(cell, width)
                } else {
                    keep_start(cell, width)
                };
            }
        }
    }
}

pub(super) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
