//! Which of the blocks that were seen in sampling windows are gone, as the recorder found by looking at them.
//!
//! Apart from `heap_audit`, since blocks are looked at more often than heaps are read. It speaks of what stands before it in the
//! capture only, so that who reads it knows the same blocks as the recorder did. Invariant: decoding is total; what is
//! encoded decodes to the same.

use bytes::{Buf as _, BufMut as _};

use super::list::{ADDRESS, addresses, length};
use crate::units::{BootNs, MonotonicNs, Pid};

/// Bytes before the addresses.
const HEAD: usize = 56;

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
        let lists = [&self.gone, &self.left, &self.refused];
        let addresses: usize = lists.iter().map(|list| list.len()).sum();
        let mut out = Vec::with_capacity(HEAD + ADDRESS * addresses);
        out.put_u32_le(self.pid.get());
        out.put_u32_le(length(&self.refused));
        out.put_u64_le(self.start.get());
        out.put_u64_le(self.first.get());
        out.put_u64_le(self.last.get());
        out.put_u64_le(self.time.get());
        out.put_u64_le(self.used);
        out.put_u32_le(length(&self.gone));
        out.put_u32_le(length(&self.left));
        for &addr in lists.into_iter().flatten() {
            out.put_u64_le(addr);
        }
        out
    }

    /// What a capture kept; `None` if it is not what [`Survey::encode`] makes.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let mut survey = Self {
            pid: Pid(from.try_get_u32_le().ok()?),
            ..Self::default()
        };
        let refused = from.try_get_u32_le().ok()?;
        survey.start = BootNs(from.try_get_u64_le().ok()?);
        survey.first = MonotonicNs(from.try_get_u64_le().ok()?);
        survey.last = MonotonicNs(from.try_get_u64_le().ok()?);
        survey.time = MonotonicNs(from.try_get_u64_le().ok()?);
        survey.used = from.try_get_u64_le().ok()?;
        let gone = from.try_get_u32_le().ok()?;
        let left = from.try_get_u32_le().ok()?;
        survey.gone = addresses(from, gone.into())?;
        survey.left = addresses(from, left.into())?;
        survey.refused = addresses(from, refused.into())?;
        from.is_empty().then_some(survey)
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
