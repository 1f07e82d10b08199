//! Lists in what the recorder writes into a capture: their length stands in the head of the record, their items behind it.
//!
//! Apart from the records that have them. Invariant: no more is allocated than there are bytes.

use bytes::Buf as _;

/// Bytes of an address.
pub(super) const ADDRESS: usize = 8;

/// How many items there are, as a head says it.
pub(super) fn length<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

/// The next `count` items, of so many bytes each; `None` if they are not there.
pub(super) fn items<T>(
    from: &mut &[u8],
    count: u64,
    bytes: usize,
    item: impl Fn(&mut &[u8]) -> Option<T>,
) -> Option<Vec<T>> {
    let all = usize::try_from(count).ok()?.checked_mul(bytes)?;
    let (mut items, rest) = from.split_at_checked(all)?;
    *from = rest;
    (0..count).map(|_| item(&mut items)).collect()
}

/// The next `count` addresses.
pub(super) fn addresses(from: &mut &[u8], count: u64) -> Option<Vec<u64>> {
    items(from, count, ADDRESS, |from| from.try_get_u64_le().ok())
}
