//! Sites of frees: every guard with an inlined copy of `_PyObject_Free`, the implementations, libc's `free`.
//!
//! One free makes one event. A guard's site stands for its whole copy, so what the copy calls of libc has no site of
//! its own; where such a call also serves others, it has one, and the guard's site reports pymalloc's blocks only.
//! All references to the functions and all uses of the arenas' radix tree are accounted for, independently of whether
//! a guard was recognised. Invariant: a guard has a site only if both of its sides prove which pointer is freed.

mod graph;
mod guard;
mod lookup;
mod push;
mod raw;
mod sides;
mod state;
mod walk;

use iced_x86::{FlowControl, Instruction};
use tracer_ebpf::site::{Operand, Role, flag};

pub(super) use self::raw::stubs;
use self::{
    graph::{Edge, back, only_through},
    guard::Guard,
    sides::{Copy, Implementation},
    state::{RSI, Value},
};
use super::{Sites, code::Code, registers, search::Hits, within};
use crate::{
    plan::{Covered, Half, PlannedSite, Reference, ReferenceKind},
    python::ImageFacts,
    units::VirtAddr,
};

const HAS_SITE: &str = "it calls the implementation, which has a site";
const ADDRESS_ONLY: &str = "it takes the address: whoever calls that comes to the implementation's site";

/// An inlined copy behind a guard.
#[derive(Clone, Debug)]
struct Inlined {
    guard: Guard,
    operand: Operand,
    copy: Copy,
    /// A large block that it frees passes another site.
    pool_only: bool,
}

impl Inlined {
    fn edge(&self) -> Edge {
        edge(&self.guard)
    }
}

fn edge(guard: &Guard) -> Edge {
    Edge {
        from: guard.jump,
        to: guard.equal,
    }
}

/// Finds the sites of an image.
pub(super) fn find(facts: &ImageFacts, code: &Code<'_>) -> Sites {
    let implementation = Implementation::of(code.elf(), facts);
    let [.., realloc, free] = facts.functions.obj;
    let [.., raw_free] = facts.functions.raw;
    let hits = code.references(&[free, realloc, raw_free]);
    let mut finder = Finder {
        code,
        facts,
        own: sides::copy(code, free, &[Value::Start(RSI, 0)], &implementation),
        implementation,
        inlined: Vec::new(),
        found: Sites::default(),
    };
    if free == raw_free {
        finder
            .found
            .notes
            .push("all domains use the raw functions".to_owned());
    } else {
        finder.guards(&hits);
        finder.late_entries();
    }
    let libc = raw::find(&mut finder, &hits, raw_free);
    finder.sites(&libc);
    finder.lookups(&hits, realloc);
    finder.pushes();
    finder.found
}

struct Finder<'c, 'a> {
    code: &'c Code<'a>,
    facts: &'c ImageFacts,
    implementation: Implementation,
    /// What the implementation itself does.
    own: Result<Copy, &'static str>,
    inlined: Vec<Inlined>,
    found: Sites,
}

impl Finder<'_, '_> {
    fn refer(&mut self, kind: ReferenceKind, address: VirtAddr, covered: Covered) {
        self.found.references.push(Reference {
            address,
            kind,
            covered,
        });
    }

    /// Every reference to `_PyObject_Free`.
    fn guards(&mut self, hits: &Hits) {
        let entry = self.implementation.entry;
        for instruction in hits.of(entry) {
            let address = VirtAddr(instruction.ip());
            let covered = if leads_on(instruction) {
                Covered::Elsewhere(HAS_SITE)
            } else {
                match guard::all_at(self.code, instruction, entry) {
                    Ok(guards) => self.judge_all(&guards),
                    Err(guard::NoGuard::NotCompared) => Covered::Elsewhere(ADDRESS_ONLY),
                    Err(guard::NoGuard::Unclear(reason)) => Covered::Unmatched(reason),
                }
            };
            self.refer(ReferenceKind::Free, address, covered);
        }
    }

    /// What is said of a reference that several guards use.
    fn judge_all(&mut self, guards: &[Guard]) -> Covered {
        Covered::worst(guards.iter().map(|guard| self.judge(*guard)))
            .unwrap_or(Covered::Unmatched("it is compared nowhere"))
    }

