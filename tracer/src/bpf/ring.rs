//! The reading end of the ring: records out of shared memory into owned batches, nothing more.
//!
//! Runs on a thread of its own. A batch is a block of whole records, in order; it is what a capture stores
//! and what the decoder reads.

use std::{io, time::Duration};

use aya::maps::{MapData, RingBuf};
use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes after which a batch is handed on.
const BATCH_BYTES: usize = 256 * 1024;
/// Bytes of a record's head (`tracer_ebpf::record::Head`).
const HEAD_BYTES: usize = 8;

/// The reading end.
pub struct RingReader {
    ring: RingBuf<MapData>,
    malformed: u64,
}

impl RingReader {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring, malformed: 0 }
    }

    /// Waits until the kernel side asks for attention or the time is over.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.ring, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Hands on what is in the ring now, in batches of whole records, until `each` says `false`.
    /// Returns the number of bytes handed on.
    pub fn drain(&mut self, mut each: impl FnMut(Bytes) -> bool) -> usize {
        let mut total = 0;
        let mut batch = BytesMut::new();
        while let Some(item) = self.ring.next() {
            match whole_record(&item) {
                Some(record) => batch.extend_from_slice(record),
                None => self.malformed += 1,
            }
            drop(item);
            if batch.len() >= BATCH_BYTES {
                total += batch.len();
                if !each(batch.split().freeze()) {
                    return total;
                }
            }
        }
        total += batch.len();
        if !batch.is_empty() {
            each(batch.freeze());
        }
        total
    }

    /// Records whose length did not fit their place in the ring: always 0 unless our two halves disagree.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

/// The part of a ring item that the record says it fills.
fn whole_record(item: &[u8]) -> Option<&[u8]> {
    let len = usize::from(u16::from_le_bytes([*item.get(2)?, *item.get(3)?]));
    if len < HEAD_BYTES || len % 8 != 0 {
        None
    } else {
        item.get(..len)
    }
}

#[cfg(test)]
mod tests {
    use super::whole_record;

    fn check(len: u16, item: usize, expected: Option<usize>) {
        let mut bytes = vec![0; item];
        bytes[2..4].copy_from_slice(&len.to_le_bytes());
        assert_eq!(
            whole_record(&bytes).map(<[u8]>::len),
            expected,
            "length {len} in {item} bytes"
        );
    }

    #[test]
    fn a_record_is_what_its_length_says_if_that_fits() {
        check(32, 32, Some(32));
        check(32, 4096, Some(32));
        check(40, 32, None);
        check(0, 32, None);
        check(33, 64, None);
    }
}
