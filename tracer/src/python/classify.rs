//! Which allocator a process uses, told from its allocator tables: `PYTHONMALLOC`, hooks.
//!
//! Pure: the caller reads the process's memory. Everything read is hostile and only compared.

use super::{ImageFacts, allocator::TABLE_BYTES};
use crate::units::{ProcAddr, VirtAddr};

/// The allocator behind `PyObject_Malloc` in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allocator {
    /// pymalloc over malloc: the default.
    Pymalloc,
    /// libc's malloc for everything (`PYTHONMALLOC=malloc`).
    Malloc,
    /// pymalloc behind the checking layer (`PYTHONMALLOC=debug`, `pymalloc_debug`, development mode).
    PymallocDebug,
    /// malloc behind the checking layer (`PYTHONMALLOC=malloc_debug`).
    MallocDebug,
    /// The bundled mimalloc (3.13+, `PYTHONMALLOC=mimalloc`): its functions have no probes.
    Mimalloc,
    /// Something has put itself in front (tracemalloc, memray and the like). Calls that it passes on are seen.
    Hooked,
    /// The tables could not be read.
    Unreadable,
}

impl Allocator {
    /// The stable name used in JSON and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pymalloc => "pymalloc",
            Self::Malloc => "malloc",
            Self::PymallocDebug => "pymalloc_debug",
            Self::MallocDebug => "malloc_debug",
            Self::Mimalloc => "mimalloc",
            Self::Hooked => "hooked",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A `PyMemAllocatorEx` as a process has it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Table {
    context: u64,
    functions: [u64; 4],
}

/// Tells which allocator a process uses.
///
/// `bias` is run-time minus link-time address of the image. `read` fills the buffer from the process's memory and
/// says whether it could; it is called at most three times, for 8 or 40 bytes.
pub fn classify(
    facts: &ImageFacts,
    bias: u64,
    mut read: impl FnMut(ProcAddr, &mut [u8]) -> bool,
) -> Allocator {
    let here = |address: VirtAddr| address.get().wrapping_add(bias);
    let Some(table) = read_table(here(facts.tables.obj), &mut read) else {
        return Allocator::Unreadable;
    };
    let raw = facts.functions.raw.map(here);
    let obj = facts.functions.obj.map(here);
    let plain = |table: Table| match table.functions {
        functions if functions == obj => Some(Allocator::Pymalloc),
        functions if functions == raw => Some(Allocator::Malloc),
        _ => None,
    };
    if let Some(allocator) = plain(table) {
        return allocator;
    }
    if table.context == 0 {
        let in_image = |address: &u64| facts.holds_code(VirtAddr(address.wrapping_sub(bias)));
        let is_bundled = facts.version.minor >= 13 && table.functions.iter().all(in_image);
        return if is_bundled {
            Allocator::Mimalloc
        } else {
            Allocator::Hooked
        };
    }
    // The checking layer's context starts with the domain's letter, padded with zeros.
    let mut letter = [0; 8];
    if !read(ProcAddr(table.context), &mut letter) || letter != [b'o', 0, 0, 0, 0, 0, 0, 0] {
        return Allocator::Hooked;
    }
    match read_table(table.context.wrapping_add(8), &mut read).and_then(plain) {
        Some(Allocator::Pymalloc) => Allocator::PymallocDebug,
        Some(Allocator::Malloc) => Allocator::MallocDebug,
        _ => Allocator::Hooked,
    }
}

fn read_table(address: u64, read: &mut impl FnMut(ProcAddr, &mut [u8]) -> bool) -> Option<Table> {
    let mut bytes = [0_u8; TABLE_BYTES];
    if !read(ProcAddr(address), &mut bytes) {
        return None;
    }
    let mut words = [0_u64; 5];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    let [context, functions @ ..] = words;
    Some(Table { context, functions })
}
