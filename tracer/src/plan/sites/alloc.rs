//! Pymalloc's allocations: every copy of the code that takes a block from a pool, and the slow path they share.
//!
//! The slow path is `allocate_from_new_pool`, which gcc leaves out of line:
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c#L2080>. So who calls it is a copy, and behind
//! the compare that decides on the call stands the site. Where a compiler inlined it, see `init`.

use iced_x86::Instruction;
use rustc_hash::FxHashSet;
use tracer_ebpf::site::{Operand, Role, flag};

use super::{
    Sites,
    code::Code,
    pool::{equality_edges, leads_to, prove},
    registers::{is_call, operand},
    within,
};
use crate::{
    elf::Pointer,
    plan::{Covered, Half, Reference, ReferenceKind},
    python::ImageFacts,
    units::VirtAddr,
};

/// Instructions looked at before a call of the slow path.
const BUDGET: usize = 120;
/// Instructions followed in one function.
const LIMIT: usize = 3000;

/// Sites and references of all copies; `None` if there is no slow path of its own.
pub(super) fn find(facts: &ImageFacts, code: &Code<'_>) -> Option<Sites> {
    let refill = refill(facts, code)?;
    let mut found = Sites::default();
    found.add_function(code.elf(), Role::PoolRefill, VirtAddr(refill), Half::ReturnOnly);
    let hits = code.references(&[VirtAddr(refill)]);
    for instruction in hits.of(VirtAddr(refill)) {
        let covered = copy(code, instruction, refill, &mut found);
        found.references.push(Reference {
            address: VirtAddr(instruction.ip()),
            kind: ReferenceKind::Refill,
            covered,
        });
    }
    found.outside(ReferenceKind::Refill, &hits);
    Some(found)
}

/// `allocate_from_new_pool`: the one function that `_PyObject_Malloc` calls behind a proven jump.
fn refill(facts: &ImageFacts, code: &Code<'_>) -> Option<u64> {
    let [malloc, ..] = facts.functions.obj;
    let mut seen = FxHashSet::default();
    let mut ways = vec![malloc.get()];
    let mut found = Vec::new();
    while let Some(at) = ways.pop() {
        if seen.len() > LIMIT || !seen.insert(at) {
            continue;
        }
        let Some(instruction) = code.at(at) else {
            continue;
        };
        if let Some((slow, _)) = equality_edges(&instruction)
            && prove(code, &instruction).is_ok()
        {
            found.extend(called_from(code, slow));
        }
        // A jump to another function is a call, as far as this function goes.
        let successors = code.successors(&instruction);
        ways.extend(successors.next);
        ways.extend(
            successors
                .jump
                .filter(|target| !facts.functions.raw.contains(&VirtAddr(*target))),
        );
    }
    found.dedup();
    match *found {
        [refill] => Some(refill),
        _ => None,
    }
}

/// The function that is called first, on the straight way from `at` on.
fn called_from(code: &Code<'_>, mut at: u64) -> Option<u64> {
    for _ in 0..BUDGET {
        let instruction = code.at(at)?;
        if is_call(&instruction) {
            return match code.target(&instruction)? {
                Pointer::Address(target) => Some(target.get()),
                _ => None,
            };
        }
        let successors = code.successors(&instruction);
        match (successors.next, successors.jump) {
            (Some(next), None) => at = next,
            (None, Some(target)) if code.is_start(target) => return Some(target),
            (None, Some(target)) => at = target,
            _ => return None,
        }
    }
    None
}

/// One call of the slow path: every way that leads to it must come through a proven jump.
fn copy(code: &Code<'_>, call: &Instruction, refill: u64, found: &mut Sites) -> Covered {
    let is_branch = is_call(call) || call.is_jmp_short_or_near() || call.is_jcc_short_or_near();
    if !is_branch {
        return Covered::Unmatched("the address of allocate_from_new_pool is used otherwise");
    }
    let mut sites = Vec::new();
    let mut seen = FxHashSet::default();
    // An instruction, and the one that it leads to on the way to the call.
    let mut ways: Vec<(Instruction, u64)> = if call.is_jcc_short_or_near() {
        vec![(*call, refill)]
    } else {
        predecessors(code, call.ip())
    };
    if ways.is_empty() {
        return Covered::Unmatched("nothing is known to lead to the call");
    }
    while let Some((instruction, leads_to_here)) = ways.pop() {
        if !seen.insert((instruction.ip(), leads_to_here)) {
            continue;
        }
        if seen.len() > BUDGET {
            return Covered::Unmatched("the compare of the pools is too far from the call");
        }
        if is_call(&instruction) {
            return Covered::Unmatched("another call comes before the compare of the pools");
        }
        if let Some((equal, other)) = equality_edges(&instruction)
            && equal == leads_to_here
            && equal != other
        {
            match prove(code, &instruction) {
                Ok(jump) if leads_to(code, jump.slow, refill) => {
                    sites.push((instruction, jump));
                    continue;
                }
                Ok(_) => {
                    return Covered::Unmatched("the slow way does not always call allocate_from_new_pool");
                }
                Err(why) => return Covered::Unmatched(why),
            }
        }
        let before = predecessors(code, instruction.ip());
        if before.is_empty() {
            return Covered::Unmatched("a way to the call comes from where no compare is known");
        }
        ways.extend(before);
    }
    let mut first = None;
    for (instruction, jump) in sites {
        let Some(pool) = operand(jump.pool) else {
            return Covered::Unmatched("the pool is in no general purpose register");
        };
        let site = within(
            code,
            Role::PoolAlloc,
            &instruction,
            flag::IF_NOT_ZERO,
            [pool, Operand::default()],
        );
        let Some(site) = site else {
            return Covered::Unmatched("the jump is not in the file");
        };
        first = first.or(Some(site.address));
        found.add(site);
    }
    first.map_or(
        Covered::Unmatched("nothing is known to lead to the call"),
        Covered::Site,
    )
}

fn predecessors(code: &Code<'_>, address: u64) -> Vec<(Instruction, u64)> {
    let before = code.predecessors(address).into_iter();
    before.map(|instruction| (instruction, address)).collect()
}
