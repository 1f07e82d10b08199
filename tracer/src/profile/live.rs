//! The live set of one process: which blocks are allocated, of what size, by whom.
//!
//! Apart because the rules for which event frees which block are subtle: events can be lost, and the kinds
//! of `tracer_ebpf::record::block` decide. Invariant: each rule that drops a block says why, so that the
//! caller's sums stay exact; the pool blocks in the set are counted by size class.

use rustc_hash::FxHashMap;

use super::{
    audit::{ByClass, class_of},
    mimalloc,
};
use crate::{ingest::event::BlockKind, units::MonotonicNs};

/// Index of a tally in its process.
pub(super) type TallyIndex = u32;

/// Whose block it is, once it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Pool,
    Raw,
    Mimalloc,
    Domain,
    /// libc's malloc has made a mapping for it, for whomever: the interpreter's allocator or an extension.
    Mapped,
}

impl Owner {
    const fn number(self) -> u64 {
        match self {
            Self::Pool => 0,
            Self::Raw => 1,
            Self::Mimalloc => 2,
            Self::Domain => 3,
            Self::Mapped => 4,
        }
    }
}

/// A live block. 16 bytes, as there are millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Lowest three bits: [`Owner`]; the rest: bytes.
    size_and_owner: u64,
    pub(super) tally: TallyIndex,
    /// When it was allocated, in units of [`AGE_UNIT_NS`], wrapping.
    born: u32,
}

const OWNER_BITS: u32 = 3;

/// Unit of a block's time of birth, nanoseconds.
pub(super) const AGE_UNIT_NS: u64 = 1 << 24;

/// A block that is in no pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LargeBlock {
    pub(super) addr: u64,
    pub(super) bytes: u64,
    pub(super) tally: TallyIndex,
    /// For a block of libc's malloc: it was allocated within [`AGE_UNIT_NS`] after this.
    pub(super) born: Option<u64>,
}

/// What a free did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freed {
    /// It freed this block.
    Block(Block),
    /// No live block of that kind is there.
    Unmatched,
    /// A free that pymalloc passes on to the raw allocator, whose own free follows.
    PassedOn,
    /// A block of one allocator stood where another now frees: its free was lost. It is gone; the free itself matches nothing.
    Stale(Block),
}

#[derive(Debug, Default)]
pub(super) struct LiveSet {
    blocks: FxHashMap<u64, Block>,
    pool_blocks: ByClass,
}

impl Block {
    pub(super) fn new(size: u64, owner: Owner, tally: TallyIndex) -> Self {
        // 61 bits are enough for any address space; a hostile size is cut rather than misread.
        let size = size.min(u64::MAX >> OWNER_BITS);
        Self {
            size_and_owner: size << OWNER_BITS | owner.number(),
            tally,
            born: 0,
        }
    }

    /// Whether it is younger than `age`, in nanoseconds.
    pub(super) fn is_younger(&self, age: u64, now: MonotonicNs) -> bool {
        u64::from(units_of(now).wrapping_sub(self.born)) * AGE_UNIT_NS < age
    }

    /// The same, allocated at a time.
    #[must_use]
    pub(super) fn born(self, time: MonotonicNs) -> Self {
        Self {
            born: units_of(time),
            ..self
        }
    }

    /// The same, of another size.
    #[must_use]
    pub(super) fn resized(self, size: u64) -> Self {
        let other = Self::new(size, self.owner(), self.tally);
        Self {
            born: self.born,
            ..other
        }
    }

    pub(super) fn size(self) -> u64 {
        self.size_and_owner >> OWNER_BITS
    }

    pub(super) fn owner(self) -> Owner {
        match self.size_and_owner & ((1 << OWNER_BITS) - 1) {
            0 => Owner::Pool,
            1 => Owner::Raw,
            2 => Owner::Mimalloc,
            3 => Owner::Domain,
            _ => Owner::Mapped,
        }
    }
}

impl LiveSet {
    /// A block was allocated. What stood at the address is returned: its free was lost.
    pub(super) fn insert(&mut self, addr: u64, block: Block) -> Option<Block> {
        let stale = self.blocks.insert(addr, block);
        if let Some(stale) = stale {
            self.count(stale, |count| *count -= 1);
        }
        self.count(block, |count| *count += 1);
        stale
    }

    /// Whether a block of the interpreter's allocator stands at an address.
    pub(super) fn is_allocated(&self, addr: u64) -> bool {
        self.blocks
            .get(&addr)
            .is_some_and(|block| !matches!(block.owner(), Owner::Domain | Owner::Mapped))
    }

