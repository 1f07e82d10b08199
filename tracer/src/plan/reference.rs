//! The proof of coverage: every place that an inlined copy of the allocator must touch, and what covers it.
//!
//! A list of sites alone cannot say what it misses. So the references are enumerated by something else than the
//! site finder's patterns (the bytes of calls and addresses in all of the code), and each must be accounted for.

use crate::units::VirtAddr;

/// What an instruction refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReferenceKind {
    /// A call of `allocate_from_new_pool`, or where that is inlined, the set-up of a pool.
    Refill,
    /// A guard on, or another use of the address of, an allocation function of pymalloc.
    Allocation,
    /// A guard on, or another use of the address of, `_PyObject_Free`.
    Free,
    /// A guard on, or another use of the address of, a function of the raw domain.
    Raw,
    /// A use of the arenas' radix tree, by which a free tells pymalloc's blocks.
    ArenaTree,
    /// The end of a free of pymalloc's: the block becomes the first one of its pool's list.
    PoolList,
}

/// What became of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Covered {
    /// This site sees what happens there.
    Site(VirtAddr),
    /// Nothing happens there that a site elsewhere would not see; why.
    Elsewhere(&'static str),
    /// What happens there is not seen; why.
    Unmatched(&'static str),
}

impl Covered {
    /// What is said of a reference that is there for several things: that one of them is not seen, if so.
    pub(super) fn worst(all: impl Iterator<Item = Self>) -> Option<Self> {
        all.max_by_key(|covered| match covered {
            Self::Elsewhere(_) => 0,
            Self::Site(_) => 1,
            Self::Unmatched(_) => 2,
        })
    }
}

/// One reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The instruction that refers.
    pub address: VirtAddr,
    /// To what.
    pub kind: ReferenceKind,
    /// What covers it.
    pub covered: Covered,
}
