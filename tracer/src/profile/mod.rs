//! Events -> tallies per process and stack -> [`Snapshot`], which is all that a report ever sees.
//!
//! Apart so that everything a report says can be tested with made-up events. No IO. Invariants: a process
//! is (pid, start, incarnation), never a bare pid; what is live is what was allocated minus what was freed,
//! exactly; whatever does not fit is counted, never dropped silently.

pub mod apply;
pub mod audit;
pub mod context;
mod fold;
mod heap;
mod high_water;
pub mod info;
mod live;
pub mod losses;
mod mimalloc;
mod process;
pub mod snapshot;
mod snapshot_build;
mod stack_ids;
pub mod stacks;
mod stored;
pub mod tally;
pub mod trend;
mod untraced;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use apply::{GroupGap, Profile, ProfileSettings, Work};
pub use audit::{Audits, PoolAudit};
pub use context::{Context, Coverage, ImageInfo};
pub use heap::HeapSummary;
pub use info::{End, ProcessInfo, ProcessKey};
pub use losses::{Losses, Operations};
pub use snapshot::{GrowthSeries, ProcessSummary, Snapshot, Totals};
pub use stacks::{StackId, StackTable};
pub use tally::{Metric, Tally, View};
