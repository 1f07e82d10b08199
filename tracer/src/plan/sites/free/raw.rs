//! The raw domain's frees: calls of libc's `free` from the copies of `_PyMem_RawFree`.
//!
//! Such a call needs no proof of the pointer's place: it is in RDI. What must be told is whose call it is. A copy of
//! `_PyObject_Free` that has a site reports for its own; calls of anything but the allocator are left alone.

use iced_x86::{Code as Opcode, FlowControl, Instruction};
use rustc_hash::FxHashSet;
use tracer_ebpf::site::Operand;

use super::{
    ADDRESS_ONLY, Edge, Finder, HAS_SITE, edge, free_slot,
    graph::only_through,
    guard::{self, Guard, NoGuard},
    leads_on, operand, sides,
    state::State,
    walk::{Next, walk},
};
use crate::{
    elf::Pointer,
    plan::{
        Covered, ReferenceKind,
        sites::{code::Code, raw::FOREIGN, search::Hits},
    },
    python::ImageFacts,
    units::VirtAddr,
};

/// Which calls of libc have sites.
#[derive(Clone, Debug, Default)]
pub(super) struct Libc {
    /// Their own.
    pub(super) calls: Vec<VirtAddr>,
    /// Those that another site stands for.
    pub(super) owned: Vec<VirtAddr>,
    /// At their guard's jump: address, flags, pointer.
    pub(super) guards: Vec<(VirtAddr, u32, Operand)>,
    /// The raw function's own call is one of the calls.
    pub(super) covers_implementation: bool,
    /// `_PyObject_Free` frees large blocks without passing another site.
    pub(super) implementation_is_whole: bool,
}

/// What a copy of `_PyMem_RawFree` does.
#[derive(Clone, Debug, Default)]
struct RawCopy {
    /// Where it calls libc's free.
    calls: Vec<VirtAddr>,
    /// Where it calls it through a word in memory.
    indirect: Vec<VirtAddr>,
    /// Where it calls the function of which it might be a copy.
    outer: Vec<VirtAddr>,
}

/// Finds them; guards and implementation of pymalloc must be known by now.
pub(super) fn find(finder: &mut Finder<'_, '_>, hits: &Hits, raw_free: VirtAddr) -> Libc {
    let code = finder.code;
    let mut guards: Vec<(VirtAddr, Guard, RawCopy)> = Vec::new();
    for instruction in hits.of(raw_free) {
        let address = VirtAddr(instruction.ip());
        let covered = if leads_on(instruction) {
            Covered::Elsewhere(HAS_SITE)
        } else {
            match guard::all_at(code, instruction, raw_free) {
                Ok(behind) => {
                    let copy = |guard: Guard| Ok((address, guard, raw_copy(code, guard.equal, raw_free)?));
                    match behind.into_iter().map(copy).collect::<Result<Vec<_>, _>>() {
                        Ok(behind) => {
                            guards.extend(behind);
                            continue;
                        }
                        Err(reason) => Covered::Unmatched(reason),
                    }
                }
                Err(NoGuard::NotCompared) => Covered::Elsewhere(ADDRESS_ONLY),
                Err(NoGuard::Unclear(reason)) => Covered::Unmatched(reason),
            }
        };
        finder.refer(ReferenceKind::Raw, address, covered);
    }
    let own = raw_copy(code, raw_free, raw_free).unwrap_or_default();
    let calls = calls_of_libc(finder, &guards, &own);
    let mut edges: Vec<Edge> = guards.iter().map(|(_, guard, _)| edge(guard)).collect();
    edges.extend(finder.inlined.iter().map(super::Inlined::edge));
    let entries = [raw_free, finder.implementation.entry];
    share(finder, &calls);
    let mut found = Libc {
        implementation_is_whole: finder.own.as_ref().is_ok_and(|own| {
            !own.libc.is_empty()
                && own.raw.is_empty()
                && own.libc.iter().all(|call| owner(finder, *call).is_some())
        }),
        ..Libc::default()
    };
    for call in calls {
        let covered = if let Some(site) = owner(finder, call) {
            found.owned.push(call);
            Covered::Site(site)
        } else if only_through(code, call, &edges, &entries) {
            found.calls.push(call);
            Covered::Site(call)
        } else if guards.iter().any(|(_, _, copy)| copy.calls.contains(&call)) || own.calls.contains(&call) {
            Covered::Unmatched("the call serves others than the allocator, too")
        } else {
            Covered::Elsewhere(FOREIGN)
        };
        finder.refer(ReferenceKind::Raw, call, covered);
    }
    found.covers_implementation = !own.calls.is_empty()
        && own.indirect.is_empty()
        && own.calls.iter().all(|call| found.calls.contains(call));
    for (address, guard, copy) in &guards {
        let covered = guard_covered(finder, &mut found, guard, copy);
        finder.refer(ReferenceKind::Raw, *address, covered);
    }
    found
}

