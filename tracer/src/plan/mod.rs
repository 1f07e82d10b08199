//! Pure: image facts and settings to probe sites, and reasons for what cannot be probed.
//!
//! Sites in every copy of the allocator where they are found ([`sites`]); otherwise function probes, one in each
//! function that the allocator tables start with. In both cases one where code objects end. What is not seen is
//! counted, never hidden. Invariant: never a mixture of both, which would count blocks twice.

mod coverage;
mod heap;
mod inlined;
mod mimalloc;
mod placement;
mod reference;
mod sites;

use tracer_ebpf::site::{Operand, Role, Site, flag};

use self::placement::Place;
pub use self::{
    coverage::Coverage,
    heap::{HeapPlan, group_name, group_of},
    placement::{Placement, instruction_at},
    reference::{Covered, Reference, ReferenceKind},
    sites::Sites,
};
use crate::{
    elf::Elf,
    python::{Gil, ImageFacts},
    units::{FileOffset, ImageId, VirtAddr},
};

/// Which halves of a call are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// Only its beginning: what it does follows from its arguments.
    EntryOnly,
    /// Its beginning and its return: the result counts.
    EntryAndReturn,
    /// Only its return: the result is all that counts.
    ReturnOnly,
    /// Not a call at all but a place within a function, looked at as it is passed.
    Within,
}

/// A probe to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedSite {
    /// What happens here.
    pub role: Role,
    /// Entry of the function, or of the one that the site is in as far as that is known.
    pub function: VirtAddr,
    /// The instruction under the probe.
    pub address: VirtAddr,
    /// Where that instruction stands in the file.
    pub offset: FileOffset,
    /// How the kernel gets past it.
    pub placement: Placement,
    /// Entry, or entry and return. At `EntryAndReturn` sites the stack pointer is as at the function's entry.
    pub half: Half,
    /// Bits of [`flag`]. [`flag::LARGE_HERE`] means that libc is reached from this function without passing the
    /// raw function of the same kind: the malloc and calloc sites report large requests themselves, a free may
    /// concern a block of either allocator, and a realloc reports for whatever it calls anyway.
    pub flags: u32,
    /// See [`Role`].
    pub operand: Operand,
    /// See [`Role`].
    pub second: Operand,
}

impl PlannedSite {
    /// A probe on a whole function, at the best instruction for it; why not, in words.
    fn on_function(
        elf: &Elf<'_>,
        role: Role,
        function: VirtAddr,
        half: Half,
        flags: u32,
    ) -> Result<Self, String> {
        let Place {
            address,
            placement,
            flags: moved,
        } = placement::place(elf, function, role, half);
        let offset = elf
            .file_offset(address)
            .ok_or_else(|| format!("{role:?} at {address} is not in the file"))?;
        Ok(Self {
            role,
            function,
            address,
            offset,
            placement,
            half,
            flags: flags | moved,
            operand: Operand::default(),
            second: Operand::default(),
        })
    }

    /// The entry of the kernel side's site table.
    pub fn site(&self, image: ImageId) -> Site {
        Site {
            address: self.address.get(),
            image: image.get(),
            role: self.role as u32,
            flags: self.flags,
            group: group_of(self.role),
            operand: self.operand,
            second: self.second,
        }
    }
}

/// What will be probed in an image, and what that leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// By role. No two sites have the same address.
    pub sites: Vec<PlannedSite>,
    /// Frees of large blocks that heap mode needs a site for and that other sites stand for otherwise.
    pub large_frees: Vec<PlannedSite>,
    /// Where extensions tell of memory of their own; for heap mode.
    pub domains: Vec<PlannedSite>,
    /// How much of pymalloc's code the sites stand for; `None` if it could not be told.
    pub coverage: Option<Coverage>,
    /// The proof of coverage, by address; empty for function probes.
    pub references: Vec<Reference>,
    /// What is worth telling in `doctor` and at `-v`.
    pub notes: Vec<String>,
}

