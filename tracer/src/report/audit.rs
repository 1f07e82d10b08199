//! How far what is believed alive is from what the interpreters' pools held, as text and as JSON.
//!
//! Apart from `stats`, of which it is a part. Invariant: it shows and does not judge; a difference that has another
//! reason than missed events (blocks from before tracing) is told with that reason.

use std::fmt::Write as _;

use serde::Serialize;

use super::format::{count, duration, process};
use crate::{
    profile::{ProcessSummary, Snapshot, audit::Comparison},
    units::MonotonicNs,
};

/// Most lines of text; the processes that are furthest apart come first.
const MAX_LINES: usize = 10;

/// The audits of one process as JSON.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AuditsJson {
    /// Audits that were compared.
    made: u64,
    /// Audits that could not be, because the heap was too large.
    incomplete: u64,
    /// The most that any was apart, percent; `null` if none was compared.
    worst_percent: Option<f64>,
    /// The last one that was compared; `null` if none was.
    last: Option<AuditJson>,
}

/// One audit.
#[derive(Clone, Debug, Serialize)]
struct AuditJson {
    /// When reading began and ended, on the clock of the events.
    began_ns: MonotonicNs,
    ended_ns: MonotonicNs,
    /// Whether the process was traced before it had any block; if not, its pools hold blocks from before.
    since_start: bool,
    pools: u64,
    believed_blocks: u64,
    used_blocks: u64,
    /// Believed minus used.
    difference_blocks: i64,
    /// The same, each class by itself, without sign; and percent of the used blocks.
    apart_blocks: u64,
    apart_percent: f64,
    /// What changed while the pools were read.
    drift_blocks: u64,
    /// The classes that have blocks.
    classes: Vec<ClassJson>,
}

#[derive(Clone, Debug, Serialize)]
struct ClassJson {
    size: u64,
    believed: u64,
    used: u64,
    difference: i64,
    drift: u64,
}

/// As JSON.
pub(super) fn json(process: &ProcessSummary) -> AuditsJson {
    let audits = &process.audits;
    AuditsJson {
        made: audits.made,
        incomplete: audits.incomplete,
        worst_percent: (audits.made > 0).then_some(audits.worst_percent),
        last: audits.last.as_ref().map(|last| AuditJson {
            began_ns: last.audit.began,
            ended_ns: last.audit.ended,
            since_start: last.audit.since_start,
            pools: last.audit.pools,
            believed_blocks: last.believed(),
            used_blocks: last.used(),
            difference_blocks: last.difference(),
            apart_blocks: last.apart(),
            apart_percent: last.percent(),
            drift_blocks: last.drift(),
            classes: last
                .classes()
                .filter(|class| class.believed != 0 || class.used != 0)
                .map(|class| ClassJson {
                    size: class.size,
                    believed: class.believed,
                    used: class.used,
                    difference: class.difference(),
                    drift: class.drift,
                })
                .collect(),
        }),
    }
}

/// Some lines, each ended by a newline; nothing if there was no audit.
pub(super) fn text(snapshot: &Snapshot) -> String {
    let mut audited: Vec<_> = snapshot
        .processes
        .iter()
        .filter(|process| process.audits.made + process.audits.incomplete > 0)
        .collect();
    let apart = |process: &ProcessSummary| {
        let comparable = process.audits.last.as_ref().filter(|last| last.audit.since_start);
        comparable.map_or(0.0, Comparison::percent)
    };
    audited.sort_by(|a, b| apart(b).total_cmp(&apart(a)));
    let mut out = String::new();
    if audited.is_empty() {
        return out;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(out, "\nLive small blocks, beside the interpreter's own count:");
    for process in audited.iter().take(MAX_LINES) {
        let _ = line(process, &mut out);
    }
    if audited.len() > MAX_LINES {
        let _ = writeln!(out, "  and {} more processes", audited.len() - MAX_LINES);
    }
    out
}

fn line(process: &ProcessSummary, out: &mut String) -> std::fmt::Result {
    let audits = &process.audits;
    write!(out, "  {}: ", self::process(process))?;
    let Some(last) = &audits.last else {
        return writeln!(
            out,
            "{} audit(s) not made, the heap is too large",
            count(audits.incomplete)
        );
    };
    if last.audit.since_start {
        write!(
            out,
            "{:.2}% apart, seen {}, counted {}",
            last.percent(),
            count(last.believed()),
            count(last.used())
        )?;
    } else {
        write!(
            out,
            "seen {}, counted {} with those from before tracing or a fork",
            count(last.believed()),
            count(last.used())
        )?;
    }
    if let Some(worst) = last.worst().filter(|_| last.audit.since_start) {
        write!(
            out,
            ", most in blocks of {} bytes ({:+})",
            worst.size,
            worst.difference()
        )?;
    }
    if last.drift() > 0 {
        let took = last.audit.ended.get().saturating_sub(last.audit.began.get());
        write!(
            out,
            ", {} changed in the {} of reading",
            count(last.drift()),
            duration(took)
        )?;
    }
    write!(out, "; {} audit(s)", count(audits.made))?;
    if audits.incomplete > 0 {
        write!(out, ", {} not made", count(audits.incomplete))?;
    }
    writeln!(out)
}
