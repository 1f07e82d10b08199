//! Interned names and frames: a frame is a 4-byte handle, however often it occurs.
//!
//! Apart because the profile, every process's symbolizer and every report share one table. Invariant: a
//! handle once given keeps its meaning; the table is bounded, and past its bound every new frame is
//! [`FrameTable::OVERFLOW`], which callers count.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::Serialize;

/// Handle of an interned string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StrId(u32);

impl StrId {
    /// The place in the table.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Handle of an interned frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct FrameId(u32);

impl FrameId {
    /// The place in the table.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A line of a function. Special frames such as `[no Python frame]` have neither file nor line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Symbol {
    /// Qualified name, escaped.
    pub function: StrId,
    /// File name, escaped; empty for special frames.
    pub file: StrId,
    /// Line, from 1; 0 if it is not known.
    pub line: u32,
}

/// Strings, each kept once.
#[derive(Clone, Debug, Default)]
struct Strings {
    list: Vec<Arc<str>>,
    ids: FxHashMap<Arc<str>, StrId>,
}

/// All frames of a profile.
#[derive(Clone, Debug)]
pub struct FrameTable {
    strings: Strings,
    list: Vec<Symbol>,
    ids: FxHashMap<Symbol, FrameId>,
    max: usize,
}

const SPECIAL: [&str; 10] = [
    "[no Python frame]",
    "[unreadable]",
    "[truncated]",
    "[unknown code]",
    "[unknown stack]",
    "[too many frames]",
    "[before tracing]",
    "[refilled pools]",
    "[free in arenas]",
    "[not attributed]",
];

impl FrameTable {
    /// The thread had no Python frame.
    pub const NO_PYTHON: FrameId = FrameId(0);
    /// The thread state, or a frame from here towards the root, could not be read.
    pub const UNREADABLE: FrameId = FrameId(1);
    /// Frames towards the root are missing: the stack is deeper than is recorded.
    pub const TRUNCATED: FrameId = FrameId(2);
    /// The code object of this frame was never delivered.
    pub const UNKNOWN_CODE: FrameId = FrameId(3);
    /// The stack was never delivered.
    pub const UNKNOWN_STACK: FrameId = FrameId(4);
    /// This table, or the stack table, is full.
    pub const OVERFLOW: FrameId = FrameId(5);
    /// Memory from before tracing, or before a fork.
    pub const BEFORE: FrameId = FrameId(6);
    /// Blocks in pools that were filled again, nobody knows by whom.
    pub const REFILLED: FrameId = FrameId(7);
    /// What the interpreter's allocator holds and does not use.
    pub const FREE: FrameId = FrameId(8);
    /// Resident memory of which nothing is known.
    pub const NOT_ATTRIBUTED: FrameId = FrameId(9);

    /// A table for at most `max` frames, the special ones not counted.
    pub fn new(max: usize) -> Self {
        let mut table = Self {
            strings: Strings::default(),
            list: Vec::new(),
            ids: FxHashMap::default(),
            max: max.saturating_add(SPECIAL.len()).min(u32::MAX as usize),
        };
        let file = table.strings.intern("");
        for name in SPECIAL {
            let function = table.strings.intern(name);
            table.intern(Symbol {
                function,
                file,
                line: 0,
            });
        }
        table
    }

    /// The handle of a string; of the empty one if it is new and there are too many. Call it only with text
    /// that is escaped.
    pub fn intern_str(&mut self, text: &str) -> StrId {
        // A frame has two names, so a table whose strings are full is full, or fed with names nobody uses.
        if self.strings.list.len() >= self.max.saturating_mul(2) {
            return self.strings.ids.get(text).copied().unwrap_or(StrId(0));
        }
        self.strings.intern(text)
    }

    /// The handle of a frame; [`FrameTable::OVERFLOW`] if it is new and the table is full.
    pub fn intern(&mut self, symbol: Symbol) -> FrameId {
        if let Some(&id) = self.ids.get(&symbol) {
            return id;
        }
        if self.list.len() >= self.max {
            return Self::OVERFLOW;
        }
        let Ok(next) = u32::try_from(self.list.len()) else {
            return Self::OVERFLOW;
        };
        self.list.push(symbol);
        self.ids.insert(symbol, FrameId(next));
        FrameId(next)
    }

    /// The frame behind a handle of this table.
    pub fn symbol(&self, id: FrameId) -> Option<Symbol> {
        self.list.get(id.index()).copied()
    }

    /// The string behind a handle of this table; empty for a handle of another.
    pub fn str(&self, id: StrId) -> &str {
        self.strings.list.get(id.0 as usize).map_or("", |text| text)
    }

    /// All strings, in order of their places.
    pub fn strings(&self) -> impl Iterator<Item = &str> {
        self.strings.list.iter().map(|text| &**text)
    }

    /// All handles, in order of their places.
    pub fn ids(&self) -> impl Iterator<Item = FrameId> + use<> {
        (0..u32::try_from(self.list.len()).unwrap_or(u32::MAX)).map(FrameId)
    }

    /// Whether new frames no longer fit.
    pub fn is_full(&self) -> bool {
        self.list.len() >= self.max
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Never: the special frames are always there.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl Strings {
    fn intern(&mut self, text: &str) -> StrId {
        if let Some(&id) = self.ids.get(text) {
            return id;
        }
        let Ok(next) = u32::try_from(self.list.len()) else {
            return StrId(0);
        };
        let text: Arc<str> = Arc::from(text);
        self.list.push(Arc::clone(&text));
        self.ids.insert(text, StrId(next));
        StrId(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_gives_the_overflow_frame_and_keeps_what_it_has() {
        let mut table = FrameTable::new(1);
        let function = table.intern_str("f");
        let first = table.intern(Symbol {
            function,
            file: function,
            line: 1,
        });
        let second = table.intern(Symbol {
            function,
            file: function,
            line: 2,
        });
        assert_eq!(second, FrameTable::OVERFLOW);
        assert_eq!(
            table.intern(Symbol {
                function,
                file: function,
                line: 1
            }),
            first
        );
        assert_eq!(
            table.symbol(first).map(|symbol| table.str(symbol.function)),
            Some("f")
        );
    }

    #[test]
    fn special_frames_have_their_names() {
        let table = FrameTable::new(0);
        let name = |id| table.symbol(id).map(|symbol| table.str(symbol.function));
        assert_eq!(name(FrameTable::NO_PYTHON), Some("[no Python frame]"));
        assert_eq!(name(FrameTable::UNKNOWN_STACK), Some("[unknown stack]"));
        assert_eq!(name(FrameTable::OVERFLOW), Some("[too many frames]"));
    }
}
