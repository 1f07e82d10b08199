//! How large a pymalloc pool is in an image: read from the mask with which a block's pool is found.
//!
//! 4 KiB up to 3.9, 16 KiB with the radix tree (3.10+, a build option):
//! <https://github.com/python/cpython/blob/v3.12.0/Include/internal/pycore_obmalloc.h#L195-L215>.

use iced_x86::Mnemonic;

use super::{
    allocator::AllocatorTables,
    flow::{Next, explore},
    version::Version,
};
use crate::elf::Elf;

/// The sizes that exist.
const SIZES: [u32; 2] = [4096, 16384];
/// Instructions followed in `_PyObject_Free`.
const LIMIT: usize = 400;

/// Bytes of a pool; the version's default if the code does not show it.
pub(super) fn bytes(elf: &Elf<'_>, version: Version, tables: AllocatorTables) -> u32 {
    let mut found = None;
    if let Some(free) = tables.obj.checked_add(32).and_then(|slot| elf.address_at(slot)) {
        explore(elf, free, LIMIT, &mut |step| {
            if step.instruction.mnemonic() == Mnemonic::And
                && let Ok(mask) = step.instruction.try_immediate(1)
            {
                found = SIZES.into_iter().find(|size| mask == !u64::from(size - 1));
            }
            if found.is_some() { Next::Stop } else { Next::Go }
        });
    }
    found.unwrap_or(if version.minor <= 9 { 4096 } else { 16384 })
}