/// Plans what an image allows: sites in the allocator's copies, or else function probes.
///
/// `elf` is the file that the facts are of.
pub fn plan(facts: &ImageFacts, elf: &Elf<'_>) -> Plan {
    match sites::find(facts, elf) {
        Some(found) if found.is_usable() => {
            let mut plan = Plan {
                coverage: Some(found.coverage()),
                sites: found.sites,
                large_frees: found.large_frees,
                domains: heap::domains(elf),
                references: found.references,
                notes: found.notes,
            };
            if let Some(dealloc) = facts.code_dealloc {
                plan.add(elf, Role::CodeDealloc, dealloc, 0);
            }
            plan.sites.sort_by_key(|site| (site.role, site.address));
            plan
        }
        found => {
            let mut plan = function_sites(facts, elf);
            let notes = found.into_iter().flat_map(|found| found.notes);
            plan.notes.extend(notes);
            plan
        }
    }
}

/// Plans entry and return probes on an image's allocator functions.
///
/// `elf` is the file that the facts are of.
pub fn function_sites(facts: &ImageFacts, elf: &Elf<'_>) -> Plan {
    let mut plan = Plan {
        sites: Vec::new(),
        large_frees: Vec::new(),
        domains: Vec::new(),
        coverage: match facts.gil {
            Gil::Held => coverage::of(facts, elf),
            Gil::Disabled => mimalloc::coverage(facts, elf),
        },
        references: Vec::new(),
        notes: Vec::new(),
    };
    // The raw functions come first: where a build uses them for all domains (`--without-pymalloc`), a call is
    // theirs, and one site is enough.
    let [malloc, calloc, realloc, free] = facts.functions.raw;
    plan.add(elf, Role::RawMalloc, malloc, 0);
    plan.add(elf, Role::RawCalloc, calloc, 0);
    plan.add(elf, Role::RawRealloc, realloc, 0);
    plan.add(elf, Role::RawFree, free, 0);
    match facts.gil {
        Gil::Held => plan.add_pymalloc(facts, elf),
        Gil::Disabled => mimalloc::add_sites(&mut plan, elf, facts),
    }
    if let Some(dealloc) = facts.code_dealloc {
        plan.add(elf, Role::CodeDealloc, dealloc, 0);
    }
    plan.sites.sort_by_key(|site| site.role);
    plan
}

impl Plan {
    fn add_pymalloc(&mut self, facts: &ImageFacts, elf: &Elf<'_>) {
        let flags = |kind| {
            if inlined::libc_is_reached(facts, elf, kind) {
                flag::LARGE_HERE
            } else {
                0
            }
        };
        let [malloc, calloc, realloc, free] = facts.functions.obj;
        self.add(elf, Role::ObjMalloc, malloc, flags(inlined::Kind::Malloc));
        self.add(elf, Role::ObjCalloc, calloc, flags(inlined::Kind::Calloc));
        self.add(elf, Role::ObjRealloc, realloc, flags(inlined::Kind::Realloc));
        self.add(elf, Role::ObjFree, free, flags(inlined::Kind::Free));
    }

    fn add(&mut self, elf: &Elf<'_>, role: Role, function: VirtAddr, flags: u32) {
        let whole = |site: &&PlannedSite| site.function == function && site.half != Half::Within;
        if let Some(other) = self.sites.iter().find(whole) {
            self.notes.push(format!(
                "{role:?} is the same function as {:?}: it is probed once",
                other.role
            ));
            return;
        }
        let half = match role {
            Role::ObjFree | Role::RawFree | Role::CodeDealloc => Half::EntryOnly,
            _ => Half::EntryAndReturn,
        };
        match PlannedSite::on_function(elf, role, function, half, flags) {
            Ok(site) if self.sites.iter().all(|known| known.address != site.address) => self.sites.push(site),
            Ok(site) => self.notes.push(format!(
                "{role:?} at {} is probed for another role already",
                site.address
            )),
            Err(note) => self.notes.push(note),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