/// What covers a guard on the raw table's slot.
fn guard_covered(finder: &Finder<'_, '_>, found: &mut Libc, guard: &Guard, copy: &RawCopy) -> Covered {
    let code = finder.code;
    if copy.indirect.is_empty() {
        let site = copy
            .calls
            .iter()
            .find_map(|call| owner(finder, *call).or_else(|| found.calls.contains(call).then_some(*call)));
        return match site {
            Some(site) => Covered::Site(site),
            None if copy.calls.is_empty() && !copy.outer.is_empty() => Covered::Elsewhere(HAS_SITE),
            None => Covered::Unmatched("its call of libc has no site"),
        };
    }
    let inner: Vec<Edge> = finder.inlined.iter().map(super::Inlined::edge).collect();
    if only_through(code, guard.jump, &inner, &[finder.implementation.entry]) {
        return Covered::Elsewhere("it is a part of a copy that has a site");
    }
    let slot = free_slot(finder.facts.tables.raw);
    match sides::slow_pointer(code, guard, &[slot]).map(operand) {
        Ok(Some(operand)) => {
            found.guards.push((guard.jump, guard.if_equal, operand));
            Covered::Site(guard.jump)
        }
        Ok(None) => Covered::Unmatched("where the pointer is at the guard is not known"),
        Err(reason) => Covered::Unmatched(reason),
    }
}

/// Calls that only one copy of `_PyObject_Free` makes belong to it; a copy with another one reports pool blocks only.
fn share(finder: &mut Finder<'_, '_>, calls: &[VirtAddr]) {
    // Each round marks one copy at least.
    for _ in 0..=finder.inlined.len() {
        let shared: FxHashSet<VirtAddr> = calls
            .iter()
            .copied()
            .filter(|call| owner(finder, *call).is_none())
            .collect();
        let mut is_done = true;
        for inlined in &mut finder.inlined {
            let copy = &inlined.copy;
            let passes_another = !copy.raw.is_empty()
                || (copy.libc.is_empty() && !copy.slots.is_empty())
                || copy.libc.iter().any(|call| shared.contains(call));
            if passes_another && !inlined.pool_only {
                inlined.pool_only = true;
                is_done = false;
            }
        }
        if is_done {
            return;
        }
    }
}

/// The site of pymalloc that stands for a call of libc, if all ways to the call pass such sites.
fn owner(finder: &Finder<'_, '_>, call: VirtAddr) -> Option<VirtAddr> {
    let whole = finder
        .inlined
        .iter()
        .filter(|inlined| !inlined.pool_only && inlined.copy.libc.contains(&call));
    let edges: Vec<Edge> = whole.map(super::Inlined::edge).collect();
    let own = finder.own.as_ref().ok().filter(|own| own.libc.contains(&call));
    let entry = own.map(|_| finder.implementation.entry);
    let first = edges.first().map(|edge| edge.from).or(entry)?;
    only_through(finder.code, call, &edges, entry.as_slice()).then_some(first)
}

