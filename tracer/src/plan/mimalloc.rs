//! Builds without the GIL: function probes on the bundled mimalloc.
//!
//! The tables of the obj and mem domains start with `_PyObject_MiMalloc` and `_PyMem_MiMalloc` and their like, which
//! serve requests of any size and do not end in the raw domain:
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c#L134-L228>. What they do is not seen where a
//! compiler has guessed the table's content and inlined it behind a guard; the guards are counted.

use tracer_ebpf::site::{Role, flag};

use super::{Coverage, Plan};
use crate::{
    elf::{Elf, Pointer},
    python::{
        ImageFacts,
        flow::{Next, explore},
    },
    units::VirtAddr,
};

/// Opcodes of a direct call and a direct jump.
const TRANSFERS: [u8; 2] = [0xe8, 0xe9];

/// Adds the sites of both domains.
pub(super) fn add_sites(plan: &mut Plan, elf: &Elf<'_>, facts: &ImageFacts) {
    let roles = [Role::ObjMalloc, Role::ObjCalloc, Role::ObjRealloc, Role::ObjFree];
    for functions in [facts.functions.obj, facts.functions.mem] {
        for (role, function) in roles.into_iter().zip(functions) {
            if facts
                .functions
                .obj
                .iter()
                .any(|other| *other != function && forwards(elf, function, *other))
            {
                plan.notes.push(format!(
                    "{role:?} at {function} only leads to another one: it is probed there"
                ));
            } else {
                plan.add(elf, role, function, flag::MIMALLOC | flag::LARGE_HERE);
            }
        }
    }
}

/// Whether a function does nothing but jump to the other: compilers merge functions that are alike.
fn forwards(elf: &Elf<'_>, function: VirtAddr, other: VirtAddr) -> bool {
    let mut found = false;
    explore(elf, function, 2, &mut |step| {
        if step.target == Some(Pointer::Address(other)) && !step.is_call() {
            found = step.instruction.is_jmp_short_or_near();
        }
        if found { Next::Stop } else { Next::Go }
    });
    found
}

/// The functions against all copies: one for each guard that compares a table's slot with one of them.
pub(super) fn coverage(facts: &ImageFacts, elf: &Elf<'_>) -> Option<Coverage> {
    let [malloc, calloc, realloc, _] = facts.functions.obj;
    let [mem_malloc, mem_calloc, mem_realloc, _] = facts.functions.mem;
    let mut functions = vec![malloc, calloc, realloc, mem_malloc, mem_calloc, mem_realloc];
    functions.sort_unstable();
    functions.dedup();
    let resolved = u32::try_from(functions.len()).ok()?;
    let guards = u32::try_from(count_mentions(elf, &functions)).ok()?;
    Some(Coverage {
        resolved,
        copies: resolved.checked_add(guards)?,
    })
}

/// How often code names one of the functions other than to call it or jump to it.
fn count_mentions(elf: &Elf<'_>, functions: &[VirtAddr]) -> usize {
    let code = elf.segments().iter().filter(|segment| segment.executable);
    code.filter_map(|segment| Some((segment.address.get(), elf.bytes_from(segment.address)?)))
        .map(|(start, bytes)| {
            bytes
                .array_windows::<5>()
                .zip(0_u64..)
                .filter(|([before, word @ ..], index)| {
                    let end = start.wrapping_add(*index).wrapping_add(5);
                    let word = i32::from_le_bytes(*word);
                    let relative = VirtAddr(end.wrapping_add_signed(word.into()));
                    let absolute = u64::try_from(word).map(VirtAddr);
                    (functions.contains(&relative) && !TRANSFERS.contains(before))
                        || absolute.is_ok_and(|address| functions.contains(&address))
                })
                .count()
        })
        .sum()
}
