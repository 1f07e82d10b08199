//! What stands in an aggregated capture in the place of events: tallies per process and stack, in parts.
//!
//! The parts come in the order of the variants; each refers to what stands before it by its place. A state that has no
//! [`Tallies::State`] behind it is not whole. Names are escaped already, but the file is hostile input: a reader escapes
//! them again.

use serde::{Deserialize, Serialize};

use crate::{
    ingest::event::Hits,
    profile::{Audits, Coverage, HeapSummary, Losses, ProcessInfo, Tally},
    units::MonotonicNs,
};

/// Most entries of a list in one part, so that no block is longer than blocks can be.
pub const PART: usize = 1 << 15;

/// A part of what was aggregated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tallies {
    /// More names.
    Names(Vec<String>),
    /// More frames: function and file by the places of their names, and the line.
    Frames(Vec<(u32, u32, u32)>),
    /// More nodes of the tree of stacks: the caller's node, which stands before, and the frame.
    Stacks(Vec<(Option<u32>, u32)>),
    /// A process, without its stacks.
    Process(Box<ProcessPart>),
    /// More stacks of the process before: nodes and what was counted there.
    Counted(Vec<(u32, Tally)>),
    /// The rest; behind it nothing is missing.
    State(Box<State>),
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessPart {
    /// Who it is.
    pub info: ProcessInfo,
    /// Version of its interpreter.
    pub python: Option<String>,
    /// What the probes see of its allocator.
    pub coverage: Option<Coverage>,
    /// What was lost.
    pub losses: Losses,
    /// Probe hits.
    pub hits: Option<Hits>,
    /// What came of its audits.
    pub audits: Audits,
    /// What the last reading of its heap found.
    pub heap: Option<HeapSummary>,
    /// Whether large blocks were traced a part of the time only.
    pub partial: bool,
    /// What its stacks held over time.
    pub growth: Option<GrowthPart>,
}

/// What the stacks of a process held at each reading of its heap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrowthPart {
    /// When the readings were made.
    pub times: Vec<MonotonicNs>,
    /// Nodes, and what was held there.
    pub stacks: Vec<(u32, Vec<u64>)>,
}

/// What belongs to no process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// When it was so, on the clock of the events.
    pub at: MonotonicNs,
    /// From the first to the last event, nanoseconds.
    pub seen_ns: u64,
    /// The most that all processes held at one time, bytes.
    pub peak_bytes: u64,
    /// Losses of no process, by the number of the reason.
    pub host_losses: Vec<u64>,
    /// Records that could not be decoded.
    pub decode_problems: u64,
    /// What a reader should know.
    pub notes: Vec<String>,
}
