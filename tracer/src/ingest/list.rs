//! Lists in what the recorder writes into a capture: their length stands in the head of the record, their items behind it.
//!
//! Apart from the records that have them. Invariant: no more is allocated than there are bytes.

use bytes::{Buf as _, BufMut as _};

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

/// An address.
pub(super) fn address(from: &mut &[u8]) -> Option<u64> {
    from.try_get_u64_le().ok()
}

/// The next `count` addresses.
pub(super) fn addresses(from: &mut &[u8], count: u64) -> Option<Vec<u64>> {
    items(from, count, ADDRESS, address)
}

/// Puts a list behind its length; nothing for one that is empty, of which a flag in the head tells.
pub(super) fn put_some<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    if !items.is_empty() {
        out.put_u64_le(items.len() as u64);
    }
    for item in items {
        put(out, item);
    }
}

/// The next items, behind their number, if there is such a list; `None` if they are not there.
pub(super) fn counted<T>(
    from: &mut &[u8],
    is_there: bool,
    bytes: usize,
    item: impl Fn(&mut &[u8]) -> Option<T>,
) -> Option<Vec<T>> {
    if !is_there {
        return Some(Vec::new());
    }
    let count = from.try_get_u64_le().ok()?;
    items(from, count, bytes, item)
}
