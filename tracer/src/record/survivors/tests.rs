//! Looks at a pool of one arena, as its memory would be; the walk of hostile memory as well.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;

use super::{
    super::content::{WORDS_BYTES, Words, words},
    *,
};

const POOL: u64 = 0x7f00_0001_0000;
const BYTES: usize = 4096;
const TYPE: u64 = 0x55_0000;
const META: u64 = 0x58_0000;
const NONE: u64 = 0x66_0000;

fn address(block: u64) -> u64 {
    POOL + 48 + 64 * block
}

/// A pool of 64-byte blocks of which ten were handed out, objects of one type; these are free again, in this order.
fn pool(free: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    for block in 0..10 {
        put(&mut bytes, address(block) + 8, TYPE);
    }
    let mut at = POOL + 8;
    for &block in free {
        put(&mut bytes, at, address(block));
        at = address(block);
    }
    put(&mut bytes, at, 0);
    put(&mut bytes, POOL + 40, 48 + 64 * 10);
    bytes
}

fn put(bytes: &mut [u8], at: u64, value: u64) {
    let at = usize::try_from(at - POOL).unwrap_or(usize::MAX);
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn state(class: u8, used: u16) -> PoolState {
    PoolState {
        address: POOL,
        class,
        used,
        carved: 10,
        arena: 0,
    }
}

fn add(survivors: &mut Survivors, blocks: &[u64], time: u64) {
    for &block in blocks {
        assert!(survivors.add(ProcAddr(address(block)), ByteCount(64), MonotonicNs(time)));
    }
}

/// Seen at 5, in a window up to 6.
fn survivors(blocks: &[u64]) -> Survivors {
    let mut survivors = Survivors::default();
    add(&mut survivors, blocks, 5);
    survivors.window_over(MonotonicNs(6), false, usize::MAX);
    survivors
}

/// Memory that holds one pool, which must not be read as a whole if it is full.
struct Held<'a> {
    bytes: &'a [u8],
    is_full: bool,
}

impl Memory for Held<'_> {
    fn pool(&mut self, at: ProcAddr) -> io::Result<Option<Vec<u8>>> {
        assert_eq!((at, self.is_full), (ProcAddr(POOL), false));
        Ok((!self.bytes.is_empty()).then(|| self.bytes.to_vec()))
    }

    fn words(&mut self, places: &[ProcAddr]) -> io::Result<Vec<Option<Words>>> {
        let at = |place: &ProcAddr| {
            if place.get() < POOL {
                return Some(of_type(*place));
            }
            assert!(self.is_full);
            let from = usize::try_from(place.get() - POOL).ok()?;
            self.bytes.get(from..)?.first_chunk().copied()
        };
        Ok(places.iter().map(at).collect())
    }
}

/// Memory of which nothing is known: no pool is there, or nothing can be read.
struct Unread(bool);

impl Memory for Unread {
    fn pool(&mut self, _: ProcAddr) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn words(&mut self, places: &[ProcAddr]) -> io::Result<Vec<Option<Words>>> {
        if self.0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(vec![Some([0; WORDS_BYTES]); places.len()])
    }
}

/// What is behind the count of a type, and of its type; `NONE` is an object of a type.
fn of_type(place: ProcAddr) -> Words {
    let type_ = if place.get() == NONE + 8 { TYPE } else { META };
    words(&type_.to_le_bytes())
}

#[track_caller]
fn look(survivors: &mut Survivors, of: Of, state: PoolState, bytes: &[u8]) -> Found {
    let is_full = state.used == state.carved;
    let (first, last) = survivors.due(of, MonotonicNs(1000)).unwrap();
    let held = Held { bytes, is_full };
    survivors.check(first, last, 4096, &[state], held).unwrap()
}

#[track_caller]
fn check_in(survivors: &mut Survivors, state: PoolState, bytes: &[u8], gone: &[u64]) {
    let found = look(survivors, Of::AllWindows, state, bytes);
    let blocks: Vec<u64> = found.gone.iter().map(|addr| (addr - POOL - 48) / 64).collect();
    assert_eq!((blocks.as_slice(), found.left), (gone, Vec::new()));
}

#[track_caller]
fn check(survivors: &mut Survivors, bytes: &[u8], gone: &[u64]) {
    check_in(survivors, state(3, 7), bytes, gone);
}

#[test]
fn a_block_that_is_free_or_was_never_handed_out_is_gone_and_told_of_once() {
    let mut survivors = survivors(&[1, 2, 3, 12]);
    check(&mut survivors, &pool(&[7, 2]), &[2, 12]);
    check(&mut survivors, &pool(&[1, 7, 2]), &[1]);
    check(&mut survivors, &pool(&[7]), &[]);
    // It is not there any more.
    check(&mut survivors, &[], &[3]);
    assert!(survivors.samples.is_empty());
}

