//! Whether the raw allocator is inlined into a pymalloc function.
//!
//! `_PyObject_Malloc` passes large requests to `PyMem_RawMalloc`, which calls through the raw table. A compiler
//! that guessed the table's content may have put libc's `malloc` there instead, and the raw function's probe does
//! not see such a request.

use crate::{
    elf::{Elf, Pointer},
    python::{
        ImageFacts,
        flow::{Next, explore},
    },
    units::VirtAddr,
};

/// Instructions followed in one function.
const LIMIT: usize = 3000;

/// The four functions of an allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Malloc,
    Calloc,
    Realloc,
    Free,
}

impl Kind {
    /// The function of libc, the exported function of the raw domain, and the place in a table.
    fn names(self) -> (&'static str, &'static str, usize) {
        match self {
            Self::Malloc => ("malloc", "PyMem_RawMalloc", 0),
            Self::Calloc => ("calloc", "PyMem_RawCalloc", 1),
            Self::Realloc => ("realloc", "PyMem_RawRealloc", 2),
            Self::Free => ("free", "PyMem_RawFree", 3),
        }
    }
}

/// Whether the pymalloc function can reach libc's without passing the entry of the raw one.
pub(super) fn libc_is_reached(facts: &ImageFacts, elf: &Elf<'_>, kind: Kind) -> bool {
    let (libc, exported, index) = kind.names();
    let (Some(&entry), Some(&raw)) = (facts.functions.obj.get(index), facts.functions.raw.get(index)) else {
        return false;
    };
    let exported = elf.exported(exported).map(|symbol| symbol.address);
    let mut calls_exported = false;
    is_reached(elf, entry, libc, raw, &mut |target| {
        calls_exported |= Some(target) == exported;
    }) || (calls_exported
        && exported.is_some_and(|exported| is_reached(elf, exported, libc, raw, &mut |_| {})))
}

/// Follows jumps, not calls; `called` is told whom it calls.
fn is_reached(
    elf: &Elf<'_>,
    entry: VirtAddr,
    libc: &str,
    raw: VirtAddr,
    called: &mut dyn FnMut(VirtAddr),
) -> bool {
    if entry == raw {
        return false;
    }
    let mut found = false;
    explore(elf, entry, LIMIT, &mut |step| match step.target {
        Some(Pointer::Import(name)) if name == libc => {
            found = true;
            Next::Stop
        }
        Some(Pointer::Address(target)) if step.is_call() => {
            called(target);
            Next::Go
        }
        // Only a jump that is always taken leaves the function for the raw one's entry.
        Some(Pointer::Address(target)) if target == raw => Next::Leave,
        _ => Next::Go,
    });
    found
}
