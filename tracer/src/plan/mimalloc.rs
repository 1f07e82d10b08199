//! Builds without the GIL: function probes on the bundled mimalloc.
//!
//! The tables of the obj and mem domains start with `_PyObject_MiMalloc` and `_PyMem_MiMalloc` and their like, which
//! serve requests of any size and do not end in the raw domain:
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c#L134-L228>. What they do is not seen where a
//! compiler has guessed the table's content and inlined it behind a guard; the guards are counted.

use iced_x86::{FlowControl, Mnemonic, OpKind};
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
    let guards = mentions(elf, &functions)
        .into_iter()
        .filter(|behind| is_guard(elf, *behind))
        .count();
    Some(Coverage {
        resolved,
        copies: resolved.checked_add(u32::try_from(guards).ok()?)?,
    })
}

/// The instructions behind those that name one of the functions other than to call it or jump to it.
fn mentions(elf: &Elf<'_>, functions: &[VirtAddr]) -> Vec<VirtAddr> {
    let mut found = Vec::new();
    for segment in elf.segments().iter().filter(|segment| segment.executable) {
        let Some(bytes) = elf.bytes_from(segment.address) else {
            continue;
        };
        for ([before, word @ ..], index) in bytes.array_windows::<5>().zip(5_u64..) {
            let behind = VirtAddr(segment.address.get().wrapping_add(index));
            let word = i32::from_le_bytes(*word);
            let relative = VirtAddr(behind.get().wrapping_add_signed(word.into()));
            let is_absolute = u64::try_from(word).is_ok_and(|word| functions.contains(&VirtAddr(word)));
            if is_absolute || functions.contains(&relative) && !TRANSFERS.contains(before) {
                found.push(behind);
            }
        }
    }
    found
}

/// Instructions followed behind a mention.
const LIMIT: usize = 60;

/// Whether what follows a mention compares it and can then call through a register: a guard's other way. Code that only
/// looks which allocator is set, or sets one, calls nobody like that.
fn is_guard(elf: &Elf<'_>, behind: VirtAddr) -> bool {
    let (mut steps, mut compared, mut found) = (0_usize, false, false);
    explore(elf, behind, LIMIT, &mut |step| {
        let instruction = step.instruction;
        let is_register = instruction.op0_kind() == OpKind::Register;
        match instruction.flow_control() {
            // Behind a compare with the address itself.
            FlowControl::ConditionalBranch if steps == 0 => compared = true,
            FlowControl::Next
                if instruction.mnemonic() == Mnemonic::Cmp
                    && is_register
                    && instruction.op1_kind() == OpKind::Register =>
            {
                compared = true;
            }
            FlowControl::IndirectCall if compared && is_register => found = true,
            FlowControl::Call => return Next::Leave,
            _ => {}
        }
        steps += 1;
        if found { Next::Stop } else { Next::Go }
    });
    found
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::python::tests::free_threaded;

    #[test]
    fn functions_of_both_domains_have_sites_and_code_that_sets_allocators_is_no_guard() {
        let Some((data, facts)) = free_threaded() else {
            return;
        };
        let elf = Elf::parse(&data).unwrap();
        let plan = super::super::plan(&facts, &elf);
        for role in [Role::ObjMalloc, Role::ObjCalloc, Role::ObjRealloc, Role::ObjFree] {
            let sites = plan.sites.iter().filter(|site| site.role == role);
            let own = sites.filter(|site| site.flags & flag::MIMALLOC != 0).count();
            assert_eq!(own, 2, "{role:?} in {plan:?}");
        }
        let functions = [facts.functions.obj, facts.functions.mem].concat();
        assert!(
            mentions(&elf, &functions).len() > 8,
            "the tables are set somewhere"
        );
        assert_eq!(
            plan.coverage,
            Some(Coverage {
                resolved: 6,
                copies: 6
            })
        );
    }
}
