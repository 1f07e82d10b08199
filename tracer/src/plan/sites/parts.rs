//! Which ranges of the call frame information are functions of their own, and which are only parts of one.
//!
//! A compiler moves what is seldom run out of a function (`.cold`), and such a part has an entry of its own. A way back
//! through the code must not end there. A part is what nothing refers to but direct jumps: no call, no address in code,
//! none in data; the tables of relocations and of dynamic symbols are such data, too. In doubt, as with bytes that only
//! look like a reference, it is a function.

use rustc_hash::FxHashSet;

use super::{body::jump_target, code::Code};

/// Bits for 64 MiB of code.
const MAX_WORDS: usize = 1 << 20;

/// How far a jump of one byte leads, with its own length.
const SHORT: u64 = 130;

/// The places that ways into functions lead to by something else than a direct jump; `None` if there is more code than
/// is looked at.
#[derive(Debug)]
pub(super) struct Entries(Option<FxHashSet<u64>>);

impl Code<'_> {
    /// Whether ways begin at `address`: it is the start of a function, and not of a part of one.
    pub(super) fn begins(&self, address: u64) -> bool {
        let is_entered = |known: &FxHashSet<u64>| known.contains(&address);
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
        let Some(starts) = Starts::of(self.functions().ranges()) else {
            return Entries(None);
        };
        let mut found = FxHashSet::default();
        let mut add = |address: u64| {
            if starts.contains(address) {
                found.insert(address);
            }
        };
        for segment in self.elf().segments() {
            let Some(bytes) = self.elf().bytes_from(segment.address) else {
                continue;
            };
            let start = segment.address.get();
            if segment.executable {
                let mut before = [0_u8; 2];
                for (window, index) in bytes.array_windows::<4>().zip(0_u64..) {
                    let value = i64::from(i32::from_le_bytes(*window)).cast_unsigned();
                    let is_jump = matches!(before, [_, 0xe9] | [0x0f, 0x80..=0x8f]);
                    if !is_jump {
                        add(start.wrapping_add(index).wrapping_add(4).wrapping_add(value));
                        add(value);
                    }
                    let [first, ..] = *window;
                    before = [before[1], first];
                }
            } else {
                for word in bytes.as_chunks().0 {
                    add(u64::from_le_bytes(*word));
                }
            }
        }
        Entries(Some(found))
    }
}

/// The starts of ranges, as bits: they are asked for with every four bytes of the code.
struct Starts {
    lowest: u64,
    bits: Vec<u64>,
}

impl Starts {
    fn of(ranges: &[(u64, u64)]) -> Option<Self> {
        let lowest = ranges.first().map_or(0, |(start, _)| *start);
        let last = ranges.last().map_or(0, |(start, _)| *start);
        let (words, _) = place(last - lowest);
        if words >= MAX_WORDS {
            return None;
        }
        let mut bits = vec![0; words + 1];
        for (start, _) in ranges {
            let (word, bit) = place(start - lowest);
            if let Some(word) = bits.get_mut(word) {
                *word |= bit;
            }
        }
        Some(Self { lowest, bits })
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
