//! What makes up the memory of each process, in heap mode: the parts add up to what the kernel says is resident.
//!
//! Apart from `stats`, of which it is a part. Invariant: nothing is left out; what is not known stands as such.

use std::fmt::Write as _;

use super::format::{count, process, size};
use crate::profile::{HeapSummary, Snapshot};

/// Most processes in the text; those with the most memory come first.
const MAX_PROCESSES: usize = 10;

/// The parts of each process's memory, as text; empty if no heap was read.
pub(super) fn text(snapshot: &Snapshot) -> String {
    let mut all: Vec<_> = snapshot
        .processes
        .iter()
        .filter_map(|process| Some((process, process.heap?)))
        .collect();
    all.sort_by_key(|(_, heap)| std::cmp::Reverse(heap.anonymous));
    let mut out = String::new();
    if all.is_empty() {
        return out;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "\nAnonymous resident memory at the last reading, and what it is:"
    );
    for (summary, heap) in all.iter().take(MAX_PROCESSES) {
        let _ = writeln!(
            out,
            "  {}: {}, {} reading(s){}",
            process(summary),
            size(heap.anonymous),
            count(heap.audits),
            if heap.complete {
                ""
            } else {
                ", not all pools could be read"
            }
        );
        if summary.is_partial {
            let _ = writeln!(
                out,
                "    partial: large blocks, or the acquisitions of pools, were traced a part of the time; what was seen stands for the rest"
            );
        }
        for (name, bytes) in parts(heap) {
            if bytes > 0 {
                let share = 100.0 * bytes as f64 / heap.anonymous.max(1) as f64;
                let _ = writeln!(out, "    {:>9} {share:>5.1}%  {name}", size(bytes));
            }
        }
        if heap.untouched > 0 {
            let _ = writeln!(
                out,
                "    {:>9}         allocated in large blocks and not resident: in no row's bytes, `Untouched` in the table",
                size(heap.untouched)
            );
        }
    }
    if all.len() > MAX_PROCESSES {
        let _ = writeln!(
            out,
            "  ({} more processes)",
            count((all.len() - MAX_PROCESSES) as u64)
        );
    }
    out
}

fn parts(heap: &HeapSummary) -> [(&'static str, u64); 8] {
    let pools = heap
        .pools_in_use
        .saturating_sub(heap.before_in_pools)
        .saturating_sub(heap.refilled);
    [
        ("small blocks in use, by who acquired their pools", pools),
        ("in pools that were refilled, not known by whom", heap.refilled),
        ("large blocks", heap.large),
        (
            "large blocks that were not seen, by those that were",
            heap.large_unseen,
        ),
        ("other memory, by who touched it first", heap.touched),
        ("from before tracing, or before a fork", heap.before),
        ("free in pools and arenas", heap.pools_free),
        ("not attributed", heap.unknown),
    ]
}
