//! What of libc's heaps is in use and has no owner yet, by region and size of chunks, as a reading counted it.
//!
//! Invariant: what is taken was there.

use rustc_hash::FxHashMap;

use crate::ingest::{Chunks, OVERHEAD, chunk_class};

/// Classes of sizes: one for each bit of a size.
const CLASSES: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// By the start of a region, bytes of each class.
    regions: FxHashMap<u64, [u64; CLASSES]>,
}

impl Census {
    pub(super) fn new(chunks: &[Chunks]) -> Self {
        let mut regions: FxHashMap<u64, [u64; CLASSES]> = FxHashMap::default();
        for chunks in chunks {
            let classes = regions.entry(chunks.region).or_insert([0; CLASSES]);
            if let Some(bytes) = classes.get_mut(usize::from(chunks.class)) {
                *bytes = bytes.saturating_add(chunks.bytes);
            }
        }
        Self { regions }
    }

    /// Whether a region was counted.
    pub(super) fn has(&self, region: u64) -> bool {
        self.regions.contains_key(&region)
    }

    /// What is left of a region; nothing if it was not counted.
    pub(super) fn in_use(&self, region: u64) -> Option<u64> {
        let classes = self.regions.get(&region)?;
        Some(classes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes)))
    }

    /// What is left of one class there.
    pub(super) fn in_class(&self, region: u64, class: u8) -> u64 {
        let classes = self.regions.get(&region);
        let bytes = classes.and_then(|classes| classes.get(usize::from(class)));
        bytes.copied().unwrap_or_default()
    }

    /// A block of so many bytes has an owner.
    pub(super) fn take(&mut self, region: u64, block: u64) {
        let classes = self.regions.get_mut(&region);
        if let Some(bytes) = classes.and_then(|classes| classes.get_mut(usize::from(class_of(block)))) {
            *bytes = bytes.saturating_sub(block.saturating_add(OVERHEAD));
        }
    }
}

/// The class of the chunk that a block of so many usable bytes is in.
pub(super) fn class_of(block: u64) -> u8 {
    chunk_class(block.saturating_add(OVERHEAD))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_has_an_owner_is_taken_from_its_class() {
        let chunks = |region, block, bytes| Chunks {
            region,
            class: class_of(block),
            bytes,
        };
        let mut census = Census::new(&[
            chunks(0x1000, 1016, 4096),
            chunks(0x1000, 8, 64),
            chunks(0x2000, 8, 32),
            Chunks {
                region: 0x3000,
                class: u8::MAX,
                bytes: u64::MAX,
            },
        ]);
        census.take(0x1000, 1016);
        census.take(0x4000, 1016);
        assert_eq!(census.in_class(0x1000, class_of(1016)), 3072);
        assert_eq!(census.in_class(0x1000, class_of(MIB)), 0);
        let in_use = [0x1000, 0x2000, 0x3000, 0x4000].map(|region| census.in_use(region));
        assert_eq!(in_use, [Some(3136), Some(32), Some(0), None]);
        census.take(0x1000, MIB);
        census.take(0x2000, u64::MAX);
        census.take(0x2000, 400);
        assert_eq!(
            (census.in_use(0x1000), census.in_use(0x2000)),
            (Some(3136), Some(0))
        );
        assert!(census.has(0x3000) && !census.has(0x4000));
    }
}
