//! `pyrobe report` and `pyrobe export`: a capture to a snapshot to a rendering.

use std::io::{self, Write};

use super::{
    CommandResult,
    args::{Export, Input, Report},
    load,
    output::{self, say},
    which::Which,
};
use crate::{
    error::{Exit, UserError},
    mode::Mode,
    profile::{Snapshot, View},
    report::{
        collapsed::{self, CollapsedOptions},
        flamegraph::{self, FlamegraphOptions, Orientation},
        footer,
        leaks::Leaks,
        stats::Stats,
        table::{Table, TableOptions},
    },
};

/// Rows of a text table unless the user says otherwise: more is for a file.
const DEFAULT_ROWS: usize = 50;

/// Shows a report.
pub(super) fn run(report: &Report) -> CommandResult {
    match report {
        Report::Stats { input, json } => {
            let stats = Stats::from_snapshot(&load::snapshot(&input.file)?);
            if *json {
                write_json(input, &stats.json().map_err(json_error)?)
            } else {
                write(input, |out| out.write_all(stats.text(output::width()).as_bytes()))
            }
        }
        Report::Table {
            input,
            which,
            view,
            by,
            sort,
            limit,
            json,
        } => {
            let snapshot = load(input, which)?;
            let options = TableOptions {
                view: view_of(*view, &snapshot),
                by: (*by).into(),
                sort: (*sort).into(),
                limit: limit.or((!*json).then_some(DEFAULT_ROWS)),
                width: output::width(),
            };
            let table = Table::from_snapshot(&snapshot, &options);
            if *json {
                write_json(input, &table.json().map_err(json_error)?)
            } else {
                write(input, |out| out.write_all(table.text().as_bytes()))
            }
        }
        Report::Leaks {
            input,
            which,
            by,
            limit,
            json,
        } => {
            let snapshot = load(input, which)?;
            if snapshot.context.mode() != Mode::Heap {
                return Err(
                    UserError::new("there are no readings of heaps over time in this capture")
                        .hint("record with --mode heap, the default"),
                );
            }
            let limit = limit.or((!*json).then_some(DEFAULT_ROWS));
            let leaks = Leaks::from_snapshot(&snapshot, (*by).into(), limit, output::width());
            if *json {
                write_json(input, &leaks.json().map_err(json_error)?)
            } else {
                write(input, |out| out.write_all(leaks.text().as_bytes()))
            }
        }
        Report::Flamegraph {
            input,
            which,
            view,
            metric,
            icicle,
            title,
        } => {
            let snapshot = load(input, which)?;
            let options = FlamegraphOptions {
                view: view_of(*view, &snapshot),
                metric: *metric,
                title: title.clone(),
                orientation: if *icicle {
                    Orientation::Icicles
                } else {
                    Orientation::default()
                },
            };
            warn(&snapshot);
            write(input, |out| flamegraph::write(&snapshot, &options, out))
        }
    }
}

/// Writes another format.
pub(super) fn export(format: &Export) -> CommandResult {
    match format {
        Export::Collapsed {
            input,
            which,
            view,
            metric,
        } => {
            let snapshot = load(input, which)?;
            warn(&snapshot);
            write(input, |out| {
                collapsed::write(
                    &snapshot,
                    CollapsedOptions {
                        view: view_of(*view, &snapshot),
                        metric: *metric,
                    },
                    out,
                )
            })
        }
    }
}

/// What a capture tells of these processes.
fn load(input: &Input, which: &Which) -> Result<Snapshot, UserError> {
    let mut snapshot = load::snapshot(&input.file)?;
    which.select(&mut snapshot)?;
    Ok(snapshot)
}

/// The view that was asked for, or else the one that the recording is for.
fn view_of(asked: Option<View>, snapshot: &Snapshot) -> View {
    asked.unwrap_or(match snapshot.context.mode() {
        Mode::Heap => View::InUse,
        Mode::Allocs => View::Allocated,
    })
}

/// What has no footer says it on standard error.
fn warn(snapshot: &Snapshot) {
    for warning in footer::warnings(snapshot) {
        say(&format!("warning: {warning}"));
    }
}

fn write(input: &Input, how: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> CommandResult {
    output::write(input.output.as_deref(), input.force, how)?;
    Ok(Exit::Done.into())
}

fn write_json(input: &Input, value: &serde_json::Value) -> CommandResult {
    write(input, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        writeln!(out)
    })
}

fn json_error(error: serde_json::Error) -> UserError {
    UserError::new("cannot write JSON").caused_by(error)
}
