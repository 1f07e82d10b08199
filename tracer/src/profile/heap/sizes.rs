//! Of which sizes a stack was seen to allocate large blocks.
//!
//! Apart from `big`, which asks: a table that is made anew every so often, or a buffer, is of the same size each time, and comes to lie
//! where such a one was before. Invariant: a bounded number is remembered.

use rustc_hash::FxHashSet;

use crate::{ingest::BIG_CHUNK, profile::live::TallyIndex};

/// Pairs remembered of one process; it begins anew with more.
const MOST: usize = 1 << 12;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sizes(FxHashSet<(u64, TallyIndex)>);

impl Sizes {
    /// A block of so many bytes was allocated. Of small ones there are many of a size.
    pub(super) fn add(&mut self, bytes: u64, tally: TallyIndex) {
        if bytes < BIG_CHUNK {
            return;
        }
        if self.0.len() >= MOST && !self.0.contains(&(bytes, tally)) {
            self.0.clear();
        }
        self.0.insert((bytes, tally));
    }

    /// Whether a stack allocated one of so many bytes.
    pub(super) fn has(&self, bytes: u64, tally: TallyIndex) -> bool {
        self.0.contains(&(bytes, tally))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_are_remembered_and_not_too_many() {
        let mut sizes = Sizes::default();
        for bytes in (0..3 * MOST as u64).map(|index| BIG_CHUNK + 16 * index) {
            sizes.add(bytes, 7);
            assert!(sizes.has(bytes, 7) && !sizes.has(bytes, 8) && sizes.0.len() <= MOST);
        }
        sizes.add(BIG_CHUNK - 16, 7);
        assert!(!sizes.has(BIG_CHUNK - 16, 7));
    }
}