    /// Blocks of libc's malloc, and what extensions told of, as they are at a time.
    pub(super) fn large_blocks(&self, now: MonotonicNs) -> impl Iterator<Item = LargeBlock> + '_ {
        let is_large = |block: &Block| matches!(block.owner(), Owner::Raw | Owner::Domain | Owner::Mapped);
        let large = self.blocks.iter().filter(move |(_, block)| is_large(block));
        large.map(move |(&addr, block)| {
            let age = u64::from(units_of(now).wrapping_sub(block.born));
            LargeBlock {
                addr,
                bytes: block.size(),
                tally: block.tally,
                born: (block.owner() != Owner::Domain)
                    .then(|| (now.0 / AGE_UNIT_NS).saturating_sub(age) * AGE_UNIT_NS),
            }
        })
    }

    /// libc's block at an address.
    pub(super) fn libc_block(&self, addr: u64) -> Option<Block> {
        let block = self.blocks.get(&addr)?;
        matches!(block.owner(), Owner::Raw | Owner::Mapped).then_some(*block)
    }

    /// Whether what stands at an address is not older than another block.
    pub(super) fn is_newer(&self, addr: u64, than: Block) -> bool {
        let found = self.blocks.get(&addr);
        found.is_some_and(|block| block.born.wrapping_sub(than.born) < 1 << 31)
    }

    /// Takes it out, if it was there at that time.
    pub(super) fn take_older(&mut self, addr: u64, time: MonotonicNs) -> Option<Block> {
        let block = self.libc_block(addr)?;
        // Half of what the units can tell: one of the two is later.
        let is_older = units_of(time).wrapping_sub(block.born) < 1 << 31;
        if !is_older {
            return None;
        }
        self.blocks.remove(&addr)
    }

    /// Takes those blocks of an owner out that are younger than `age`, in nanoseconds.
    pub(super) fn take_young(&mut self, owner: Owner, now: MonotonicNs, age: u64) -> Vec<Block> {
        let raw = self
            .blocks
            .extract_if(|_, block| block.owner() == owner && block.is_younger(age, now));
        raw.map(|(_, block)| block).collect()
    }

    /// Pool blocks in the set.
    pub(super) fn pool_blocks(&self) -> &ByClass {
        &self.pool_blocks
    }

    /// Every block in the set was counted when it came, so that no count goes below 0.
    fn count(&mut self, block: Block, change: impl FnOnce(&mut u64)) {
        if block.owner() == Owner::Pool
            && let Some(count) = class_of(block.size()).and_then(|class| self.pool_blocks.get_mut(class))
        {
            change(count);
        }
    }

    /// A block was freed, by a free that can free blocks of this kind.
    pub(super) fn free(&mut self, addr: u64, kind: BlockKind) -> Freed {
        let Some(block) = self.blocks.remove(&addr) else {
            return Freed::Unmatched;
        };
        let freed = match (kind, block.owner()) {
            (BlockKind::Any, _)
            | (BlockKind::Pool, Owner::Pool)
            | (BlockKind::Raw | BlockKind::Domain, Owner::Mapped)
            | (BlockKind::Raw, Owner::Raw)
            | (BlockKind::Mimalloc, Owner::Mimalloc)
            | (BlockKind::Domain, Owner::Domain) => Freed::Block(block),
            // mimalloc and malloc never free each other's blocks.
            (BlockKind::Raw, Owner::Pool | Owner::Mimalloc)
            | (BlockKind::Mimalloc, Owner::Pool | Owner::Raw | Owner::Mapped)
            | (BlockKind::Pool, Owner::Mimalloc)
            // What an extension told of is the allocator's again: it has not told of the end.
            | (BlockKind::Raw | BlockKind::Pool | BlockKind::Mimalloc, Owner::Domain) => Freed::Stale(block),
            // An extension takes memory of the allocator's own: it gives it back to that.
            (BlockKind::Pool, Owner::Raw | Owner::Mapped) | (BlockKind::Domain, _) => {
                self.blocks.insert(addr, block);
                return Freed::PassedOn;
            }
        };
        self.count(block, |count| *count -= 1);
        freed
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Forgets all blocks and gives their memory back.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A time in units of [`AGE_UNIT_NS`], wrapping after 800 days.
fn units_of(time: MonotonicNs) -> u32 {
    u32::try_from(time.0 / AGE_UNIT_NS % (1 << 32)).unwrap_or(0)
}

/// Largest request that pymalloc serves, bytes.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h>
const SMALL_REQUEST_THRESHOLD: u64 = 512;
/// Size classes are this many bytes apart on every 64-bit build since 3.7.
const ALIGNMENT: u64 = 16;

/// The block that a realloc makes, as `tracer_ebpf::record::Realloc` says.
///
/// `old` is the live block that was reallocated, if it is known; `moved` whether the address is another.
pub(super) fn reallocated(
    kind: BlockKind,
    old: Option<Block>,
    moved: bool,
    requested: u64,
    raw_size: u64,
    tally: TallyIndex,
) -> Block {
    if kind == BlockKind::Mimalloc {
        let size = mimalloc::reallocated(old.map(Block::size), moved, requested);
        return Block::new(size, Owner::Mimalloc, tally);
    }
    let was_raw = kind == BlockKind::Raw
        || old.is_some_and(|block| matches!(block.owner(), Owner::Raw | Owner::Mapped));
    if was_raw || requested == 0 || requested > SMALL_REQUEST_THRESHOLD {
        return Block::new(raw_size, Owner::Raw, tally);
    }
    match old {
        Some(block) if !moved => Block::new(block.size(), Owner::Pool, tally),
        _ => Block::new(requested.next_multiple_of(ALIGNMENT), Owner::Pool, tally),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(owner: Owner) -> LiveSet {
        let mut live = LiveSet::default();
        assert_eq!(live.insert(0x10, Block::new(32, owner, 1)), None);
        live
    }

    #[track_caller]
    fn check(owner: Owner, kind: BlockKind, expected: Freed, left: usize) {
        let mut live = live(owner);
        assert_eq!(live.free(0x20, kind), Freed::Unmatched);
        assert_eq!(live.free(0x10, kind), expected);
        assert_eq!(live.len(), left);
    }

    #[test]
    fn a_free_frees_only_a_block_of_its_kind() {
        let pool = Block::new(32, Owner::Pool, 1);
        let raw = Block::new(32, Owner::Raw, 1);
        check(Owner::Pool, BlockKind::Pool, Freed::Block(pool), 0);
        check(Owner::Pool, BlockKind::Any, Freed::Block(pool), 0);
        check(Owner::Pool, BlockKind::Raw, Freed::Stale(pool), 0);
        check(Owner::Raw, BlockKind::Raw, Freed::Block(raw), 0);
        check(Owner::Raw, BlockKind::Any, Freed::Block(raw), 0);
        check(Owner::Raw, BlockKind::Pool, Freed::PassedOn, 1);
        let own = Block::new(32, Owner::Mimalloc, 1);
        check(Owner::Mimalloc, BlockKind::Mimalloc, Freed::Block(own), 0);
        check(Owner::Mimalloc, BlockKind::Raw, Freed::Stale(own), 0);
        let mapped = Block::new(32, Owner::Mapped, 1);
        for kind in [BlockKind::Raw, BlockKind::Any, BlockKind::Domain] {
            check(Owner::Mapped, kind, Freed::Block(mapped), 0);
        }
        check(Owner::Mapped, BlockKind::Pool, Freed::PassedOn, 1);
        check(Owner::Mapped, BlockKind::Mimalloc, Freed::Stale(mapped), 0);
        check(Owner::Raw, BlockKind::Mimalloc, Freed::Stale(raw), 0);
    }

    #[test]
    fn a_reallocated_block_is_of_the_kind_and_size_that_the_allocator_would_give() {
        let pool = Some(Block::new(64, Owner::Pool, 1));
        let raw = Some(Block::new(1000, Owner::Raw, 1));
        let check = |kind, old, moved, requested, expected: (u64, Owner)| {
            let block = reallocated(kind, old, moved, requested, 2000, 1);
            assert_eq!(
                (block.size(), block.owner()),
                expected,
                "{kind:?} {old:?} {moved} {requested}"
            );
        };
        check(BlockKind::Any, None, true, 100, (112, Owner::Pool));
        check(BlockKind::Any, None, true, 513, (2000, Owner::Raw));
        check(BlockKind::Any, None, true, 0, (2000, Owner::Raw));
        check(BlockKind::Any, pool, false, 50, (64, Owner::Pool));
        check(BlockKind::Any, pool, true, 80, (80, Owner::Pool));
        check(BlockKind::Any, pool, true, 600, (2000, Owner::Raw));
        check(BlockKind::Any, raw, true, 100, (2000, Owner::Raw));
        check(BlockKind::Raw, None, true, 100, (2000, Owner::Raw));
        check(BlockKind::Raw, raw, false, 100, (2000, Owner::Raw));
        let own = Some(Block::new(1024, Owner::Mimalloc, 1));
        let kind = BlockKind::Mimalloc;
        check(kind, own, false, 600, (1024, Owner::Mimalloc));
        check(kind, own, true, 3000, (3072, Owner::Mimalloc));
        check(kind, None, true, 0, (8, Owner::Mimalloc));
    }

    #[test]
    fn a_hostile_size_does_not_change_the_owner() {
        for owner in [
            Owner::Pool,
            Owner::Raw,
            Owner::Mimalloc,
            Owner::Domain,
            Owner::Mapped,
        ] {
            let block = Block::new(u64::MAX, owner, 1);
            assert_eq!(block.owner(), owner);
            assert_eq!(block.size(), u64::MAX >> 3);
        }
    }
}