#[test]
fn of_a_process_that_cannot_be_read_nothing_is_told() {
    let mut survivors = survivors(&[1, 2]);
    let found = survivors.check(0, 6, 4096, &[state(3, 10)], Unread(true));
    assert_eq!(found.unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(survivors.samples.len(), 2);
}

#[test]
fn all_blocks_of_a_full_pool_are_in_use() {
    let mut survivors = survivors(&[1, 2]);
    let mut bytes = pool(&[]);
    check_in(&mut survivors, state(3, 10), &bytes, &[]);
    put(&mut bytes, address(1) + 16, 1);
    check_in(&mut survivors, state(3, 10), &bytes, &[1]);
}

#[test]
fn a_block_that_is_another_object_now_is_gone() {
    let mut survivors = survivors(&[1, 2]);
    let mut bytes = pool(&[]);
    check(&mut survivors, &bytes, &[]);
    put(&mut bytes, address(2) + 8, TYPE + 8);
    check(&mut survivors, &bytes, &[2]);
}

#[test]
fn what_blocks_share_that_is_no_type_may_change() {
    let mut survivors = survivors(&[1, 2]);
    let mut bytes = pool(&[]);
    for block in [1, 2] {
        put(&mut bytes, address(block) + 8, NONE);
    }
    check(&mut survivors, &bytes, &[]);
    put(&mut bytes, address(2) + 8, NONE + 8);
    put(&mut bytes, address(1) + 16, 7);
    check(&mut survivors, &bytes, &[]);
}

#[test]
fn the_last_block_of_a_pool_is_read_without_what_is_behind_it() {
    let mut survivors = survivors(&[]);
    let mut bytes = vec![0; BYTES];
    let blocks = [POOL + 4096 - 16, POOL + 4096 - 32];
    for at in blocks {
        assert!(survivors.add(ProcAddr(at), ByteCount(16), MonotonicNs(5)));
        put(&mut bytes, at + 8, TYPE);
    }
    let full = state(0, 10);
    assert_eq!(
        look(&mut survivors, Of::AllWindows, full, &bytes),
        Found::default()
    );
    put(&mut bytes, blocks[0] + 8, TYPE + 8);
    let found = look(&mut survivors, Of::AllWindows, full, &bytes);
    assert_eq!(found.gone, [blocks[0]]);
}

#[test]
fn a_block_whose_pool_is_another_classs_is_gone() {
    let mut survivors = survivors(&[1, 2]);
    check(&mut survivors, &pool(&[]), &[]);
    check_in(&mut survivors, state(4, 7), &pool(&[]), &[1, 2]);
}

#[test]
fn a_window_is_looked_at_as_a_whole_once_it_is_over_and_known() {
    let mut survivors = Survivors::default();
    let due = |survivors: &Survivors, of, settled| survivors.due(of, MonotonicNs(settled));
    add(&mut survivors, &[1], 5);
    assert_eq!(due(&survivors, Of::AllWindows, 99), None);
    survivors.window_over(MonotonicNs(6), false, usize::MAX);
    for of in [Of::AllWindows, Of::NewestWindow] {
        assert_eq!(due(&survivors, of, 6), None);
    }
    assert_eq!(due(&survivors, Of::AllWindows, 7), Some((0, 6)));
    assert_eq!(due(&survivors, Of::NewestWindow, 7), Some((1, 6)));
    survivors.window_over(MonotonicNs(20), false, usize::MAX);
    assert_eq!(due(&survivors, Of::AllWindows, 20), Some((0, 6)));
    assert_eq!(due(&survivors, Of::NewestWindow, 20), None);
    assert_eq!(due(&survivors, Of::NewestWindow, 21), Some((7, 20)));
    // Blocks are of the window in which they were allocated, however late that is told.
    add(&mut survivors, &[2, 4], 20);
    add(&mut survivors, &[3], 6);
    add(&mut survivors, &[5], 21);
    assert_eq!(survivors.pools(22, 99, 4096), []);
    assert_eq!(survivors.pools(7, 20, 4096), [ProcAddr(POOL)]);
    let bytes = pool(&[1, 2, 3, 5]);
    let found = look(&mut survivors, Of::NewestWindow, state(3, 7), &bytes);
    assert_eq!(found.gone, [address(2)]);
    check(&mut survivors, &bytes, &[1, 3]);
}

#[test]
fn of_too_many_some_are_left_and_told_of() {
    let mut survivors = Survivors::default();
    let of_window = |survivors: &mut Survivors, window: u64, blocks: u64| {
        for block in 0..blocks {
            let addr = POOL + (window << 20) + 64 * block;
            survivors.add(ProcAddr(addr), ByteCount(64), MonotonicNs(5 + window * 10));
        }
        survivors.window_over(MonotonicNs(6 + window * 10), false, usize::MAX);
    };
    // All of them are in pools that are in use and have no free block.
    let pools: Vec<PoolState> = (0..1 << 12)
        .map(|pool| PoolState {
            address: POOL + (pool << 12),
            ..state(3, 10)
        })
        .collect();
    let look = |survivors: &mut Survivors| {
        let (first, last) = survivors.due(Of::AllWindows, MonotonicNs(1000)).unwrap();
        let found = survivors.check(first, last, 4096, &pools, Unread(false)).unwrap();
        assert!(found.gone.is_empty());
        (found.left.len(), found.refused.len())
    };
    of_window(&mut survivors, 0, 1100);
    assert_eq!(look(&mut survivors), (1100 - MOST_NEW, 0));
    assert_eq!(look(&mut survivors), (0, 0));
    of_window(&mut survivors, 1, 1100);
    assert_eq!(look(&mut survivors), (1100 - MOST_NEW, 0));
    of_window(&mut survivors, 2, 1100);
    of_window(&mut survivors, 3, 1100);
    // One window was not looked at before it was old.
    let left = 2 * MOST_NEW + 1100 - MOST_OLD + 1100 - MOST_NEW;
    assert_eq!(look(&mut survivors), (left, 0));
    assert_eq!(survivors.samples.len(), MOST_NEW + MOST_OLD);
    // What has no room is told of as well.
    of_window(&mut survivors, 4, MAX_SAMPLES as u64);
    assert_eq!(
        (survivors.samples.len(), survivors.refused.len()),
        (MAX_SAMPLES, MOST_NEW + MOST_OLD)
    );
    let left = MAX_SAMPLES - MOST_NEW - MOST_OLD;
    assert_eq!(look(&mut survivors), (left, MOST_NEW + MOST_OLD));
    survivors.window_over(MonotonicNs(60), false, 100);
    assert_eq!(look(&mut survivors), (MOST_NEW + MOST_OLD - 100, 0));
}

#[test]
fn one_that_finds_room_later_is_not_refused() {
    let mut survivors = survivors(&[]);
    let at = |block: u64| ProcAddr(POOL + 64 * block);
    for block in 0..=MAX_SAMPLES as u64 {
        assert!(survivors.add(at(block), ByteCount(64), MonotonicNs(5)));
    }
    let refused = at(MAX_SAMPLES as u64);
    assert!(!survivors.add(refused, ByteCount(64), MonotonicNs(5)));
    assert_eq!(survivors.refused.len(), 1);
    survivors.samples.remove(&at(0).get());
    assert!(survivors.add(refused, ByteCount(64), MonotonicNs(5)));
    assert!(survivors.refused.is_empty());
}

#[test]
fn what_an_open_window_has_no_room_for_is_told_of_when_that_is_looked_at() {
    let mut survivors = survivors(&[]);
    for block in 0..=MAX_SAMPLES as u64 {
        survivors.add(ProcAddr(POOL + 64 * block), ByteCount(64), MonotonicNs(9));
    }
    let refused = |survivors: &mut Survivors, of| {
        let found = look(survivors, of, state(3, 10), &pool(&[]));
        found.refused.len()
    };
    assert_eq!(refused(&mut survivors, Of::AllWindows), 0);
    survivors.window_over(MonotonicNs(10), false, usize::MAX);
    assert_eq!(refused(&mut survivors, Of::NewestWindow), 1);
    assert_eq!(refused(&mut survivors, Of::AllWindows), 0);
}

proptest! {
    #[test]
    fn whatever_the_memory_holds_the_walk_ends(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        first in any::<u64>(),
        near in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if let Some(place) = bytes.get_mut(8..16) {
            let at = if near { POOL + first % 300 } else { first };
            place.copy_from_slice(&at.to_le_bytes());
        }
        let mut survivors = survivors(&[0, 1, 2]);
        let found = look(&mut survivors, Of::AllWindows, state(3, 7), &bytes);
        prop_assert!(found.gone.len() + survivors.samples.len() == 3);
    }
}

#[test]
fn of_a_short_window_only_what_can_be_told_from_others_is_looked_at() {
    let mut survivors = Survivors::default();
    add(&mut survivors, &[1, 2, 3, 4, 5], 5);
    survivors.window_over(MonotonicNs(6), true, usize::MAX);
    // In a window that is open.
    add(&mut survivors, &[6], 9);
    let mut bytes = pool(&[]);
    put(&mut bytes, address(3) + 16, 7);
    // Two objects that the collector knows.
    for block in [4, 5] {
        put(&mut bytes, address(block) + 8, 0);
        put(&mut bytes, address(block) + 24, TYPE);
        put(&mut bytes, address(block) + 40, block);
    }
    let found = look(&mut survivors, Of::AllWindows, state(3, 10), &bytes);
    let refused: Vec<u64> = found.refused.iter().map(|addr| (addr - POOL - 48) / 64).collect();
    assert_eq!((refused, found.gone), (vec![1, 2, 4, 5], Vec::new()));
    assert_eq!(survivors.samples.len(), 2);
}
