//! Mappings of which it is not known yet whether they are blocks of libc's malloc; a reading says which are.
//!
//! Apart from the live set, in which there is nothing that may be something else. Invariant: a bounded number; what is older than a
//! reading is a block by then, or forgotten.

use rustc_hash::FxHashMap;

use crate::{
    ingest::{LibcBlock, event::Fault},
    profile::live::{Block, Owner, TallyIndex},
    units::MonotonicNs,
};

/// As many as the recorder remembers.
const MOST: usize = 1 << 14;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    /// By the address of a block that one can be for: whose, and when it was made.
    made: FxHashMap<u64, (TallyIndex, MonotonicNs)>,
    /// When the last reading began.
    last: MonotonicNs,
}

impl Mapped {
    /// One was made.
    pub(super) fn add(&mut self, event: &Fault, tally: TallyIndex) {
        for block in event.blocks() {
            if self.made.len() < MOST || self.made.contains_key(&block.addr) {
                self.made.insert(block.addr, (tally, event.time));
            }
        }
    }

    /// An event has told of a block there.
    pub(super) fn forget(&mut self, addr: u64) {
        self.made.remove(&addr);
    }

    /// Tells whose those are that a reading found to be blocks; of others it found that they have another size. What is older than the
    /// reading before is none; it may have taken this one to look at the others.
    pub(super) fn take(
        &mut self,
        began: MonotonicNs,
        found: &[LibcBlock],
    ) -> Vec<(LibcBlock, Option<Block>)> {
        let mut whose = |block: &LibcBlock| {
            let (tally, time) = self.made.remove(&block.addr)?;
            Some(Block::new(block.bytes, Owner::Mapped, tally).born(time))
        };
        let told = found.iter().map(|block| (*block, whose(block))).collect();
        let before = std::mem::replace(&mut self.last, began);
        self.made.retain(|_, (_, time)| *time >= before);
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::event::FaultKind;

    fn add(mapped: &mut Mapped, addr: u64, time: u64, tally: TallyIndex) {
        mapped.add(&Fault::of_test(FaultKind::Mapping, addr, 64, time), tally);
    }

    #[test]
    fn what_a_reading_finds_is_taken_once_and_what_is_younger_waits() {
        let mut mapped = Mapped::default();
        add(&mut mapped, 0x1000, 1, 1);
        add(&mut mapped, 0x2000, 2, 2);
        add(&mut mapped, 0x3000, 7, 3);
        let mut take = |began, found: &[u64]| -> Vec<Option<(TallyIndex, u64)>> {
            let found: Vec<LibcBlock> = found
                .iter()
                .map(|&addr| LibcBlock {
                    addr,
                    bytes: 0x3_fff0,
                })
                .collect();
            let taken = mapped.take(MonotonicNs(began), &found).into_iter();
            taken
                .map(|(_, block)| block.map(|block| (block.tally, block.size())))
                .collect()
        };
        assert_eq!(take(5, &[0x1010, 0x7010]), [Some((1, 0x3_fff0)), None]);
        // One that the recorder had not heard of by then is told of the next time.
        assert_eq!(take(9, &[0x1010, 0x2010]), [None, Some((2, 0x3_fff0))]);
        assert_eq!(take(11, &[]), []);
        assert_eq!(take(12, &[0x3010]), [None], "it was none twice");
    }
}
