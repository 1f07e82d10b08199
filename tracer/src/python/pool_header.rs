//! The header of a pymalloc pool: how many of its blocks are in use, as the interpreter itself counts.
//!
//! Apart from `pools`, which reads an image: this reads memory of a process, which is hostile and may change while
//! it is copied. Invariant: bytes that are no header of a pool at that address are never taken for one; every field
//! that the allocator keeps consistent is checked.
//!
//! The structure is the same from 3.9 to 3.15:
//! <https://github.com/python/cpython/blob/v3.9.18/Objects/obmalloc.c>,
//! <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L254-L264>.

use crate::units::ProcAddr;

/// Bytes of a header, `struct pool_header` on 64-bit machines; the first block follows.
pub const POOL_HEADER_BYTES: usize = 48;
/// Size classes: blocks of 16, 32, ... 512 bytes.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L157-L158>
pub const SIZE_CLASSES: usize = 32;
/// Bytes between two size classes.
const ALIGNMENT: u32 = 16;

/// A pool with blocks in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Index of its size class: its blocks have `16 * (class + 1)` bytes.
    pub class: usize,
    /// Blocks in use, at least 1.
    pub used: u32,
    /// Blocks that were handed out at least once since the pool has this class; two are made at once at the start.
    pub carved: u32,
    /// Index of its arena among those of its interpreter.
    pub arena: u32,
}

/// The pool at `address`, if the bytes there are the header of one with blocks in use. `pool_bytes` is the size of
/// a pool of this build; a header stands at a multiple of it.
pub fn pool_in_use(header: &[u8; POOL_HEADER_BYTES], address: ProcAddr, pool_bytes: u32) -> Option<Pool> {
    let (words, _) = header.as_chunks::<4>();
    let [
        count,
        _,
        free_low,
        free_high,
        _,
        _,
        _,
        _,
        arena,
        class,
        next,
        last,
    ] = *words.first_chunk()?;
    let [count, class, next, last] = [count, class, next, last].map(u32::from_le_bytes);
    let free = u64::from(u32::from_le_bytes(free_high)) << 32 | u64::from(u32::from_le_bytes(free_low));
    let index = usize::try_from(class)
        .ok()
        .filter(|&class| class < SIZE_CLASSES)?;
    let size = (class + 1) * ALIGNMENT;
    let header_bytes = u32::try_from(POOL_HEADER_BYTES).ok()?;
    let room = pool_bytes.checked_sub(header_bytes)?;
    // Where the next block that was never used starts, counted in blocks: two are made at once at the start, and past
    // the last one it stays.
    let carved = next.checked_sub(header_bytes)?;
    let free_is_inside = free == 0
        || free
            .checked_sub(address.get())
            .is_some_and(|by| (u64::from(header_bytes)..u64::from(pool_bytes)).contains(&by));
    let is_pool = (1..=room / size).contains(&count)
        && last == pool_bytes.checked_sub(size)?
        && carved % size == 0
        && carved >= size
        && carved <= room
        && free_is_inside;
    is_pool.then_some(Pool {
        class: index,
        used: count,
        carved: carved / size,
        arena: u32::from_le_bytes(arena),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADDRESS: ProcAddr = ProcAddr(0x7f00_0001_4000);

    /// A header as the allocator would leave it.
    fn header(count: u32, free: u64, class: u32, next: u32, last: u32) -> [u8; POOL_HEADER_BYTES] {
        let mut bytes = Vec::new();
        bytes.extend(u64::from(count).to_le_bytes());
        bytes.extend(free.to_le_bytes());
        bytes.extend([0x11; 16]);
        for word in [3, class, next, last] {
            bytes.extend(word.to_le_bytes());
        }
        *bytes.first_chunk().unwrap_or(&[0; POOL_HEADER_BYTES])
    }

    #[track_caller]
    fn check(header: [u8; POOL_HEADER_BYTES], pool_bytes: u32, expected: Option<(usize, u32)>) {
        let found = pool_in_use(&header, ADDRESS, pool_bytes);
        assert_eq!(found.map(|pool| (pool.class, pool.used)), expected);
    }

    #[test]
    fn a_pool_in_use_tells_its_class_and_count() {
        // Just made, half used, full with all blocks carved.
        check(
            header(1, ADDRESS.get() + 48 + 64, 3, 48 + 128, 16384 - 64),
            16384,
            Some((3, 1)),
        );
        check(
            header(5, ADDRESS.get() + 48, 3, 48 + 640, 16384 - 64),
            16384,
            Some((3, 5)),
        );
        check(
            header(255, 0, 3, 48 + 255 * 64, 16384 - 64),
            16384,
            Some((3, 255)),
        );
        check(header(7, 0, 31, 48 + 7 * 512, 4096 - 512), 4096, Some((31, 7)));
    }

    #[test]
    fn what_is_no_pool_in_use_is_nothing() {
        let free = ADDRESS.get() + 48;
        check([0; POOL_HEADER_BYTES], 16384, None);
        check([0xff; POOL_HEADER_BYTES], 16384, None);
        // Empty; more than fits; no such class; another pool size; torn offsets; a foreign list of free blocks.
        check(header(0, free, 3, 48 + 128, 16384 - 64), 16384, None);
        check(header(256, free, 3, 48 + 128, 16384 - 64), 16384, None);
        check(header(1, free, 32, 48 + 128, 16384 - 64), 16384, None);
        check(header(1, free, 3, 48 + 128, 4096 - 64), 16384, None);
        check(header(1, free, 3, 48 + 100, 16384 - 64), 16384, None);
        check(header(1, free, 3, 40, 16384 - 64), 16384, None);
        check(header(1, free, 3, 48 + 256 * 64, 16384 - 64), 16384, None);
        check(
            header(1, ADDRESS.get() + 16384, 3, 48 + 128, 16384 - 64),
            16384,
            None,
        );
        check(
            header(1, ADDRESS.get() - 64, 3, 48 + 128, 16384 - 64),
            16384,
            None,
        );
        check(header(1, free, 3, 48 + 128, 16384 - 64), 0, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_nothing_or_a_count_that_fits(
            bytes in any::<[u8; 32]>(),
            class in any::<u32>(),
            tail in any::<[u32; 2]>(),
            pool_bytes in prop_oneof![Just(4096u32), Just(16384u32), any::<u32>()],
        ) {
            let mut header = [0; POOL_HEADER_BYTES];
            header.iter_mut().zip(bytes.into_iter().chain([0; 4])).for_each(|(to, from)| *to = from);
            let words = [class % 40, tail[0], tail[1]].into_iter().flat_map(u32::to_le_bytes);
            header.iter_mut().skip(36).zip(words).for_each(|(to, from)| *to = from);
            if let Some(pool) = pool_in_use(&header, ADDRESS, pool_bytes) {
                let size = u64::from(ALIGNMENT) * (pool.class as u64 + 1);
                prop_assert!(pool.class < SIZE_CLASSES);
                prop_assert!(u64::from(pool.used) * size + 48 <= u64::from(pool_bytes));
            }
        }

        #[test]
        fn the_count_of_a_sound_header_is_found(class in 0u32..32, used in 1u32..1021, small in any::<bool>()) {
            let pool_bytes = if small { 4096 } else { 16384 };
            let size = 16 * (class + 1);
            let most = (pool_bytes - 48) / size;
            let used = 1 + used % most;
            let header = header(used, 0, class, 48 + used * size, pool_bytes - size);
            let expected = Pool { class: class as usize, used, carved: used, arena: 3 };
            prop_assert_eq!(pool_in_use(&header, ADDRESS, pool_bytes), Some(expected));
        }
    }
}
