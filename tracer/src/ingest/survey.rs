//! Which of the blocks that were seen in sampling windows are gone, as the recorder found by looking at them.
//!
//! Apart from `heap_audit`, since blocks are looked at more often than heaps are read. It speaks of what stands before it in the
//! capture only, so that who reads it knows the same blocks as the recorder did. Invariant: decoding is total; what is
//! encoded decodes to the same.

use crate::units::{BootNs, MonotonicNs, Pid};

/// Bytes before the addresses.
const HEAD: usize = 56;
const ADDRESS: usize = 8;

/// A look at the sampled blocks of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Process id.
    pub pid: Pid,
    /// When it started; with the pid it names the process.
    pub start: BootNs,
    /// Blocks were looked at that were allocated from here,
    pub first: MonotonicNs,
    /// ... up to here.
    pub last: MonotonicNs,
    /// When they were looked at.
    pub time: MonotonicNs,
    /// Processor time that the process had used by then, nanoseconds.
    pub used: u64,
    /// Addresses of those that are no longer in use.
    pub gone: Vec<u64>,
    /// Addresses of those that are in use and will not be looked at any more: they are too many.
    pub left: Vec<u64>,
    /// Addresses of blocks that never were looked at, whenever they were allocated: there was no room for them.
    pub refused: Vec<u64>,
}

impl Survey {
    /// As a capture keeps it.
    pub fn encode(&self) -> Vec<u8> {
        let length = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(HEAD + ADDRESS * (self.gone.len() + self.left.len()));
        for word in [self.pid.get(), length(self.refused.len())] {
            out.extend(word.to_le_bytes());
        }
        for word in [
            self.start.get(),
            self.first.get(),
            self.last.get(),
            self.time.get(),
            self.used,
        ] {
            out.extend(word.to_le_bytes());
        }
        for word in [length(self.gone.len()), length(self.left.len())] {
            out.extend(word.to_le_bytes());
        }
        for addr in self.gone.iter().chain(&self.left).chain(&self.refused) {
            out.extend(addr.to_le_bytes());
        }
        out
    }

    /// What a capture kept; `None` if it is not what [`Survey::encode`] makes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, addresses) = bytes.split_first_chunk::<HEAD>()?;
        let (words, _) = head.as_chunks::<4>();
        let word = |index: usize| words.get(index).map(|word| u32::from_le_bytes(*word));
        let long = |index: usize| Some(u64::from(word(index + 1)?) << 32 | u64::from(word(index)?));
        let (addresses, rest) = addresses.as_chunks::<ADDRESS>();
        let length = |index: usize| usize::try_from(word(index)?).ok();
        let (gone, addresses) = addresses.split_at_checked(length(12)?)?;
        let (left, refused) = addresses.split_at_checked(length(13)?)?;
        if !rest.is_empty() || length(1)? != refused.len() {
            return None;
        }
        let addresses = |of: &[[u8; ADDRESS]]| of.iter().map(|addr| u64::from_le_bytes(*addr)).collect();
        Some(Self {
            pid: Pid(word(0)?),
            start: BootNs(long(2)?),
            first: MonotonicNs(long(4)?),
            last: MonotonicNs(long(6)?),
            time: MonotonicNs(long(8)?),
            used: long(10)?,
            gone: addresses(gone),
            left: addresses(left),
            refused: addresses(refused),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_again_and_nothing_shorter(
            pid in any::<u32>(),
            times in any::<[u64; 5]>(),
            gone in prop::collection::vec(any::<u64>(), 0..5),
            left in prop::collection::vec(any::<u64>(), 0..5),
            refused in prop::collection::vec(any::<u64>(), 0..5),
        ) {
            let [start, first, last, time, used] = times;
            let survey = Survey {
                pid: Pid(pid),
                start: BootNs(start),
                first: MonotonicNs(first),
                last: MonotonicNs(last),
                time: MonotonicNs(time),
                used,
                gone,
                left,
                refused,
            };
            let bytes = survey.encode();
            prop_assert_eq!(Survey::decode(&bytes), Some(survey));
            for len in 0..bytes.len() {
                prop_assert_eq!(Survey::decode(bytes.get(..len).unwrap_or_default()), None);
            }
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Survey::decode(&bytes);
        }
    }
}
