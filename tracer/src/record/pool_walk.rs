//! Which blocks of a process's pools are in use: those that are on no list of free blocks and were handed out.
//!
//! Apart from `survivors`, which says which are looked at. Of a full pool only the blocks are read, of another one all of it.
//! Invariant: whatever stands in a pool, its walk ends and stays inside.

use std::{collections::BTreeMap, io};

use rustc_hash::FxHashSet;

use super::content::{WORDS_BYTES, WORDS_FROM, Words, words};
use crate::units::ProcAddr;

/// Pools walked at one look; blocks of others are taken for being in use still.
const MAX_POOLS: usize = 1 << 11;
/// `offsetof(struct pool_header, freeblock)`, and of `nextoffset`.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L254-L264>
const FREEBLOCK: usize = 8;
const NEXT_OFFSET: usize = 40;

/// The memory of a process. An error if nothing of it can be read: it is about to end.
pub(super) trait Memory {
    /// A whole pool, if it is there.
    fn pool(&mut self, at: ProcAddr) -> io::Result<Option<Vec<u8>>>;

    /// What stands at each place, in their order.
    fn words(&mut self, places: &[ProcAddr]) -> io::Result<Vec<Option<Words>>>;
}

/// Which of these are in use, with their size and their words; the others are `gone`. `full`: in pools without a free block;
/// `walked`: in others, by pool.
pub(super) fn in_use(
    full: &[(u64, u64)],
    walked: BTreeMap<u64, Vec<(u64, u64)>>,
    mask: u64,
    memory: &mut impl Memory,
    gone: &mut Vec<u64>,
) -> io::Result<Vec<(u64, u64, Words)>> {
    let mut in_use = Vec::new();
    // The last block of a pool can be smaller than what is read; behind the pool there may be nothing.
    let last = |addr: u64| (addr | mask).wrapping_sub(WORDS_BYTES as u64 - 1);
    let place = |addr: u64| addr.saturating_add(WORDS_FROM).min(last(addr));
    let places: Vec<ProcAddr> = full.iter().map(|&(addr, _)| ProcAddr(place(addr))).collect();
    for (&(addr, size), read) in full.iter().zip(memory.words(&places)?) {
        let from = usize::try_from(addr.saturating_add(WORDS_FROM) - place(addr)).unwrap_or(0);
        match read {
            Some(read) => in_use.push((addr, size, words(read.get(from..).unwrap_or_default()))),
            None => gone.push(addr),
        }
    }
    for (pool, samples) in walked.into_iter().take(MAX_POOLS) {
        let bytes = memory.pool(ProcAddr(pool))?.unwrap_or_default();
        let free = free_blocks(pool, &bytes);
        let next = word32(&bytes, NEXT_OFFSET).map_or(0, u64::from);
        for (addr, size) in samples {
            let from = usize::try_from(addr - pool + WORDS_FROM).unwrap_or(usize::MAX);
            if addr - pool < next && !free.contains(&addr) {
                in_use.push((addr, size, words(bytes.get(from..).unwrap_or_default())));
            } else {
                gone.push(addr);
            }
        }
    }
    Ok(in_use)
}

/// The blocks on a pool's list.
fn free_blocks(pool: u64, bytes: &[u8]) -> FxHashSet<u64> {
    let mut free = FxHashSet::default();
    let mut at = word(bytes, FREEBLOCK).unwrap_or(0);
    // A list that comes back to itself ends, as one that leaves the pool does.
    while at != 0 && free.insert(at) {
        let Some(offset) = at
            .checked_sub(pool)
            .and_then(|offset| usize::try_from(offset).ok())
        else {
            break;
        };
        let Some(next) = word(bytes, offset) else { break };
        at = next;
    }
    free
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u64::from_le_bytes(*word))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u32::from_le_bytes(*word))
}
