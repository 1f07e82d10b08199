//! The sites of heap mode: where pools are acquired, and where large blocks come and go.
//!
//! They are a choice of those of `allocs` mode, which looks at every block. What is left out are the copies of
//! pymalloc's allocation and its frees, the dear part: whether a small block is still there is read from its pool, not
//! traced. Invariant: of a block of libc's both its allocation and its free have a site, or neither.

use tracer_ebpf::site::{Operand, Role, flag, group};

use super::{Coverage, Covered, Half, Plan, PlannedSite, ReferenceKind};
use crate::elf::Elf;

/// What heap mode probes in an image, and with what right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapPlan {
    /// Sites that stand all the time unless the governor takes their group off.
    pub sites: Vec<PlannedSite>,
    /// The copies of pymalloc's allocation, for short sampling windows.
    pub windows: Vec<PlannedSite>,
    /// How many of the references to the slow path and to libc are covered.
    pub coverage: Coverage,
}

impl Plan {
    /// The sites of heap mode; why there are none, in words.
    pub fn heap(&self) -> Result<HeapPlan, &'static str> {
        let acquires = |role: Role| matches!(role, Role::PoolRefill | Role::PoolInit);
        if !self.sites.iter().any(|site| acquires(site.role)) {
            let is_mimalloc = self.sites.iter().any(|site| site.flags & flag::MIMALLOC != 0);
            return Err(if is_mimalloc {
                "its allocator, mimalloc, has no pools"
            } else {
                "where its pools are acquired is not known"
            });
        }
        let mut sites: Vec<PlannedSite> = self
            .sites
            .iter()
            .filter(|site| group_of(site.role) != group::BLOCKS)
            .chain(&self.large_frees)
            .chain(&self.domains)
            .copied()
            .collect();
        sites.sort_by_key(|site| (site.role, site.address));
        let matters = |kind: ReferenceKind| matches!(kind, ReferenceKind::Refill | ReferenceKind::Raw);
        let counted = |wanted: fn(&Covered) -> bool| {
            let references = self.references.iter();
            let matching =
                references.filter(|reference| matters(reference.kind) && wanted(&reference.covered));
            u32::try_from(matching.count()).unwrap_or(u32::MAX)
        };
        Ok(HeapPlan {
            sites,
            windows: self
                .sites
                .iter()
                .filter(|site| matches!(site.role, Role::PoolAlloc | Role::PoolTaken))
                .copied()
                .collect(),
            coverage: Coverage {
                resolved: counted(|covered| matches!(covered, Covered::Site(_))),
                copies: counted(|covered| !matches!(covered, Covered::Elsewhere(_))),
            },
        })
    }
}

/// Where extensions (numpy is one) tell of memory of their own, whether tracemalloc runs or not. A build without the
/// functions has none.
pub(super) fn domains(elf: &Elf<'_>) -> Vec<PlannedSite> {
    /// Numbers of the registers that the arguments behind the first are in, and where a compiler moves them.
    const RDX: u8 = 2;
    const RSI: u8 = 6;
    const RDI: u8 = 7;
    [
        ("PyTraceMalloc_Track", Role::Track),
        ("PyTraceMalloc_Untrack", Role::Untrack),
    ]
    .into_iter()
    .filter_map(|(name, role)| {
        let function = elf.exported(name)?.address;
        let mut site = PlannedSite::on_function(elf, role, function, Half::EntryOnly, flag::DOMAIN).ok()?;
        let moved =
            |bit: u32, to: u8, from: u8| Operand::register(if site.flags & bit != 0 { to } else { from });
        let (pointer, size) = (
            moved(flag::FIRST_IN_RDI, RDI, RSI),
            moved(flag::SECOND_IN_RSI, RSI, RDX),
        );
        site.operand = pointer;
        if role == Role::Track {
            site.second = size;
        }
        site.half = Half::Within;
        Some(site)
    })
    .collect()
}

/// What a group of sites is called.
pub const fn group_name(group: u32) -> &'static str {
    match group {
        group::POOLS => "acquisitions of pools",
        group::LARGE => "large blocks",
        group::BLOCKS => "small blocks",
        group::DOMAINS => "blocks of extensions",
        group::FAULTS => "page faults",
        group::CODES => "deaths of code objects",
        _ => "others",
    }
}

/// The group that hits of a role are counted under, and that the governor takes off as one.
pub const fn group_of(role: Role) -> u32 {
    match role {
        Role::PoolRefill | Role::PoolInit => group::POOLS,
        Role::CodeDealloc => group::CODES,
        Role::RawMalloc
        | Role::RawCalloc
        | Role::RawRealloc
        | Role::RawFree
        | Role::RawResult
        | Role::LibcFree
        | Role::LibcRealloc
        | Role::ReallocResult => group::LARGE,
        Role::ObjMalloc
        | Role::ObjCalloc
        | Role::ObjRealloc
        | Role::ObjFree
        | Role::PoolAlloc
        | Role::PoolTaken
        | Role::GuardedFree => group::BLOCKS,
        Role::Track | Role::Untrack => group::DOMAINS,
    }
}
