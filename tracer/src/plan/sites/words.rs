//! Four bytes of code, wherever they begin, read as an address.
//!
//! Apart because whatever enumerates references passes over all of the code with it: millions of words, of which few
//! can mean anything. Invariant: every place is read in both ways, whatever instruction it belongs to.

use std::ops::RangeInclusive;

use crate::units::VirtAddr;

/// How four bytes are an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// As the distance from behind them.
    Displacement,
    /// As they stand, their sign extended.
    Absolute,
}

/// Four bytes that are an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Where they stand.
    pub(super) place: u64,
    pub(super) reading: Reading,
    /// What they say.
    pub(super) address: u64,
}

/// Calls `found` for each word of `bytes`, which stand at `start`, that is an address in `span`, with its distance
/// from the start.
pub(super) fn within(
    bytes: &[u8],
    start: VirtAddr,
    span: &RangeInclusive<u64>,
    mut found: impl FnMut(usize, Word),
) {
    let lowest = *span.start();
    let Some(width) = span.end().checked_sub(lowest) else {
        return;
    };
    for (index, word) in bytes.array_windows::<4>().enumerate() {
        let place = start.get().wrapping_add(index as u64);
        let value = i64::from(i32::from_le_bytes(*word)).cast_unsigned();
        let behind = place.wrapping_add(4).wrapping_add(value);
        if behind.wrapping_sub(lowest) <= width {
            found(
                index,
                Word {
                    place,
                    reading: Reading::Displacement,
                    address: behind,
                },
            );
        }
        if value.wrapping_sub(lowest) <= width {
            found(
                index,
                Word {
                    place,
                    reading: Reading::Absolute,
                    address: value,
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], span: RangeInclusive<u64>, expected: &[(u64, Reading, u64)]) {
        let mut found = Vec::new();
        within(bytes, VirtAddr(0x1000), &span, |index, word| {
            assert_eq!(word.place, 0x1000 + index as u64);
            found.push((word.place, word.reading, word.address));
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_displacement_counts_from_behind_itself() {
        check(
            &[0xe8, 0xfb, 0xff, 0xff, 0xff],
            0x1000..=0x1000,
            &[(0x1001, Reading::Displacement, 0x1000)],
        );
    }

    #[test]
    fn a_word_is_also_read_as_it_stands() {
        check(
            &[0xbf, 0x78, 0x56, 0x34, 0x12],
            0x1234_5678..=0x1234_5678,
            &[(0x1001, Reading::Absolute, 0x1234_5678)],
        );
    }

    #[test]
    fn the_ends_of_the_span_belong_to_it() {
        let word = 0x10_u32.to_le_bytes();
        check(&word, 0x1014..=0x1020, &[(0x1000, Reading::Displacement, 0x1014)]);
        check(&word, 0x1000..=0x1014, &[(0x1000, Reading::Displacement, 0x1014)]);
        check(&word, 0x1015..=0x1020, &[]);
        check(&word, 0x1000..=0x1013, &[]);
    }

    #[test]
    fn fewer_than_four_bytes_say_nothing() {
        check(&[0, 0, 0], 0..=u64::MAX, &[]);
    }
}
