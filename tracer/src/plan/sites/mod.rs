//! The site finder: from the allocator's functions to every copy of them that the compiler made.
//!
//! Optimised builds have the allocator inlined at hundreds of places, which probes on functions do not see. A site
//! is set only where the code proves what the registers hold; what refers to the allocator and has no such proof is
//! listed as unmatched, with the reason.

mod alloc;
mod body;
mod code;
mod free;
mod guards;
mod pool;
mod raw;
mod registers;
mod result;
mod search;

use iced_x86::Instruction;
use tracer_ebpf::site::{Operand, Role};

use self::{code::Code, search::Hits};
use super::{
    Covered, Half, Placement, PlannedSite, Reference, ReferenceKind,
    placement::{self, Place},
};
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
    /// By address: what refers to the allocator, and what covers it.
    pub references: Vec<Reference>,
    /// What is worth telling.
    pub notes: Vec<String>,
}

/// Finds the sites of an image; `None` if its allocator does not have the known shape (3.9 and older, builds without
/// the GIL).
pub fn find(facts: &ImageFacts, elf: &Elf<'_>) -> Option<Sites> {
    if facts.gil == Gil::Disabled {
        return None;
    }
    let code = Code::new(elf);
    let mut found = alloc::find(facts, &code)?;
    found.merge(raw::find(facts, &code)?);
    found.merge(free::find(facts, &code));
    found.finish();
    Some(found)
}

impl Sites {
    /// Adds a site, unless there is one for the same instruction already.
    fn add(&mut self, site: PlannedSite) {
        if self.sites.iter().all(|known| known.address != site.address) {
            self.sites.push(site);
        }
    }

    fn merge(&mut self, other: Self) {
        for site in other.sites {
            self.add(site);
        }
        self.references.extend(other.references);
        self.notes.extend(other.notes);
    }

    /// Adds a probe on a whole function.
    fn add_function(&mut self, elf: &Elf<'_>, role: Role, function: VirtAddr, half: Half) {
        let Place {
            address,
            placement,
            flags,
        } = placement::place(elf, function, role, half);
        match elf.file_offset(address) {
            Some(offset) => self.add(PlannedSite {
                role,
                function,
                address,
                offset,
                placement,
                half,
                flags,
                operand: Operand::default(),
                second: Operand::default(),
            }),
            None => self
                .notes
                .push(format!("{role:?} at {address} is not in the file")),
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
