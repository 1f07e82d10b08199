//! Who refers to pymalloc's allocation functions, and whether that leads to a site.
//!
//! A second enumeration of the copies, independent of the slow path's calls: each copy that a compiler made stands
//! behind a guard with the function's address. Everything that is neither a guard nor a call only stores the
//! address.

use iced_x86::{FlowControl, Instruction, OpKind};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Sites,
    code::Code,
    guards::{self, Guard},
    registers::is_call,
};
use crate::{
    elf::Pointer,
    plan::{Covered, Reference, ReferenceKind},
    python::ImageFacts,
    units::VirtAddr,
};

/// Instructions followed behind a guard.
const BUDGET: usize = 1500;
/// Instructions followed where the slot holds something else.
const TABLE_BUDGET: usize = 100;
/// Calls followed into clones of functions.
const MAX_DEPTH: usize = 2;

/// Gives the address of a thread's variable; allocates nothing of Python's.
const TLS_ADDRESS: &str = "__tls_get_addr";

/// Adds the references to `_PyObject_Malloc`, `_Calloc` and `_Realloc`; `sites` has those of allocations, and no others.
pub(super) fn add(facts: &ImageFacts, code: &Code<'_>, sites: &mut Sites) {
    let [malloc, calloc, realloc, _] = facts.functions.obj;
    let hits = code.references(&[malloc, calloc, realloc]);
    let places = sites
        .sites
        .iter()
        .map(|site| (site.address.get(), site.address.get()));
    let calls = sites
        .references
        .iter()
        .filter_map(|reference| match reference.covered {
            Covered::Site(site) => Some((reference.address.get(), site.get())),
            _ => None,
        });
    let known = Known {
        code,
        sites: places.chain(calls).collect(),
        functions: facts
            .functions
            .obj
            .iter()
            .chain(&facts.functions.raw)
            .map(|function| function.get())
            .collect(),
    };
    let mut found = Vec::new();
    for function in [malloc, calloc, realloc] {
        for instruction in hits.of(function) {
            found.push(Reference {
                address: VirtAddr(instruction.ip()),
                kind: ReferenceKind::Allocation,
                covered: known.covered(instruction, function.get(), function == realloc),
            });
        }
    }
    sites.references.extend(found);
    sites.outside(ReferenceKind::Allocation, &hits);
}

struct Known<'c, 'a> {
    code: &'c Code<'a>,
    /// The site at an instruction, or the one that sees what the instruction calls.
    sites: FxHashMap<u64, u64>,
    /// The implementations, which have sites.
    functions: FxHashSet<u64>,
}

/// What a way comes to.
enum End {
    Site(u64),
    /// A call of an implementation, or one through an allocator's table.
    Implementation,
    /// A return, which hands out nothing that no site has seen: a request that cannot be met.
    Return,
    Unknown,
}

impl Known<'_, '_> {
    fn covered(&self, reference: &Instruction, function: u64, is_realloc: bool) -> Covered {
        if reference.op0_kind() == OpKind::NearBranch64 {
            return Covered::Elsewhere("it calls the function, which has sites");
        }
        let guards = guards::all(self.code, reference, function);
        Covered::worst(guards.iter().map(|guard| self.behind(guard, is_realloc)))
            .unwrap_or(Covered::Elsewhere("the address is stored, not asked for"))
    }

    fn behind(&self, guard: &Guard, is_realloc: bool) -> Covered {
        let (first, is_whole) = self.follow(guard.equal, MAX_DEPTH);
        match first {
            // What a realloc does in place changes nothing, and what it moves it allocates and frees.
            Some(site) if is_whole || is_realloc => Covered::Site(VirtAddr(site)),
            Some(_) => Covered::Unmatched("not every way behind the guard leads to a site"),
            None if is_whole => Covered::Elsewhere("it calls the function, which has sites"),
            None if !self.calls_through_table(guard.different) => {
                Covered::Elsewhere("a compare for its own sake: no call through the table goes with it")
            }
            None => Covered::Unmatched("no site is found behind the guard"),
        }
    }

    /// Whether a way from `start` on calls through a register or memory before it calls anything else.
    fn calls_through_table(&self, start: u64) -> bool {
        let mut seen = FxHashSet::default();
        let mut ways = vec![start];
        while let Some(at) = ways.pop() {
            if !seen.insert(at) || seen.len() > TABLE_BUDGET {
                continue;
            }
            let Some(instruction) = self.code.at(at) else {
                continue;
            };
            match instruction.flow_control() {
                FlowControl::IndirectCall | FlowControl::IndirectBranch => return true,
                FlowControl::Call => {}
                _ => ways.extend(self.code.successors(&instruction).iter()),
            }
        }
        false
    }

    /// The first site behind `start`, and whether every way leads to one, or to an implementation, before it leads
    /// anywhere else.
    fn follow(&self, start: u64, depth: usize) -> (Option<u64>, bool) {
        let mut first = None;
        let mut is_whole = true;
        let mut seen = FxHashSet::default();
        let mut ways = vec![start];
        while let Some(at) = ways.pop() {
            if !seen.insert(at) {
                continue;
            }
            match self.end(at, depth) {
                Some(End::Site(site)) => first = first.or(Some(site)),
                Some(End::Implementation | End::Return) => {}
                Some(End::Unknown) => is_whole = false,
                None if seen.len() > BUDGET => return (first, false),
                None => {
                    let next = self
                        .code
                        .at(at)
                        .map(|instruction| self.code.successors(&instruction));
                    ways.extend(next.unwrap_or_default().iter());
                }
            }
        }
        (first, is_whole)
    }

    /// Whether a way ends at an instruction.
    fn end(&self, at: u64, depth: usize) -> Option<End> {
        if let Some(site) = self.sites.get(&at) {
            return Some(End::Site(*site));
        }
        if self.functions.contains(&at) {
            return Some(End::Implementation);
        }
        let Some(instruction) = self.code.at(at) else {
            return Some(End::Unknown);
        };
        // Where the thread state is, in a shared library.
        if is_call(&instruction) && self.code.import(&instruction) != Some(TLS_ADDRESS) {
            return Some(match self.code.target(&instruction) {
                None => End::Implementation,
                Some(Pointer::Address(target)) if self.functions.contains(&target.get()) => {
                    End::Implementation
                }
                Some(Pointer::Address(target)) if depth > 0 => match self.follow(target.get(), depth - 1) {
                    (Some(site), _) => End::Site(site),
                    (None, true) => End::Implementation,
                    _ => End::Unknown,
                },
                _ => End::Unknown,
            });
        }
        let successors = self.code.successors(&instruction);
        if successors.iter().next().is_some() {
            return None;
        }
        // A jump through a table ends the function as a call does.
        let is_through_table = instruction.is_jmp_near_indirect() && self.code.target(&instruction).is_none();
        Some(match instruction.flow_control() {
            FlowControl::Return => End::Return,
            _ if is_through_table => End::Implementation,
            _ => End::Unknown,
        })
    }
}
