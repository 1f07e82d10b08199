//! Ring or capture bytes to events: total decoder, no panic on any input.
//!
//! `decode` turns one block of concatenated records into [`event::Event`]s that borrow from it; `encode` is
//! its inverse, for tests and benches that have no kernel side.

pub mod decode;
pub mod encode;
pub mod event;
mod field;
pub mod heap_audit;
mod libc_block;
mod list;
pub mod survey;

#[cfg(test)]
mod tests;

pub use decode::{Decoder, Tally};
pub use heap_audit::{BIG_CHUNK, Came, Chunks, HeapAudit, PoolState, Region, chunk_class};
pub use libc_block::LibcBlock;
pub(crate) use libc_block::{OVERHEAD, PAGE};
pub use survey::Survey;