    fn judge(&mut self, guard: Guard) -> Covered {
        if self.inlined.iter().any(|known| known.guard.jump == guard.jump) {
            return Covered::Site(guard.jump);
        }

        let tables = self.facts.tables;
        let slots = [tables.mem, tables.obj].map(free_slot);
        let pointer = match sides::slow_pointer(self.code, &guard, &slots) {
            Ok(Value::Number(0)) => return Covered::Elsewhere("it frees no block: the pointer is NULL"),
            Ok(Value::Unknown) => {
                return Covered::Unmatched("what its other side frees is not known at the guard");
            }
            Ok(pointer) => pointer,
            Err(reason) => return Covered::Unmatched(reason),
        };
        let copy = |pointers: &[Value]| sides::copy(self.code, guard.equal, pointers, &self.implementation);
        // The copy may have the pointer from another place than the slow side.
        let found = copy(&[pointer]).map(|copy| (pointer, copy)).or_else(|reason| {
            let mut pointers = guard.registers_with(self.code, pointer);
            let register = *pointers.first().ok_or(reason)?;
            pointers.push(pointer);
            copy(&pointers).map(|copy| (register, copy)).map_err(|_| reason)
        });
        let (pointer, copy) = match found {
            Ok((_, copy)) if copy.lookups.is_empty() && !copy.calls.is_empty() => {
                return Covered::Elsewhere(HAS_SITE);
            }
            Ok((_, copy)) if copy.lookups.is_empty() || !copy.calls.is_empty() => {
                return Covered::Unmatched("the copy does not look the pointer up on every way");
            }
            Ok(found) => found,
            Err(reason) => return Covered::Unmatched(reason),
        };
        let Some(operand) = operand(pointer) else {
            return Covered::Unmatched("the pointer is in no register and no stack slot at the guard");
        };
        let jump = guard.jump;
        self.inlined.push(Inlined {
            guard,
            operand,
            copy,
            pool_only: false,
        });
        Covered::Site(jump)
    }

    /// Ways into a copy past its guard: where the slot was asked for a moment ago already, and a conditional jump for
    /// another reason is the last thing before the copy.
    fn late_entries(&mut self) {
        let mut lookups: Vec<VirtAddr> = self
            .inlined
            .iter()
            .flat_map(|inlined| inlined.copy.lookups.clone())
            .collect();
        lookups.sort_unstable();
        lookups.dedup();
        for lookup in lookups {
            let known: Vec<&Inlined> = self
                .inlined
                .iter()
                .filter(|known| known.copy.lookups.contains(&lookup))
                .collect();
            let mut late = Vec::new();
            let is_whole = back(self.code, lookup, &[], &mut |instruction, edge| {
                if known.iter().any(|known| known.edge() == edge) {
                    return true;
                }
                // Behind one of the guards, it would be a second site for the same free.
                if known
                    .iter()
                    .any(|known| known.copy.jumps.contains(&edge.from) || known.guard.jump == edge.from)
                {
                    return false;
                }
                let entry = self.late_entry(instruction, edge, lookup);
                let is_entry = entry.is_some();
                late.extend(entry);
                is_entry
            });
            if is_whole {
                self.inlined.extend(late);
            }
        }
    }

    /// A conditional jump behind which, on one of its ways, there is nothing but a copy.
    fn late_entry(&self, instruction: &Instruction, edge: Edge, lookup: VirtAddr) -> Option<Inlined> {
        let guard = Guard::by_flag(instruction, edge.to)?;
        (0..16).find_map(|number| {
            let pointer = Value::Start(number, 0);
            let copy = sides::copy(self.code, edge.to, &[pointer], &self.implementation).ok()?;
            (copy.lookups == [lookup] && copy.calls.is_empty()).then_some(Inlined {
                guard,
                operand: operand(pointer)?,
                copy,
                pool_only: false,
            })
        })
    }

    /// The sites: of the copies, of the implementation, of libc's calls.
    fn sites(&mut self, libc: &raw::Libc) {
        for inlined in std::mem::take(&mut self.inlined) {
            let only = if inlined.pool_only { flag::POOL_ONLY } else { 0 };
            self.within(
                Role::GuardedFree,
                inlined.guard.jump,
                inlined.guard.if_equal | only,
                inlined.operand,
            );
            self.inlined.push(inlined);
        }
        for (address, flags, operand) in &libc.guards {
            self.within(Role::GuardedFree, *address, *flags, *operand);
        }
        for address in &libc.calls {
            self.within(Role::LibcFree, *address, 0, Operand::default());
        }
        for address in &libc.owned {
            let site = self.site(Role::LibcFree, *address, 0, Operand::default());
            self.found.large_frees.extend(site);
        }
        let [.., raw] = self.facts.functions.raw;
        if !libc.covers_implementation {
            self.function(Role::RawFree, raw, 0);
        }
        if self.implementation.entry != raw {
            let flags = if libc.implementation_is_whole {
                flag::LARGE_HERE
            } else {
                0
            };
            self.function(Role::ObjFree, self.implementation.entry, flags);
        }
    }

