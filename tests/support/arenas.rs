//! What the interpreter's allocator takes for itself at the line that happens to need it.

/// Usable bytes of a leaf of the radix tree of arenas, which is made when an arena comes to stand in another part of the address
/// space: 2^8 entries of 8 bytes where 48 bits of an address count (3.10; another 256 MiB), 2^14 where 64 do (another 16 GiB), which libc
/// takes from its heap or maps, in whole pages. Where arenas stand differs from run to run.
/// <https://github.com/python/cpython/blob/3.13/Include/internal/pycore_obmalloc.h>
const LEAVES: [u64; 3] = [2056, 131_080, 135_152];

/// Whether bytes are right, or would be without one such leaf.
pub(crate) fn right_but_for_a_leaf(bytes: u64, is_right: impl Fn(u64) -> bool) -> bool {
    is_right(bytes)
        || LEAVES
            .iter()
            .any(|leaf| bytes.checked_sub(*leaf).is_some_and(&is_right))
}
