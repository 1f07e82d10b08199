//! What stands under every report: losses, coverage, cost, and whether the capture is whole.
//!
//! Apart because no report may go without it. Invariant: the JSON has the same keys whether or not anything
//! was lost; the text says "none" rather than nothing.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;
use tracer_ebpf::reason::Reason;

use super::format::{count, duration, percent, process};
use crate::{
    profile::{Losses, Operations, ProcessSummary, Snapshot},
    symbolize::escape,
    units::{BootNs, Pid},
};

/// Most lines of a list in a text footer; the rest is summed in one.
const MAX_LINES: usize = 10;

/// The part of a JSON report that all reports share.
#[derive(Clone, Debug, Serialize)]
pub struct Footer {
    /// What was lost or not understood.
    pub losses: LossesJson,
    /// What the probes see.
    pub coverage: CoverageJson,
    /// Probe hits of all processes whose counters are known.
    pub hits: u64,
    /// Why the capture ends early; `null` if it is whole.
    pub truncated: Option<String>,
    /// Anything else, one sentence each.
    pub notes: Vec<String>,
}

/// Losses as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct LossesJson {
    /// All that the kernel side counted.
    pub total: u64,
    /// The same by reason; every reason is there.
    pub by_reason: BTreeMap<&'static str, u64>,
    /// Operations that happened and did not arrive, of processes whose counters are known.
    pub missing: Operations,
    /// Frees of blocks that are not known: from before tracing, from before a fork, or not covered.
    pub unmatched_frees: u64,
    /// Blocks whose free was not seen.
    pub stale_blocks: u64,
    /// Operations shown as `[unknown stack]`.
    pub unknown_stacks: u64,
    /// Frames shown as `[unknown code]`.
    pub unknown_code: u64,
    /// Code objects shown with their first line for want of a whole line table.
    pub incomplete_line_tables: u64,
    /// Operations shown as `[too many frames]`.
    pub table_full: u64,
    /// Records that could not be decoded.
    pub decode_problems: u64,
    /// Processes of which something was lost.
    pub processes: Vec<ProcessLossesJson>,
}

/// Losses of one process as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessLossesJson {
    /// Process id.
    pub pid: Pid,
    /// Start, nanoseconds since boot.
    pub start_ns: Option<BootNs>,
    /// How many execs it had before.
    pub incarnation: u32,
    /// Its name.
    pub process: String,
    /// All that the kernel side counted for it.
    pub total: u64,
    /// The same by reason, without the zeros.
    pub by_reason: BTreeMap<&'static str, u64>,
    /// Operations that happened; `null` if its last counters are not known.
    pub produced: Option<Operations>,
    /// Operations that arrived.
    pub delivered: Operations,
    /// Blocks whose free was not seen.
    pub stale_blocks: u64,
    /// Operations shown as `[unknown stack]`.
    pub unknown_stacks: u64,
}

/// Coverage as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct CoverageJson {
    /// The least of all images that a process used, 0 to 100; `null` if it is not known.
    pub percent: Option<f64>,
    /// Each image that a process used.
    pub images: Vec<ImageCoverageJson>,
}

/// Coverage of one image as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ImageCoverageJson {
    /// Path, as the processes see it.
    pub image: String,
    /// CPython's version.
    pub python: String,
    /// Build id.
    pub build_id: Option<String>,
    /// Places that are probed.
    pub resolved: u32,
    /// All places.
    pub copies: u32,
    /// The one of the other, 0 to 100; `null` if no place is known.
    pub percent: Option<f64>,
    /// From the first exec to the probes being in place, nanoseconds; `null` if they were there first.
    pub attach_gap_ns: Option<u64>,
    /// Processes that used it.
    pub processes: usize,
}

/// The shared part of a JSON report.
pub fn json(snapshot: &Snapshot) -> Footer {
    Footer {
        losses: losses_json(snapshot),
        coverage: coverage_json(snapshot),
        hits: snapshot.totals.hits,
        truncated: snapshot.truncated.as_deref().map(escape),
        notes: snapshot.notes.iter().map(|note| escape(note)).collect(),
    }
}

fn missing(snapshot: &Snapshot) -> Operations {
    snapshot
        .processes
        .iter()
        .filter_map(|process| process.losses.missing())
        .fold(Operations::default(), Operations::plus)
}

fn losses_json(snapshot: &Snapshot) -> LossesJson {
    let losses = &snapshot.losses;
    LossesJson {
        total: losses.total(),
        by_reason: Reason::ALL
            .into_iter()
            .map(Reason::name)
            .zip(losses.by_reason)
            .collect(),
        missing: missing(snapshot),
        unmatched_frees: losses.unmatched_frees,
        stale_blocks: losses.stale_blocks,
        unknown_stacks: losses.unknown_stacks,
        unknown_code: losses.symbols.unknown_code,
        incomplete_line_tables: losses.symbols.incomplete_line_tables,
        table_full: losses.table_full,
        decode_problems: snapshot.decode_problems,
        processes: snapshot.lossy().map(process_losses_json).collect(),
    }
}

fn process_losses_json(process: &ProcessSummary) -> ProcessLossesJson {
    ProcessLossesJson {
        pid: process.info.key.pid,
        start_ns: process.info.key.start,
        incarnation: process.info.key.incarnation,
        process: process.info.name.clone(),
        total: process.losses.total(),
        by_reason: process
            .losses
            .reasons()
            .map(|(reason, count)| (reason.name(), count))
            .collect(),
        produced: process.losses.produced,
        delivered: process.losses.delivered,
        stale_blocks: process.losses.stale_blocks,
        unknown_stacks: process.losses.unknown_stacks,
    }
}

fn coverage_json(snapshot: &Snapshot) -> CoverageJson {
    let used = snapshot.processes_by_image();
    let images = snapshot.context.images.iter().filter_map(|image| {
        Some(ImageCoverageJson {
            image: escape(&image.path),
            python: escape(&image.version),
            build_id: image.build_id.as_deref().map(escape),
            resolved: image.coverage.resolved,
            copies: image.coverage.copies,
            percent: image.coverage.percent(),
            attach_gap_ns: image.attach_gap_ns,
            processes: used.get(&image.id).copied()?,
        })
    });
    CoverageJson {
        percent: snapshot.coverage_percent(),
        images: images.collect(),
    }
}

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
    for note in &snapshot.notes {
        let _ = writeln!(out, "Note:     {}", escape(note));
    }
    out
}

/// One line for each thing that makes figures less than exact; nothing if all is well.
pub fn warnings(snapshot: &Snapshot) -> Vec<String> {
    let mut warnings = Vec::new();
    let lossy = snapshot.lossy().count();
    if lossy > 0 || snapshot.losses.total() > 0 {
        warnings.push(format!(
            "{} losses; figures of {lossy} process(es) are not exact",
            count(snapshot.losses.total())
        ));
    }
    if let Some(covered) = snapshot.coverage_percent().filter(|&covered| covered < 100.0) {
        warnings.push(format!(
            "only {} of the allocator's sites are covered",
            percent(covered)
        ));
    }
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
    write!(out, "Hits:     {} probe hits", count(hits))?;
    if let Some(cost) = snapshot.context.cost_per_hit_ns.filter(|cost| *cost > 0.0) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive estimate; `as` saturates"
        )]
        let spent = (hits as f64 * cost) as u64;
        write!(out, ", about {} of the processes' time", duration(spent))?;
    }
    writeln!(out)
}