    fn within(&mut self, role: Role, address: VirtAddr, flags: u32, operand: Operand) {
        let site = self.site(role, address, flags, operand);
        if let Some(site) = site {
            self.found.add(site);
        }
    }

    /// A site on an instruction within a function; a note if it is not in the file.
    fn site(&mut self, role: Role, address: VirtAddr, flags: u32, operand: Operand) -> Option<PlannedSite> {
        let operands = [operand, Operand::default()];
        let site = self
            .code
            .at(address.get())
            .and_then(|instruction| within(self.code, role, &instruction, flags, operands));
        if site.is_none() {
            let note = format!("{role:?} at {address} is not in the file");
            self.found.notes.push(note);
        }
        site
    }

    /// A site at a function's entry.
    fn function(&mut self, role: Role, function: VirtAddr, flags: u32) {
        self.found
            .add_function(self.code.elf(), role, function, Half::EntryOnly, flags);
    }

    /// Every block that is put onto a pool's list. Where no guard and no call stands before, the compiler knew
    /// whom it called, and the copy has a site at its end; what it passes to libc has one of its own.
    fn pushes(&mut self) {
        let free = self.implementation.entry;
        for push in push::all(self.code) {
            let is_in = |copy: &Copy| copy.listed.contains(&push.link) || copy.listed.contains(&push.store);
            let behind = self.inlined.iter().filter(|inlined| is_in(&inlined.copy));
            let edges: Vec<Edge> = behind.map(Inlined::edge).collect();
            // The implementation's own, also where what else it does is not understood (3.9 has no radix tree).
            let range = self.code.function_at(push.store.get());
            let is_own =
                self.own.as_ref().is_ok_and(is_in) || range.is_some_and(|range| range.start == free.get());
            let covered = if is_own || !edges.is_empty() {
                let entries: &[VirtAddr] = if is_own { &[free] } else { &[] };
                if only_through(self.code, push.store, &edges, entries) {
                    Covered::Site(edges.first().map_or(free, |edge| edge.from))
                } else {
                    Covered::Unmatched("another way leads to the end of a copy than through its guard")
                }
            } else if only_through(self.code, push.store, &[], &[free]) {
                Covered::Site(free)
            } else if let Some((jump, block)) = push.jump
                && let Some(block) = registers::operand(block)
            {
                self.within(Role::GuardedFree, jump, flag::POOL_ONLY, block);
                Covered::Site(jump)
            } else {
                Covered::Unmatched("no jump behind it knows the block")
            };
            self.refer(ReferenceKind::PoolList, push.store, covered);
        }
    }

    /// Every use of the radix tree.
    fn lookups(&mut self, hits: &Hits, realloc: VirtAddr) {
        let code = self.code;
        let free = self.implementation.entry;
        let reallocs: Vec<Edge> = hits
            .of(realloc)
            .filter(|instruction| !leads_on(instruction))
            .filter_map(|instruction| guard::all_at(code, instruction, realloc).ok())
            .flatten()
            .map(|guard| edge(&guard))
            .collect();
        for lookup in lookup::all(code, &self.implementation, self.facts) {
            let address = VirtAddr(lookup.ip());
            let guards = self
                .inlined
                .iter()
                .filter(|inlined| inlined.copy.lookups.contains(&address));
            let edges: Vec<Edge> = guards.map(Inlined::edge).collect();
            let covered = if let Some(edge) = edges.first()
                && only_through(code, address, &edges, &[])
            {
                Covered::Site(edge.from)
            } else if only_through(code, address, &edges, &[free]) {
                Covered::Site(free)
            } else if only_through(code, address, &reallocs, &[realloc]) {
                Covered::Elsewhere("a reallocation looks its block up")
            } else if lookup::marks_arena(code, &lookup) {
                Covered::Elsewhere("an arena is marked as used or unused")
            } else {
                Covered::Unmatched("the tree is used behind no guard that is known")
            };
            self.refer(ReferenceKind::ArenaTree, address, covered);
        }
    }
}

/// The slot of a table that frees go through.
fn free_slot(table: VirtAddr) -> VirtAddr {
    VirtAddr(table.get().wrapping_add(32))
}

/// Whether it is a call or jump.
fn leads_on(instruction: &Instruction) -> bool {
    instruction.flow_control() != FlowControl::Next
}

/// Where a value of the beginning is, if the kernel side can read it.
fn operand(value: Value) -> Option<Operand> {
    match value {
        Value::Start(register, 0) => Some(Operand::register(register)),
        Value::Word(register, at) => Some(Operand::memory(register, i32::try_from(at).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
