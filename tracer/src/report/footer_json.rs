//! The part that all JSON reports share: losses, coverage, hits, notes. Stable and documented.
//!
//! Apart from the text footer, which says the same for people. Invariant: the keys are always there, whether
//! or not anything was lost.

use std::collections::BTreeMap;

use serde::Serialize;
use tracer_ebpf::reason::Reason;

use super::exited;
use crate::{
    profile::{Operations, ProcessSummary, Snapshot},
    symbolize::escape,
    units::{BootNs, Pid},
};

/// The part of a JSON report that all reports share.
#[derive(Clone, Debug, Serialize)]
pub struct Footer {
    /// What was lost or not understood.
    pub losses: LossesJson,
    /// What the probes see.
    pub coverage: CoverageJson,
    /// Probe hits of all processes whose counters are known.
    pub hits: u64,
    /// Time that these took from the processes, nanoseconds, estimated; `null` if it is not known.
    pub probe_ns: Option<u64>,
    /// Its share of the time for which the processes were seen to run, waiting or not, percent.
    pub overhead_percent: Option<f64>,
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
        hits: snapshot.totals.hits.count,
        probe_ns: snapshot.probe_ns(),
        overhead_percent: snapshot.overhead().map(|share| share * 100.0),
        truncated: snapshot.truncated.as_deref().map(escape),
        notes: exited::note(snapshot)
            .into_iter()
            .chain(snapshot.notes.iter().map(|note| escape(note)))
            .collect(),
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

pub(super) fn coverage_json(snapshot: &Snapshot) -> CoverageJson {
    let used = snapshot.processes_by_image();
    let images = snapshot.context.images.iter().filter_map(|image| {
        let processes = used.get(&image.id).copied().unwrap_or(0);
        // Whoever used it before it was attached may be gone since: only the gap tells.
        if processes == 0 && image.attach_gap_ns.is_none() {
            return None;
        }
        Some(ImageCoverageJson {
            image: escape(&image.path),
            python: escape(&image.version),
            build_id: image.build_id.as_deref().map(escape),
            resolved: image.coverage.resolved,
            copies: image.coverage.copies,
            percent: image.coverage.percent(),
            attach_gap_ns: image.attach_gap_ns,
            processes,
        })
    });
    CoverageJson {
        percent: snapshot.coverage_percent(),
        images: images.collect(),
    }
}
