//! The raw domain's allocations, which are also pymalloc's requests over 512 bytes: where libc is called.
//!
//! `_PyMem_RawMalloc` and its like are thin layers over libc:
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c#L55-L105>. They are inlined behind guards. A
//! call of libc is theirs if every way to it comes from such a guard or from their entry, without another call in
//! between; other users of malloc in the binary are none of our business. Invariant: each call has one site of its
//! own, so no block is counted twice.

use iced_x86::{FlowControl, Instruction, OpKind};
use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::site::{Operand, Role, flag};

use super::{
    Sites,
    code::Code,
    guards::{self, Guard},
    pool::equality_edges,
    registers::is_call,
    result, within,
};
use crate::{
    plan::{Covered, Half, Reference, ReferenceKind},
    python::ImageFacts,
    units::VirtAddr,
};

/// Instructions looked at between a guard and the call.
const BUDGET: usize = 200;
/// Why a call of libc does not count.
pub(super) const FOREIGN: &str = "it is not the allocator's";

/// What of libc is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Libc {
    Malloc,
    Calloc,
    Realloc,
}

impl Libc {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Malloc, "malloc"),
        (Self::Calloc, "calloc"),
        (Self::Realloc, "realloc"),
    ];

    /// A jump to it that ends a function: the role, and where the arguments are.
    fn tail(self) -> (Role, u32) {
        match self {
            Self::Malloc => (Role::RawMalloc, flag::FIRST_IN_RDI),
            Self::Calloc => (Role::RawCalloc, flag::FIRST_IN_RDI | flag::SECOND_IN_RSI),
            Self::Realloc => (Role::RawRealloc, flag::FIRST_IN_RDI | flag::SECOND_IN_RSI),
        }
    }
}

/// Sites and references; `None` if the raw functions themselves do not call libc in a known way.
pub(super) fn find(facts: &ImageFacts, code: &Code<'_>, places: &FxHashMap<u64, Libc>) -> Option<Sites> {
    let [malloc, calloc, realloc, _] = facts.functions.raw;
    let functions = [malloc, calloc, realloc];
    let mut targets = functions.to_vec();
    targets.extend(places.keys().copied().map(VirtAddr));
    let mut hits = code.references(&targets);
    hits.hits.retain(|hit| !is_stub(&hit.instruction, places));
    let mut guards = Vec::new();
    for hit in hits
        .hits
        .iter()
        .filter(|hit| functions.contains(&VirtAddr(hit.target)))
    {
        guards.extend(guards::all(code, &hit.instruction, hit.target));
    }
    let entries = functions.map(VirtAddr::get);
    let mut found = Sites::default();
    // What became of each call of libc.
    let mut calls = FxHashMap::default();
    for hit in &hits.hits {
        if let Some(libc) = places.get(&hit.target) {
            let covered = match origin(code, &hit.instruction, &guards, &entries) {
                Origin::Foreign => Covered::Elsewhere(FOREIGN),
                Origin::Mixed => Covered::Unmatched("not every way to the call of libc comes from a guard"),
                Origin::Allocator => cover(code, &hit.instruction, *libc, &mut found),
            };
            calls.insert(hit.instruction.ip(), covered);
        }
    }
    let is_sited = |entry: u64| matches!(ends(code, entry, &calls), Ends::Sites(_));
    if !entries.into_iter().all(is_sited) {
        return None;
    }
    for hit in hits.hits.iter().filter(|hit| entries.contains(&hit.target)) {
        let behind = guards::all(code, &hit.instruction, hit.target);
        let judged = behind.iter().map(|guard| match ends(code, guard.equal, &calls) {
            Ends::Sites(address) => Covered::Site(address),
            Ends::Implementation => Covered::Elsewhere("it calls the function, which has a site"),
            Ends::Unmatched(why) => Covered::Unmatched(why),
        });
        let covered = match Covered::worst(judged) {
            Some(covered) => covered,
            None if hit.instruction.op0_kind() == OpKind::NearBranch64 => {
                Covered::Elsewhere("it calls the function, which has a site")
            }
            None => Covered::Elsewhere("the address is stored, not asked for"),
        };
        found.references.push(Reference {
            address: VirtAddr(hit.instruction.ip()),
            kind: ReferenceKind::Raw,
            covered,
        });
    }
    for (address, covered) in calls {
        found.references.push(Reference {
            address: VirtAddr(address),
            kind: ReferenceKind::Raw,
            covered,
        });
    }
    found.outside(ReferenceKind::Raw, &hits);
    Some(found)
}

/// What an instruction that calls libc refers to: the slots of the GOT, and the stubs that the raw functions use.
pub(super) fn libc_places(facts: &ImageFacts, code: &Code<'_>) -> FxHashMap<u64, Libc> {
    let [functions @ .., _] = facts.functions.raw;
    let mut places = FxHashMap::default();
    for (libc, name) in Libc::ALL {
        for slot in code.elf().import_slots(name) {
            places.insert(slot.get(), libc);
        }
    }
    for function in functions {
        let mut seen = FxHashSet::default();
        let mut ways = vec![function.get()];
        while let Some(at) = ways.pop() {
            if seen.len() > BUDGET || !seen.insert(at) {
                continue;
            }
            let Some(instruction) = code.at(at) else { continue };
            let name = code.import(&instruction);
            let libc = Libc::ALL.into_iter().find(|(_, libc)| Some(*libc) == name);
            match libc {
                Some((libc, _)) if instruction.op0_kind() == OpKind::NearBranch64 => {
                    places.insert(instruction.near_branch_target(), libc);
                }
                Some(_) => {}
                None => ways.extend(code.successors(&instruction).iter()),
            }
        }
    }
    places
}

