//! The allocator tables of an image and the functions they start with.
//!
//! Each of the domains raw, mem and obj has a table `PyMemAllocatorEx { ctx, malloc, calloc, realloc, free }`:
//! <https://github.com/python/cpython/blob/v3.13.0/Include/cpython/pymem.h#L36-L52>. Its place is not exported.
//! The exported functions load from it, each from its own slot, so the one place that fits the loads of all four
//! is the table. What the slots hold at start is in the file. The immediate operand of an inlined guard is *not*
//! used: a compiler guards on what was hot in training, which need not be what the table starts with.

use super::{
    WhyNot,
    flow::{Next, Place, explore},
    layout::Gil,
};
use crate::{elf::Elf, units::VirtAddr};

/// The functions that do the work when nothing was configured otherwise, in the order malloc, calloc, realloc, free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocatorFunctions {
    /// `_PyMem_RawMalloc` and its like: thin layers over libc.
    pub raw: [VirtAddr; 4],
    /// `_PyObject_Malloc` and its like: pymalloc, for the domains mem and obj. Without a GIL `_PyObject_MiMalloc` and its
    /// like: mimalloc.
    pub obj: [VirtAddr; 4],
    /// The same as `obj`; without a GIL `_PyMem_MiMalloc` and its like, which take from another heap of the thread.
    pub mem: [VirtAddr; 4],
}

/// Link-time addresses of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocatorTables {
    /// `PyMem_RawMalloc` and its like go through this one.
    pub raw: VirtAddr,
    /// `PyMem_Malloc`.
    pub mem: VirtAddr,
    /// `PyObject_Malloc`.
    pub obj: VirtAddr,
}

/// Bytes of one table.
pub const TABLE_BYTES: usize = 40;
/// Instructions followed in one exported function.
const LIMIT: usize = 3000;

/// A domain's exported functions, in the order of the table's slots.
const RAW: [&str; 4] = [
    "PyMem_RawMalloc",
    "PyMem_RawCalloc",
    "PyMem_RawRealloc",
    "PyMem_RawFree",
];
const MEM: [&str; 4] = ["PyMem_Malloc", "PyMem_Calloc", "PyMem_Realloc", "PyMem_Free"];
const OBJ: [&str; 4] = [
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    "PyObject_Free",
];
/// The functions' own names, where they are kept.
const RAW_LOCAL: [&str; 4] = [
    "_PyMem_RawMalloc",
    "_PyMem_RawCalloc",
    "_PyMem_RawRealloc",
    "_PyMem_RawFree",
];
const OBJ_LOCAL: [&str; 4] = [
    "_PyObject_Malloc",
    "_PyObject_Calloc",
    "_PyObject_Realloc",
    "_PyObject_Free",
];

/// What they are in builds without the GIL, for the domains obj and mem.
const OBJ_MIMALLOC: [&str; 4] = [
    "_PyObject_MiMalloc",
    "_PyObject_MiCalloc",
    "_PyObject_MiRealloc",
    "_PyObject_MiFree",
];
const MEM_MIMALLOC: [&str; 4] = [
    "_PyMem_MiMalloc",
    "_PyMem_MiCalloc",
    "_PyMem_MiRealloc",
    "_PyMem_MiFree",
];

/// What was found, and what is worth telling.
pub(super) struct Found {
    pub(super) functions: AllocatorFunctions,
    pub(super) tables: AllocatorTables,
    pub(super) notes: Vec<String>,
}

pub(super) fn find(elf: &Elf<'_>, gil: Gil) -> Result<Found, WhyNot> {
    let mut notes = Vec::new();
    let raw = table(elf, "raw", RAW, &[])?;
    // Bodies that were inlined into an exported function load from the raw table too.
    let obj = table(elf, "obj", OBJ, &[raw])?;
    let mem = table(elf, "mem", MEM, &[raw, obj])?;
    let tables = AllocatorTables { raw, mem, obj };
    let obj_functions = initial_functions(elf, obj, "obj", &mut notes)?;
    let functions = AllocatorFunctions {
        raw: initial_functions(elf, raw, "raw", &mut notes)?,
        obj: obj_functions,
        mem: match gil {
            Gil::Held => obj_functions,
            Gil::Disabled => initial_functions(elf, mem, "mem", &mut notes)?,
        },
    };
    if gil == Gil::Held && slots(elf, mem) != slots(elf, obj) && elf.address_at(obj).is_none() {
        notes.push(
            "PyMem_Malloc and PyObject_Malloc start with different allocators: only the latter is probed"
                .into(),
        );
    }
    compare_with_names(elf, functions.raw, RAW_LOCAL, &mut notes);
    match gil {
        Gil::Held => compare_with_names(elf, functions.obj, OBJ_LOCAL, &mut notes),
        Gil::Disabled => {
            compare_with_names(elf, functions.obj, OBJ_MIMALLOC, &mut notes);
            compare_with_names(elf, functions.mem, MEM_MIMALLOC, &mut notes);
        }
    }
    Ok(Found {
        functions,
        tables,
        notes,
    })
}

