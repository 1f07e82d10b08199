//! A second way to a line table: the memory of a process that still runs.
//!
//! The kernel side sends line tables with the code objects. Where it could not (page not present, table too
//! long), a recorder may read it while the process lives. Apart as a trait, so that a replay of a capture
//! does no IO and tests need no process.

use crate::units::{Pid, ProcAddr};

/// Longest line table that is worth reading, bytes.
const MAX_TABLE: u64 = 4 << 20;
/// From `PyBytesObject.ob_sval` back to `ob_size`, with `ob_shash` between them, in every 64-bit build.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/cpython/bytesobject.h>
const SIZE_BEFORE_DATA: u64 = 16;

/// Reads a process's memory. Given by a recorder; absent when a capture is replayed.
pub trait Memory {
    /// Exactly `len` bytes at `addr`, or nothing. Must check that the pid still is the same process.
    fn read(&mut self, pid: Pid, addr: ProcAddr, len: usize) -> Option<Vec<u8>>;
}

/// The line table whose first byte is at `table`; its length is read too if it is not known.
pub fn recover_line_table(
    memory: &mut dyn Memory,
    pid: Pid,
    table: ProcAddr,
    len: Option<u32>,
) -> Option<Vec<u8>> {
    let len = if let Some(len) = len {
        u64::from(len)
    } else {
        let bytes = memory.read(pid, ProcAddr(table.0.checked_sub(SIZE_BEFORE_DATA)?), 8)?;
        u64::from_le_bytes(bytes.try_into().ok()?)
    };
    if table.0 == 0 || len > MAX_TABLE {
        return None;
    }
    let len = usize::try_from(len).ok()?;
    memory.read(pid, table, len).filter(|bytes| bytes.len() == len)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        base: u64,
        bytes: Vec<u8>,
    }

    impl Memory for Fake {
        fn read(&mut self, _: Pid, addr: ProcAddr, len: usize) -> Option<Vec<u8>> {
            let start = usize::try_from(addr.0.checked_sub(self.base)?).ok()?;
            self.bytes.get(start..start.checked_add(len)?).map(<[u8]>::to_vec)
        }
    }

    #[test]
    fn the_length_is_taken_from_the_bytes_object_and_bounded() {
        let mut bytes = 3_u64.to_le_bytes().to_vec();
        bytes.extend([0xff; 8]);
        bytes.extend([1, 2, 3, 0]);
        let mut memory = Fake { base: 0x1000, bytes };
        let read = |memory: &mut Fake, len| recover_line_table(memory, Pid(1), ProcAddr(0x1010), len);
        assert_eq!(read(&mut memory, None), Some(vec![1, 2, 3]));
        assert_eq!(read(&mut memory, Some(2)), Some(vec![1, 2]));
        assert_eq!(read(&mut memory, Some(99)), None);
        memory.bytes.splice(..8, u64::MAX.to_le_bytes());
        assert_eq!(read(&mut memory, None), None);
        assert_eq!(recover_line_table(&mut memory, Pid(1), ProcAddr(3), None), None);
    }
}
