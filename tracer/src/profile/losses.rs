//! What was lost or not understood, by reason: for one process, or summed.
//!
//! Two sides count. The kernel side counts what it could not deliver; this side counts what it got and could
//! not match. Invariant: `produced` comes only from the kernel side's counters and `delivered` only from
//! events, so their difference is an independent check of the loss counters.

use serde::{Deserialize, Serialize};
use tracer_ebpf::reason::{REASONS, Reason};

use crate::symbolize::SymbolProblems;

/// Operations on blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operations {
    /// Allocations.
    pub allocs: u64,
    /// Frees.
    pub frees: u64,
    /// Reallocations.
    pub reallocs: u64,
    /// Page faults that were not left out.
    pub faults: u64,
}

/// Everything that makes figures less than exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Losses {
    /// Counted by the kernel side, by the number of the [`Reason`].
    #[serde(with = "super::stored")]
    pub by_reason: [u64; REASONS],
    /// Operations that happened, delivered or lost; `None` if the kernel side's counters are not known (yet).
    pub produced: Option<Operations>,
    /// Operations that arrived.
    pub delivered: Operations,
    /// Frees of blocks that are not in the live set: allocated before tracing or before a fork, at a place that is
    /// not probed, or their allocation was lost.
    pub unmatched_frees: u64,
    /// Blocks whose free was not seen, found out by what came after.
    pub stale_blocks: u64,
    /// Operations whose stack was not delivered; shown as `[unknown stack]`.
    pub unknown_stacks: u64,
    /// Operations whose stack did not fit into the tables; shown as `[too many frames]`.
    pub table_full: u64,
    /// What could not be resolved to names and lines.
    pub symbols: SymbolProblems,
}

impl Operations {
    /// All of them.
    pub fn sum(self) -> u64 {
        self.allocs
            .saturating_add(self.frees)
            .saturating_add(self.reallocs)
            .saturating_add(self.faults)
    }

    /// Each minus the other's, never below 0.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            allocs: self.allocs.saturating_sub(other.allocs),
            frees: self.frees.saturating_sub(other.frees),
            reallocs: self.reallocs.saturating_sub(other.reallocs),
            faults: self.faults.saturating_sub(other.faults),
        }
    }

    /// Each plus the other's.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            allocs: self.allocs.saturating_add(other.allocs),
            frees: self.frees.saturating_add(other.frees),
            reallocs: self.reallocs.saturating_add(other.reallocs),
            faults: self.faults.saturating_add(other.faults),
        }
    }
}

impl Losses {
    /// Operations that happened and did not arrive.
    pub fn missing(&self) -> Option<Operations> {
        self.produced.map(|produced| produced.minus(self.delivered))
    }

    /// What the kernel side counted, all reasons together.
    pub fn total(&self) -> u64 {
        self.by_reason
            .iter()
            .fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// Whether figures of this process are wrong or may be: something was lost.
    ///
    /// Unmatched frees do not make it so: frees of what was there before tracing are no loss.
    pub fn is_lossy(&self) -> bool {
        self.total() > 0
            || self.missing().is_some_and(|missing| missing.sum() > 0)
            || self.stale_blocks > 0
            || self.unknown_stacks > 0
            || self.table_full > 0
    }

    /// Reasons with a count, in the order of their numbers.
    pub fn reasons(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL
            .into_iter()
            .zip(self.by_reason)
            .filter(|&(_, count)| count > 0)
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (sum, &count) in self.by_reason.iter_mut().zip(&other.by_reason) {
            *sum = sum.saturating_add(count);
        }
        if let Some(produced) = other.produced {
            self.produced = Some(self.produced.unwrap_or_default().plus(produced));
        }
        self.delivered = self.delivered.plus(other.delivered);
        self.unmatched_frees = self.unmatched_frees.saturating_add(other.unmatched_frees);
        self.stale_blocks = self.stale_blocks.saturating_add(other.stale_blocks);
        self.unknown_stacks = self.unknown_stacks.saturating_add(other.unknown_stacks);
        self.table_full = self.table_full.saturating_add(other.table_full);
        self.symbols.unknown_code = self
            .symbols
            .unknown_code
            .saturating_add(other.symbols.unknown_code);
        self.symbols.incomplete_line_tables = self
            .symbols
            .incomplete_line_tables
            .saturating_add(other.symbols.incomplete_line_tables);
    }
}