/// The four function pointers of a table as the file has them.
fn slots(elf: &Elf<'_>, table: VirtAddr) -> Option<[VirtAddr; 4]> {
    let mut functions = [VirtAddr(0); 4];
    for (place, offset) in functions.iter_mut().zip([8, 16, 24, 32]) {
        *place = elf.address_at(table.checked_add(offset)?)?;
        if !elf.is_code(*place) {
            return None;
        }
    }
    Some(functions)
}

/// The table from which each of the four functions loads its own slot.
fn table(
    elf: &Elf<'_>,
    domain: &'static str,
    names: [&'static str; 4],
    known: &[VirtAddr],
) -> Result<VirtAddr, WhyNot> {
    let mut loads = [const { Vec::new() }; 4];
    for (name, loads) in names.into_iter().zip(&mut loads) {
        let function = elf.exported(name).ok_or(WhyNot::SymbolMissing { name })?;
        *loads = words_loaded(elf, function.address);
    }
    let [malloc, calloc, realloc, free] = &loads;
    let fits = |table: VirtAddr| {
        let has = |loads: &[VirtAddr], offset| {
            table
                .checked_add(offset)
                .is_some_and(|slot| loads.contains(&slot))
        };
        has(calloc, 16) && has(realloc, 24) && has(free, 32) && slots(elf, table).is_some()
    };
    malloc
        .iter()
        .filter_map(|slot| slot.get().checked_sub(8).map(VirtAddr))
        .find(|table| !known.contains(table) && fits(*table))
        .ok_or(WhyNot::AllocatorTableUnknown { domain })
}

/// The words in writable memory that a function loads, in the order in which they were found.
fn words_loaded(elf: &Elf<'_>, function: VirtAddr) -> Vec<VirtAddr> {
    let mut loads = Vec::new();
    explore(elf, function, LIMIT, &mut |step| {
        if let Some(Place::Fixed(address)) = step.memory
            && step.instruction.memory_size().size() == 8
            && elf.segment_at(address).is_some_and(|segment| segment.writable)
            && !loads.contains(&address)
        {
            loads.push(address);
        }
        Next::Go
    });
    loads
}

/// The functions behind a table. A debug build starts with the checking layer, whose context holds the real table
/// (`debug_alloc_api_t`: a letter, then a `PyMemAllocatorEx`):
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_pymem.h#L21-L27>.
fn initial_functions(
    elf: &Elf<'_>,
    table: VirtAddr,
    domain: &'static str,
    notes: &mut Vec<String>,
) -> Result<[VirtAddr; 4], WhyNot> {
    let unknown = WhyNot::AllocatorTableUnknown { domain };
    let Some(context) = elf.address_at(table) else {
        return slots(elf, table).ok_or(unknown);
    };
    notes.push(format!(
        "debug build: the {domain} allocator starts behind the checking layer"
    ));
    context
        .checked_add(8)
        .and_then(|inner| slots(elf, inner))
        .ok_or(unknown)
}

/// Tells where kept symbols say otherwise. The table decides: it is what the interpreter uses.
fn compare_with_names(elf: &Elf<'_>, functions: [VirtAddr; 4], names: [&str; 4], notes: &mut Vec<String>) {
    for ((function, symbol), name) in functions.into_iter().zip(elf.local(names)).zip(names) {
        if let Some(symbol) = symbol
            && symbol.address != function
        {
            notes.push(format!(
                "the allocator table starts with {function}, not with {name} at {}",
                symbol.address
            ));
        }
    }
}
