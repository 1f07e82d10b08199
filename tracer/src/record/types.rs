//! Which addresses are those of types, as the process's memory tells: the type of a type is `type`, which is its own.
//!
//! Apart from `content`, which reads nothing. A class with a metaclass is not known for one; its objects are then told apart as
//! little as those of no type. Invariant: what is remembered is bounded, and anything can stand at any address.

use std::io;

use rustc_hash::FxHashMap;

use super::{content::WORDS_FROM, pool_walk::Memory};
use crate::units::ProcAddr;

/// Addresses remembered of one process.
const MOST: usize = 1 << 12;

/// Addresses, and whether there is a type.
#[derive(Debug, Default)]
pub(super) struct KnownTypes(FxHashMap<u64, bool>);

impl KnownTypes {
    /// Looks at those that are not known yet.
    pub(super) fn learn(
        &mut self,
        addrs: impl Iterator<Item = u64>,
        memory: &mut impl Memory,
    ) -> io::Result<()> {
        let mut new: Vec<u64> = addrs.filter(|addr| !self.0.contains_key(addr)).collect();
        new.sort_unstable();
        new.dedup();
        new.truncate(MOST);
        if new.is_empty() {
            return Ok(());
        }
        if self.0.len() + new.len() > MOST {
            self.0.clear();
        }
        let types = types_at(&new, memory)?;
        let types_of_types = types_at(&types, memory)?;
        for ((addr, type_), type_of_type) in new.into_iter().zip(types).zip(types_of_types) {
            self.0.insert(addr, type_ != 0 && type_ == type_of_type);
        }
        Ok(())
    }

    /// Whether there is a type at an address.
    pub(super) fn has(&self, addr: u64) -> bool {
        self.0.get(&addr) == Some(&true)
    }
}

/// The type of what is at each of these addresses, if it is an object; 0 where nothing can be read.
fn types_at(addrs: &[u64], memory: &mut impl Memory) -> io::Result<Vec<u64>> {
    let places: Vec<ProcAddr> = addrs
        .iter()
        .map(|addr| ProcAddr(addr.saturating_add(WORDS_FROM)))
        .collect();
    let read = memory.words(&places)?;
    let first = |words: &[u8]| words.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    Ok(read
        .into_iter()
        .map(|words| words.map_or(0, |words| first(&words)))
        .collect())
}
