//! Reports: each is a function of one `profile::Snapshot` and its own options, and of nothing else.
//!
//! Text goes to a `String` or a writer that the caller gives; nothing here prints, reads a file or knows of
//! events. Invariant: every report carries losses, coverage and hits (JSON: always the same keys; text: a
//! footer; flame graph: the subtitle), so that no figure stands without what it may be short of. Collapsed
//! lines have no place for them; whoever writes them out prints [`footer::warnings`] besides.

mod audit;
pub mod collapsed;
mod exited;
pub mod flamegraph;
pub mod footer;
pub mod footer_json;
pub mod format;
mod grid;
mod heap;
pub mod leaks;
mod marks;
pub mod rows;
pub mod stats;
pub mod table;

#[cfg(test)]
mod tests;
