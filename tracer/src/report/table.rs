//! `report table`: where memory was allocated, as a text table or JSON.
//!
//! The text has a title, a Markdown-shaped table and the footer. The JSON is an object with `rows` and the
//! footer's keys. Invariant: a limit shortens the list, never the sums.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    footer,
    footer_json::{self, Footer},
    format::{count, size},
    grid::{Column, Kind, draw},
    marks::Marks,
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
            footer: footer_json::json(snapshot),
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
            let _ = writeln!(out, "{}", draw(self.columns(), self.width));
        }
        if self.rows.len() < self.row_count {
            let _ = writeln!(
                out,
                "({} more rows)",
                count((self.row_count - self.rows.len()) as u64)
            );
        }
        out.push_str(&Marks::legend(self.rows.iter().map(Row::marks)));
        let _ = write!(out, "\n{}", self.footer_text);
        out
    }

    fn columns(&self) -> Vec<Column> {
        let rows = &self.rows;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let mut columns = vec![
            Column::new("PID", Kind::Number, rows, |row| {
                format!("{}{}", row.marks(), row.pid)
            }),
            Column::new("Process", Kind::Name, rows, |row| row.process.clone()),
        ];
        if matches!(self.by, By::Line | By::Function) {
            columns.push(Column::new("Function", Kind::Name, rows, |row| {
                text(&row.function)
            }));
        }
        let file = |row: &Row| text(&row.file);
        columns.extend(match self.by {
            By::Line => Some(Column::new("File:line", Kind::Path, rows, |row| match row.line {
                Some(line) => format!("{}:{line}", file(row)),
                None => file(row),
            })),
            By::Function => Some(Column::new("File", Kind::Path, rows, file)),
            // A special frame has no file, and its name stands for it.
            By::File => Some(Column::new("File", Kind::Path, rows, |row| {
                text(row.file.as_ref().map_or(&row.function, |_| &row.file))
            })),
            By::Process => None,
        });
        columns.extend([
            Column::new("Own", Kind::Number, rows, |row| size(row.own_bytes)),
            Column::new("Total", Kind::Number, rows, |row| size(row.total_bytes)),
            Column::new("Live", Kind::Number, rows, |row| size(row.live_bytes)),
            Column::new("Own count", Kind::NumberIfRoom, rows, |row| count(row.own_count)),
            Column::new("Total count", Kind::NumberIfRoom, rows, |row| {
                count(row.total_count)
            }),
            Column::new("Live count", Kind::NumberIfRoom, rows, |row| {
                count(row.live_count)
            }),
        ]);
        if rows.iter().any(|row| row.samples > 0) {
            columns.push(Column::new("Samples", Kind::NumberIfRoom, rows, |row| {
                count(row.samples)
            }));
        }
        if rows.iter().any(|row| row.untouched_bytes > 0) {
            columns.push(Column::new("Untouched", Kind::NumberIfRoom, rows, |row| {
                size(row.untouched_bytes)
            }));
        }
        columns
    }
}

/// The text with a capital at its start.
pub(super) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