/// The stubs through which `_PyMem_RawFree` itself calls libc: most copies use them, too.
pub(in crate::plan::sites) fn stubs(facts: &ImageFacts, code: &Code<'_>) -> Vec<u64> {
    let [.., raw_free] = facts.functions.raw;
    let own = raw_copy(code, raw_free, raw_free).unwrap_or_default();
    let calls = own.calls.iter().filter_map(|call| code.at(call.get()));
    calls.map(|call| call.near_branch_target()).collect()
}

/// All direct calls of and jumps to libc's `free`.
fn calls_of_libc(
    finder: &Finder<'_, '_>,
    guards: &[(VirtAddr, Guard, RawCopy)],
    own: &RawCopy,
) -> Vec<VirtAddr> {
    let code = finder.code;
    let known = finder
        .inlined
        .iter()
        .map(|inlined| &inlined.copy)
        .chain(finder.own.as_ref().ok())
        .flat_map(|copy| &copy.libc);
    let known = known
        .chain(guards.iter().flat_map(|(_, _, copy)| &copy.calls))
        .chain(&own.calls);
    let stubs: FxHashSet<VirtAddr> = known
        .filter_map(|call| code.at(call.get()))
        .map(|instruction| VirtAddr(instruction.near_branch_target()))
        .collect();
    let stubs: Vec<VirtAddr> = stubs.into_iter().collect();
    let hits = code.references(&stubs).hits;
    let calls = hits.iter().filter(|hit| is_emulated_call(&hit.instruction));
    calls.map(|hit| VirtAddr(hit.instruction.ip())).collect()
}

/// A direct call or jump of the kind that the kernel emulates; the length rules out prefixes.
/// <https://github.com/torvalds/linux/blob/v6.12/arch/x86/kernel/uprobes.c#L833-L899>
fn is_emulated_call(instruction: &Instruction) -> bool {
    matches!(
        (instruction.code(), instruction.len()),
        (Opcode::Call_rel32_64 | Opcode::Jmp_rel32_64, 5) | (Opcode::Jmp_rel8_64, 2)
    )
}

/// Follows all ways to what they call first.
fn raw_copy(code: &Code<'_>, from: VirtAddr, raw_free: VirtAddr) -> Result<RawCopy, &'static str> {
    let mut found = RawCopy::default();
    let mut wrong = None;
    let walked = walk(code, from, State::default(), &[], &mut |instruction, _| {
        let address = VirtAddr(instruction.ip());
        let list = match (instruction.flow_control(), code.target(instruction)) {
            (FlowControl::Call | FlowControl::UnconditionalBranch, Some(Pointer::Import("free"))) => {
                if !is_emulated_call(instruction) {
                    wrong = Some("the kernel does not emulate its call of libc");
                    return Next::Stop;
                }
                &mut found.calls
            }
            (FlowControl::IndirectCall | FlowControl::IndirectBranch, Some(Pointer::Import("free"))) => {
                &mut found.indirect
            }
            (FlowControl::Call | FlowControl::UnconditionalBranch, Some(Pointer::Address(target)))
                if target == raw_free =>
            {
                &mut found.outer
            }
            (FlowControl::Next | FlowControl::ConditionalBranch, _)
            | (FlowControl::UnconditionalBranch, Some(Pointer::Address(_))) => return Next::Go,
            _ => {
                wrong = Some("it does something else before it calls libc");
                return Next::Stop;
            }
        };
        if !list.contains(&address) {
            list.push(address);
        }
        Next::End
    });
    match (walked, wrong) {
        (Err(_), _) => Err("the ways to its call of libc are not clear"),
        (Ok(()), Some(wrong)) => Err(wrong),
        (Ok(()), None) => Ok(found),
    }
}
