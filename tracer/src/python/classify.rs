//! Which allocator a process uses, told from its allocator tables: `PYTHONMALLOC`, hooks.
//!
//! Pure: the caller reads the process's memory. Everything read is hostile and only compared.

use super::{ImageFacts, allocator::TABLE_BYTES, layout::Gil};
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
    /// The bundled mimalloc (3.13+): the default without a GIL; with one (`PYTHONMALLOC=mimalloc`) its functions have no
    /// probes.
    Mimalloc,
    /// mimalloc behind the checking layer (without a GIL: `PYTHONMALLOC=debug`, development mode).
    MimallocDebug,
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
            Self::MimallocDebug => "mimalloc_debug",
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
    let (own, own_debug) = match facts.gil {
        Gil::Held => (Allocator::Pymalloc, Allocator::PymallocDebug),
        Gil::Disabled => (Allocator::Mimalloc, Allocator::MimallocDebug),
    };
    let plain = |table: Table| match table.functions {
        functions if functions == obj => Some(own),
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
        Some(allocator) if allocator == own => own_debug,
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::python::tests::runtimes;

    const BIAS: u64 = 0x7f00_0000_0000;
    /// Where the checking layer's context stands in the made-up process.
    const CONTEXT: u64 = 0x1000;

    /// The words of a process's memory: the obj table, and what its context points to.
    #[track_caller]
    fn check(facts: &ImageFacts, table: [u64; 5], context: [u64; 6], expected: Allocator) {
        let obj = facts.tables.obj.get().wrapping_add(BIAS);
        let read = |address: ProcAddr, buffer: &mut [u8]| {
            let (words, start) = match address.get() {
                address if address == obj => (table.to_vec(), 0),
                CONTEXT => (context.to_vec(), 0),
                address if address == CONTEXT + 8 => (context.to_vec(), 1),
                _ => return false,
            };
            let bytes: Vec<u8> = words
                .iter()
                .skip(start)
                .flat_map(|word| word.to_le_bytes())
                .collect();
            buffer.copy_from_slice(bytes.get(..buffer.len()).unwrap());
            true
        };
        assert_eq!(classify(facts, BIAS, read), expected);
    }

    fn table(context: u64, functions: [VirtAddr; 4]) -> [u64; 5] {
        let [malloc, calloc, realloc, free] = functions.map(|function| function.get().wrapping_add(BIAS));
        [context, malloc, calloc, realloc, free]
    }

    fn debug(letter: u8, functions: [VirtAddr; 4]) -> [u64; 6] {
        let [context, malloc, calloc, realloc, free] = table(0, functions);
        [u64::from(letter), context, malloc, calloc, realloc, free]
    }

    #[test]
    fn the_functions_in_the_table_tell_the_allocator() {
        for (_, _, facts) in runtimes() {
            let (raw, obj) = (facts.functions.raw, facts.functions.obj);
            let layer = [facts.code_dealloc.unwrap(); 4];
            check(&facts, table(0, obj), [0; 6], Allocator::Pymalloc);
            check(&facts, table(0, raw), [0; 6], Allocator::Malloc);
            check(
                &facts,
                table(CONTEXT, layer),
                debug(b'o', obj),
                Allocator::PymallocDebug,
            );
            check(
                &facts,
                table(CONTEXT, layer),
                debug(b'o', raw),
                Allocator::MallocDebug,
            );
            check(&facts, table(CONTEXT, layer), debug(b'x', raw), Allocator::Hooked);
            check(&facts, table(0x6666, layer), [0; 6], Allocator::Hooked);
            let bundled = if facts.version.minor >= 13 {
                Allocator::Mimalloc
            } else {
                Allocator::Hooked
            };
            check(&facts, table(0, layer), [0; 6], bundled);
            check(&facts, table(0, [VirtAddr(0); 4]), [0; 6], Allocator::Hooked);
        }
    }

    #[test]
    fn memory_that_cannot_be_read_is_said_to_be_unreadable() {
        let (_, _, facts) = runtimes().swap_remove(0);
        assert_eq!(classify(&facts, BIAS, |_, _| false), Allocator::Unreadable);
    }
}
