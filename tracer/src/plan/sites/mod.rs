//! The site finder: from the allocator's functions to every copy of them that the compiler made.
//!
//! Optimised builds have the allocator inlined at hundreds of places, which probes on functions do not see. A site
//! is set only where the code proves what the registers hold; what refers to the allocator and has no such proof is
//! listed as unmatched, with the reason.

mod alloc;
mod body;
mod code;
mod entries;
mod free;
mod guards;
mod hoisted;
mod init;
mod parts;
mod pool;
mod raw;
mod registers;
mod result;
mod search;
mod taken;
mod words;

use iced_x86::Instruction;
use tracer_ebpf::site::{Operand, Role};

use self::{code::Code, search::Hits};
use super::{Coverage, Covered, Half, Placement, PlannedSite, Reference, ReferenceKind, placement};
use crate::{
    elf::Elf,
    python::{Gil, ImageFacts},
    units::VirtAddr,
};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sites {
    /// By address.
    pub sites: Vec<PlannedSite>,
    /// Calls of libc's `free` that a site of `sites` stands for already: where nobody looks at the frees of small
    /// blocks, these tell those of large ones.
    pub large_frees: Vec<PlannedSite>,
    /// By address: what refers to the allocator, and what covers it.
    pub references: Vec<Reference>,
    /// What is worth telling.
    pub notes: Vec<String>,
}

/// Finds the sites of an image; `None` if its allocator does not have the known shape (builds without
/// the GIL).
pub(super) fn find(facts: &ImageFacts, elf: &Elf<'_>) -> Option<Sites> {
    if facts.gil == Gil::Disabled {
        return None;
    }
    let code = Code::new(elf);
    let own = alloc::own_jumps(facts, &code);
    let refill = alloc::refill(&code, &own);
    let places = raw::libc_places(facts, &code);
    let functions = facts.functions.obj.iter().chain(&facts.functions.raw);
    code.search_ahead(
        functions
            .map(|function| function.get())
            .chain(refill)
            .chain(places.keys().copied())
            .chain(free::stubs(facts, &code)),
    );
    let mut found = alloc::find(&code, &own, refill)?;
    found.merge(raw::find(facts, &code, &places)?);
    entries::add(facts, &code, &mut found);
    found.merge(free::find(facts, &code));
    found.finish();
    Some(found)
}

impl Sites {
    /// Whether allocations and frees of both domains are seen, so that no function needs a probe.
    pub fn is_usable(&self) -> bool {
        let has = |roles: &[Role]| self.has(roles);
        has(&alloc::COPIES)
            && has(&[Role::RawMalloc, Role::RawResult])
            && has(&[Role::ObjFree, Role::GuardedFree])
            && has(&[Role::RawFree, Role::LibcFree])
    }

    fn has(&self, roles: &[Role]) -> bool {
        self.sites.iter().any(|site| roles.contains(&site.role))
    }

    /// How many of the references that matter have a site.
    pub fn coverage(&self) -> Coverage {
        let count = |wanted: fn(&Covered) -> bool| {
            let matching = self
                .references
                .iter()
                .filter(|reference| wanted(&reference.covered));
            u32::try_from(matching.count()).unwrap_or(u32::MAX)
        };
        Coverage {
            resolved: count(|covered| matches!(covered, Covered::Site(_))),
            copies: count(|covered| !matches!(covered, Covered::Elsewhere(_))),
        }
    }

    /// Adds a site, unless there is one for the same instruction already.
    fn add(&mut self, site: PlannedSite) {
        match self.sites.iter().find(|known| known.address == site.address) {
            None => self.sites.push(site),
            Some(known) if known.role == site.role => {}
            Some(known) => self.notes.push(format!(
                "{:?} at {} is probed as {:?}",
                site.role, site.address, known.role
            )),
        }
    }

    fn merge(&mut self, other: Self) {
        for site in other.sites {
            self.add(site);
        }
        self.large_frees.extend(other.large_frees);
        self.references.extend(other.references);
        self.notes.extend(other.notes);
    }

    /// Adds a probe on a whole function.
    fn add_function(&mut self, elf: &Elf<'_>, role: Role, function: VirtAddr, half: Half, flags: u32) {
        match PlannedSite::on_function(elf, role, function, half, flags) {
            Ok(site) => self.add(site),
            Err(note) => self.notes.push(note),
        }
    }

    /// Lists what looks like a reference but is in no known function.
    fn outside(&mut self, kind: ReferenceKind, hits: &Hits) {
        self.references
            .extend(hits.outside.iter().map(|(_, place)| Reference {
                address: VirtAddr(*place),
                kind,
                covered: Covered::Unmatched("in no function that the call frame information knows"),
            }));
    }

    fn finish(&mut self) {
        self.sites.sort_by_key(|site| site.address);
        self.references
            .sort_by_key(|reference| (reference.address, reference.kind));
    }
}

/// A site on an instruction within a function.
fn within(
    code: &Code<'_>,
    role: Role,
    instruction: &Instruction,
    flags: u32,
    [operand, second]: [Operand; 2],
) -> Option<PlannedSite> {
    let address = VirtAddr(instruction.ip());
    let function = code.function_at(address.get())?.start;
    let placement = if placement::is_emulated_or_call(instruction) {
        Placement::Emulated {
            skipped_bytes: u32::try_from(address.get() - function).ok()?,
        }
    } else {
        Placement::SingleStep
    };
    Some(PlannedSite {
        role,
        function: VirtAddr(function),
        address,
        offset: code.elf().file_offset(address)?,
        placement,
        half: Half::Within,
        flags,
        operand,
        second,
    })
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests;
