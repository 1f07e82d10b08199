//! The capture file: append-only, framed, compressed, readable to the last whole block after any death.
//!
//! `format` is the bytes, `context` what the blocks that are no events say, `tallies` what stands in place of events
//! in an aggregated capture, `write` and `read` the two ends, `numbered` and `replaced` what becomes of the files.
//! Nothing here knows what an event means. Blocks of different kinds, and of different rings, stand in no
//! order to each other; the event blocks of one ring are in order, and an audit stands before what is later.

pub mod context;
mod format;
pub mod numbered;
pub mod read;
pub mod replaced;
pub mod tallies;
pub mod write;

#[cfg(test)]
mod tests;

pub use context::{
    AtWork, Audit, End, EndReason, Gap, HOST, ImageRecord, Meta, ProcessCounters, ProcessRecord, Window,
};
pub use numbered::Numbered;
pub use read::{Block, Ended, OpenError, Reader};
pub use replaced::Replaced;
pub use tallies::Tallies;
pub use write::{Overwrite, WriteError, Writer};
