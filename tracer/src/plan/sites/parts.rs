//! Which ranges of the call frame information are functions of their own, and which are only parts of one.
//!
//! A compiler moves what is seldom run out of a function (`.cold`), and such a part has an entry of its own. A way back
//! through the code must not end there. A part is what nothing refers to but direct jumps: no call, no address in code,
//! none in data; the tables of relocations and of dynamic symbols are such data, too. In doubt, as with bytes that only
//! look like a reference, it is a function.

use std::ops::RangeInclusive;

use super::{body::jump_target, code::Code, words};

/// Bits for 64 MiB of code.
const MAX_WORDS: usize = 1 << 20;

/// How far a jump of one byte leads, with its own length.
const SHORT: u64 = 130;

/// The places that ways into functions lead to by something else than a direct jump; `None` if there is more code than
/// is looked at.
#[derive(Debug)]
pub(super) struct Entries(Option<Marks>);

impl Code<'_> {
    /// Whether ways begin at `address`: it is the start of a function, and not of a part of one.
    pub(super) fn begins(&self, address: u64) -> bool {
        let is_entered = |known: &Marks| known.contains(address);
        self.is_start(address)
            && (self.entries().0.as_ref().is_none_or(is_entered) || self.is_sibling(address))
    }

    /// Whether a function close by jumps there with one byte. Ways back do not know such jumps
    /// ([`Code::predecessors`]), so they must end there.
    fn is_sibling(&self, address: u64) -> bool {
        let Some(own) = self.function_at(address) else {
            return false;
        };
        let close = address.saturating_sub(SHORT)..address.saturating_add(SHORT);
        close.filter(|from| !own.contains(from)).any(|from| {
            self.at(from).is_some_and(|jump| {
                jump_target(&jump) == Some(address) && !jump.is_jmp_near() && !jump.is_jcc_near()
            })
        })
    }

    /// One pass over code and data.
    pub(super) fn find_entries(&self) -> Entries {
        let ranges = self.functions().ranges();
        let (Some(mut found), Some(mut starts)) = (Marks::over(ranges), Marks::over(ranges)) else {
            return Entries(None);
        };
        // Starts of ranges only: whatever else is marked is not asked for ([`Code::begins`]). Most words of code lead
        // elsewhere, and a bit tells that sooner than the bytes before them.
        for (start, _) in ranges {
            starts.add(*start);
        }
        for segment in self.elf().segments() {
            let Some(bytes) = self.elf().bytes_from(segment.address) else {
                continue;
            };
            if segment.executable {
                words::within(bytes, segment.address, &found.span(), |index, word| {
                    if !starts.contains(word.address) {
                        return;
                    }
                    let before = bytes.get(index.saturating_sub(2)..index).unwrap_or_default();
                    if !matches!(before, [.., 0xe9] | [0x0f, 0x80..=0x8f]) {
                        found.add(word.address);
                    }
                });
            } else {
                for word in bytes.as_chunks().0 {
                    found.add(u64::from_le_bytes(*word));
                }
            }
        }
        Entries(Some(found))
    }
}

/// Places in code, as bits: many are noted, with every few bytes of the code.
#[derive(Debug)]
struct Marks {
    lowest: u64,
    highest: u64,
    bits: Vec<u64>,
}

impl Marks {
    /// None yet, from the start of the first range to that of the last one.
    fn over(ranges: &[(u64, u64)]) -> Option<Self> {
        let lowest = ranges.first().map_or(0, |(start, _)| *start);
        let highest = ranges.last().map_or(0, |(start, _)| *start);
        let (words, _) = place(highest - lowest);
        (words < MAX_WORDS).then(|| Self {
            lowest,
            highest,
            bits: vec![0; words + 1],
        })
    }

    fn span(&self) -> RangeInclusive<u64> {
        self.lowest..=self.highest
    }

    fn add(&mut self, address: u64) {
        let (word, bit) = place(address.wrapping_sub(self.lowest));
        if let Some(word) = self.bits.get_mut(word) {
            *word |= bit;
        }
    }

    fn contains(&self, address: u64) -> bool {
        let (word, bit) = place(address.wrapping_sub(self.lowest));
        self.bits.get(word).is_some_and(|bits| bits & bit != 0)
    }
}

/// Word and bit of a distance.
fn place(distance: u64) -> (usize, u64) {
    (
        usize::try_from(distance / 64).unwrap_or(usize::MAX),
        1 << (distance % 64),
    )
}
