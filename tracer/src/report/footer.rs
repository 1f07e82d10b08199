//! What stands under every text report: losses, coverage, cost, and whether the capture is whole.
//!
//! Apart because no report may go without it. Invariant: where nothing was lost it says "none", rather than
//! nothing.

use std::fmt::Write as _;

use super::{
    exited,
    footer_json::{ImageCoverageJson, coverage_json},
    format::{count, duration, percent, process},
};
use crate::{
    profile::{Losses, Snapshot},
    symbolize::escape,
};

/// Most lines of a list in a text footer; the rest is summed in one.
const MAX_LINES: usize = 10;

/// The footer of a text report: some lines, each ended by a newline.
pub fn text(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail; so in all of these functions.
    let _ = losses_text(snapshot, &mut out);
    let _ = coverage_text(snapshot, &mut out);
    let _ = hits_text(snapshot, &mut out);
    if let Some(why) = &snapshot.truncated {
        let _ = writeln!(out, "Capture:  cut off: {}", escape(why));
    }
    if let Some(note) = exited::note(snapshot) {
        let _ = writeln!(out, "Note:     {note}");
    }
    for note in &snapshot.notes {
        let _ = writeln!(out, "Note:     {}", escape(note));
    }
    out
}

/// One line for each thing that makes figures less than exact; nothing if all is well.
pub fn warnings(snapshot: &Snapshot) -> Vec<String> {
    let mut warnings = Vec::new();
    let lossy = snapshot.lossy().count();
    if snapshot.losses.total() > 0 {
        warnings.push(format!("{} losses", count(snapshot.losses.total())));
    }
    if lossy > 0 {
        warnings.push(format!("the figures of {lossy} process(es) are not exact"));
    }
    let partial = snapshot
        .processes
        .iter()
        .filter(|process| process.is_partial)
        .count();
    if partial > 0 {
        warnings.push(format!("{partial} process(es) were traced a part of the time"));
    }
    if let Some(covered) = snapshot.coverage_percent().filter(|&covered| covered < 100.0) {
        warnings.push(format!(
            "only {} of the allocator's sites are covered",
            percent(covered)
        ));
    }
    warnings.extend(exited::note(snapshot));
    if snapshot.decode_problems > 0 {
        warnings.push(format!(
            "{} records could not be decoded",
            count(snapshot.decode_problems)
        ));
    }
    if let Some(why) = &snapshot.truncated {
        warnings.push(format!("the capture is cut off: {}", escape(why)));
    }
    warnings
}

fn losses_text(snapshot: &Snapshot, out: &mut String) -> std::fmt::Result {
    let losses = &snapshot.losses;
    match losses.total() {
        0 => writeln!(out, "Losses:   none")?,
        total => writeln!(out, "Losses:   {} ({})", count(total), reasons(losses))?,
    }
    let lossy: Vec<_> = snapshot.lossy().collect();
    for process in lossy.iter().take(MAX_LINES) {
        writeln!(
            out,
            "          ! {}: {}",
            self::process(process),
            process_losses(&process.losses)
        )?;
    }
    if lossy.len() > MAX_LINES {
        writeln!(out, "          ! and {} more processes", lossy.len() - MAX_LINES)?;
    }
    let mut other = |number: u64, text: &str| match number {
        0 => Ok(()),
        number => writeln!(out, "          {} {text}", count(number)),
    };
    other(
        losses.unmatched_frees,
        "frees of blocks that were not seen allocated (before tracing, before a fork, not covered)",
    )?;
    other(losses.symbols.unknown_code, "frames shown as [unknown code]")?;
    other(
        losses.symbols.incomplete_line_tables,
        "functions shown with their first line, for want of their line table",
    )?;
    other(snapshot.decode_problems, "records that could not be decoded")
}

fn reasons(losses: &Losses) -> String {
    losses
        .reasons()
        .map(|(reason, number)| format!("{} {}", reason.name(), count(number)))
        .collect::<Vec<_>>()
        .join(", ")
}

fn process_losses(losses: &Losses) -> String {
    let mut parts = Vec::new();
    if losses.total() > 0 {
        parts.push(reasons(losses));
    }
    if let (Some(produced), Some(missing)) = (losses.produced, losses.missing())
        && missing.sum() > 0
    {
        parts.push(format!(
            "delivered {} of {} operations",
            count(produced.minus(missing).sum()),
            count(produced.sum())
        ));
    }
    for (number, text) in [
        (losses.stale_blocks, "blocks whose free was not seen"),
        (losses.unknown_stacks, "allocations shown as [unknown stack]"),
        (losses.table_full, "allocations shown as [too many frames]"),
    ] {
        if number > 0 {
            parts.push(format!("{} {text}", count(number)));
        }
    }
    parts.join("; ")
}

fn coverage_text(snapshot: &Snapshot, out: &mut String) -> std::fmt::Result {
    let coverage = coverage_json(snapshot);
    match coverage.percent {
        None => writeln!(out, "Coverage: not known")?,
        Some(covered) => writeln!(out, "Coverage: {} of the allocator's sites", percent(covered))?,
    }
    let worth_saying =
        |image: &&ImageCoverageJson| image.resolved < image.copies || image.attach_gap_ns.is_some();
    for image in coverage.images.iter().filter(worth_saying).take(MAX_LINES) {
        write!(
            out,
            "          {} (Python {}): {} of {} sites",
            image.image, image.python, image.resolved, image.copies
        )?;
        if let Some(gap) = image.attach_gap_ns {
            write!(out, ", probes in place {} after its first exec", duration(gap))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn hits_text(snapshot: &Snapshot, out: &mut String) -> std::fmt::Result {
    let hits = snapshot.totals.hits;
    write!(out, "Hits:     {} probe hits", count(hits.count))?;
    if let Some(spent) = snapshot.probe_ns() {
        write!(out, ", about {}", duration(spent))?;
        if let Some(share) = snapshot.overhead() {
            write!(out, " or {}", percent(share * 100.0))?;
        }
        write!(out, " of the processes' time by the clock")?;
    }
    writeln!(out)
}
