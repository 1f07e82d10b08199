//! Code object -> function, file, line. Resolves the raw frames of stacks while code objects are known.
//!
//! Apart from `profile` because everything here reads bytes of a target (strings, line tables), which are
//! hostile: all decoders are total and bounded. Names leave this stage already escaped for terminals,
//! HTML and SVG. Invariant: a stack that was resolved keeps its meaning, whatever happens to its addresses later.

pub mod frames;
pub mod lines;
pub mod memory;
pub mod symbolizer;
pub mod text;

#[cfg(test)]
mod real_tests;

pub use frames::{FrameId, FrameTable, StrId, Symbol};
pub use lines::line_of;
pub use memory::{Memory, recover_line_table};
pub use symbolizer::{SymbolProblems, Symbolizer};
pub use text::{escape, name_of_bytes, name_of_text};
