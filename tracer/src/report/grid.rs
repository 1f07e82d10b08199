//! Text tables that fit the terminal: names are shortened, then columns left out, before a row breaks.
//!
//! Apart because every text table does it the same way; comfy-table draws what is left, in a shape that can be
//! pasted into Markdown. Invariant: every column has a cell for every row.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::format::{keep_end, keep_start};

/// Narrowest that a name becomes, characters.
const MIN_NAME: usize = 12;

/// A column, whole.
#[derive(Clone, Debug)]
pub(super) struct Column {
    title: &'static str,
    kind: Kind,
    cells: Vec<String>,
}

/// What may be done to a column, and how it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Never touched; to the right.
    Number,
    /// Left out where there is no room; to the right.
    NumberIfRoom,
    /// Never touched; to the left.
    Word,
    /// Loses its end where there is no room; to the left.
    Name,
    /// Loses its start where there is no room; to the left.
    Path,
}

impl Column {
    /// A column of one cell for each item.
    pub(super) fn new<T>(
        title: &'static str,
        kind: Kind,
        items: impl IntoIterator<Item = T>,
        cell: impl FnMut(T) -> String,
    ) -> Self {
        Self {
            title,
            kind,
            cells: items.into_iter().map(cell).collect(),
        }
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().map(String::as_str).chain([self.title]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }

    fn shorten(&mut self, width: usize) {
        for cell in &mut self.cells {
            *cell = if self.kind == Kind::Path {
                keep_end(cell, width)
            } else {
                keep_start(cell, width)
            };
        }
    }
}

/// Draws the table; `width` is that of the terminal, `None` for as wide as need be.
pub(super) fn draw(mut columns: Vec<Column>, width: Option<u16>) -> Table {
    if let Some(width) = width {
        fit(&mut columns, usize::from(width));
    }
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column.title));
    let rows = columns.iter().map(|column| column.cells.len()).max().unwrap_or(0);
    for row in 0..rows {
        table.add_row(
            columns
                .iter()
                .map(|column| column.cells.get(row).map_or("", |cell| cell)),
        );
    }
    for (drawn, column) in table.column_iter_mut().zip(&columns) {
        if matches!(column.kind, Kind::Number | Kind::NumberIfRoom) {
            drawn.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn fit(columns: &mut Vec<Column>, width: usize) {
    loop {
        let mut widths: Vec<usize> = columns.iter().map(Column::width).collect();
        // "| a | b |": three characters for each column and one more.
        let frame = columns.len() * 3 + 1;
        while widths.iter().sum::<usize>() + frame > width {
            let names = widths.iter_mut().zip(columns.iter()).filter(|(width, column)| {
                matches!(column.kind, Kind::Name | Kind::Path) && **width > MIN_NAME.max(column.title.len())
            });
            match names.map(|(width, _)| width).max() {
                Some(widest) => *widest -= 1,
                None => break,
            }
        }
        let fits = widths.iter().sum::<usize>() + frame <= width;
        let spare = columns
            .iter()
            .rposition(|column| column.kind == Kind::NumberIfRoom);
        match spare {
            Some(spare) if !fits => drop(columns.remove(spare)),
            _ => {
                for (column, width) in columns.iter_mut().zip(widths) {
                    column.shorten(width);
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        let names = ["a_function_with_a_long_name", "f"];
        vec![
            Column::new("Function", Kind::Name, names, str::to_owned),
            Column::new(
                "File",
                Kind::Path,
                ["/a/long/way/to/the/file.py:123", "x.py:1"],
                str::to_owned,
            ),
            Column::new("Own", Kind::Number, [1, 22], |number| number.to_string()),
            Column::new("Own count", Kind::NumberIfRoom, [333, 4], |number| {
                number.to_string()
            }),
        ]
    }

    #[track_caller]
    fn check(width: Option<u16>, expected: &str) {
        assert_eq!(draw(columns(), width).to_string(), expected.trim());
    }

    #[test]
    fn without_a_terminal_nothing_is_shortened() {
        check(
            None,
            "
| Function                    | File                           | Own | Own count |
|-----------------------------|--------------------------------|-----|-----------|
| a_function_with_a_long_name | /a/long/way/to/the/file.py:123 |   1 |       333 |
| f                           | x.py:1                         |  22 |         4 |
",
        );
    }

    #[test]
    fn names_are_shortened_before_columns_are_left_out() {
        check(
            Some(60),
            "
| Function           | File              | Own | Own count |
|--------------------|-------------------|-----|-----------|
| a_function_with... | ...he/file.py:123 |   1 |       333 |
| f                  | x.py:1            |  22 |         4 |
",
        );
        check(
            Some(45),
            "
| Function         | File             | Own |
|------------------|------------------|-----|
| a_function_wi... | ...e/file.py:123 |   1 |
| f                | x.py:1           |  22 |
",
        );
    }
}