/// Whether it is the jump of a stub itself, at its beginning or behind `endbr64`.
fn is_stub(jump: &Instruction, places: &FxHashMap<u64, Libc>) -> bool {
    let begins = |at: Option<u64>| at.is_some_and(|at| places.contains_key(&at));
    jump.flow_control() == FlowControl::IndirectBranch
        && (begins(Some(jump.ip())) || begins(jump.ip().checked_sub(4)))
}

/// Where the ways to a call of libc come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Allocator,
    Foreign,
    Mixed,
}

fn origin(code: &Code<'_>, call: &Instruction, guards: &[Guard], entries: &[u64]) -> Origin {
    let mut is_ours = false;
    let mut is_foreign = false;
    let mut seen = FxHashSet::default();
    let mut ways = vec![call.ip()];
    while let Some(at) = ways.pop() {
        if !seen.insert(at) {
            continue;
        }
        if entries.contains(&at) {
            is_ours = true;
            continue;
        }
        let previous = code.predecessors(at);
        if previous.is_empty() || code.begins(at) || seen.len() > BUDGET {
            is_foreign = true;
            continue;
        }
        for instruction in previous {
            let is_guard = |guard: &Guard| guard.jump == instruction.ip() && guard.equal == at;
            if guards.iter().any(is_guard) {
                is_ours = true;
            } else if is_call(&instruction) {
                is_foreign = true;
            } else {
                ways.push(instruction.ip());
            }
        }
    }
    match (is_ours, is_foreign) {
        (true, false) => Origin::Allocator,
        (true, true) => Origin::Mixed,
        (false, _) => Origin::Foreign,
    }
}

/// Sets the site, or sites, of a call of libc.
fn cover(code: &Code<'_>, call: &Instruction, libc: Libc, found: &mut Sites) -> Covered {
    match call.flow_control() {
        FlowControl::Call | FlowControl::IndirectCall => {}
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
            return tail(code, call, libc, 0, found);
        }
        _ => {
            return match equality_edges(call) {
                Some((equal, _)) if equal == call.near_branch_target() => {
                    tail(code, call, libc, flag::IF_ZERO, found)
                }
                Some(_) => tail(code, call, libc, flag::IF_NOT_ZERO, found),
                None => Covered::Unmatched("a conditional jump to libc, not on equality"),
            };
        }
    }
    let place = match result::place(code, call) {
        Ok(place) => place,
        Err(why) => return Covered::Unmatched(why),
    };
    let (role, second) = match libc {
        Libc::Malloc => (Role::RawResult, result::requested(code, call, &place)),
        Libc::Calloc => (Role::RawResult, Operand::default()),
        Libc::Realloc => (Role::ReallocResult, Operand::default()),
    };
    let Some(site) = within(code, role, &place.instruction, 0, [place.operand, second]) else {
        return Covered::Unmatched("the instruction behind the call is not in the file");
    };
    if found.sites.iter().any(|known| known.address == site.address) {
        return Covered::Unmatched("another call's result is looked at in the same place");
    }
    let address = site.address;
    if libc == Libc::Realloc {
        let Some(before) = within(code, Role::LibcRealloc, call, 0, [Operand::default(); 2]) else {
            return Covered::Unmatched("the call is not in the file");
        };
        found.add(before);
    }
    found.add(site);
    Covered::Site(address)
}

/// A jump to libc that ends a function. What is called finds the return address at the stack pointer, so does the probe.
fn tail(code: &Code<'_>, jump: &Instruction, libc: Libc, condition: u32, found: &mut Sites) -> Covered {
    let (role, flags) = libc.tail();
    match within(code, role, jump, flags | condition, [Operand::default(); 2]) {
        Some(mut site) => {
            site.half = Half::EntryAndReturn;
            let address = site.address;
            found.add(site);
            Covered::Site(address)
        }
        None => Covered::Unmatched("the jump is not in the file"),
    }
}

/// What the ways from a place on come to first.
enum Ends {
    /// Calls of libc that have sites, the first of them.
    Sites(VirtAddr),
    /// A call of an implementation, or a jump to it.
    Implementation,
    Unmatched(&'static str),
}

/// Follows the code from `start` until it calls anything or returns.
fn ends(code: &Code<'_>, start: u64, calls: &FxHashMap<u64, Covered>) -> Ends {
    let mut site = None;
    let mut calls_other = false;
    let mut seen = FxHashSet::default();
    let mut ways = vec![start];
    while let Some(at) = ways.pop() {
        if !seen.insert(at) {
            continue;
        }
        if seen.len() > BUDGET {
            break;
        }
        match calls.get(&at) {
            Some(Covered::Site(address)) => {
                site = site.or(Some(*address));
                continue;
            }
            Some(Covered::Unmatched(why)) => return Ends::Unmatched(why),
            Some(Covered::Elsewhere(_)) => {
                return Ends::Unmatched("a call of libc behind the guard is not known to be the allocator's");
            }
            None => {}
        }
        let Some(instruction) = code.at(at) else { continue };
        if is_call(&instruction) {
            calls_other = true;
            continue;
        }
        ways.extend(code.successors(&instruction).iter());
    }
    match site {
        Some(address) => Ends::Sites(address),
        None if calls_other => Ends::Implementation,
        None => Ends::Unmatched("no call of libc is found behind the guard"),
    }
}
