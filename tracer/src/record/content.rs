//! What the first words of a block say about which object is in it: two looks at a block that find different ones have looked at
//! two objects.
//!
//! Apart from `survivors`, which looks. An object's type does not change. What stands where types do in several blocks may be one, or
//! an item or an attribute that they share: whether it is a type the memory tells (`types`). Invariant: any bytes are a content, and
//! what is not known differs from nothing.

use rustc_hash::FxHashMap;

/// Where the words of a block begin that are looked at.
pub(super) const WORDS_FROM: u64 = 8;
/// Bytes of them.
pub(super) const WORDS_BYTES: usize = 56;
/// No type is below: the kernel keeps these addresses free.
const LEAST_ADDRESS: u64 = 1 << 16;
/// Where a type can stand, in words from [`WORDS_FROM`]: behind a count; the same behind the two words of the collector; and the
/// same behind two more, of objects whose attributes are in a dict (from 3.11 on).
/// <https://github.com/python/cpython/blob/v3.13.0/Objects/object_layout.md>
const TYPE_AT: [usize; 3] = [0, 2, 4];

/// The second word of a block and the six behind it.
pub(super) type Words = [u8; WORDS_BYTES];

/// What does not change of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Content {
    /// Where its type stands.
    place: usize,
    type_: u64,
    /// What follows: a size and a hash, digits, a value. Behind the collector's words there is what changes.
    more: [u64; 2],
    /// And what comes then: the first characters of a text.
    rest: [u64; 4],
}

/// What several blocks have where types stand.
pub(super) struct Types(FxHashMap<(usize, u64), u32>);

impl Content {
    /// Whether it tells an object from others of its type: nothing is known of those that can change.
    pub(super) fn is_telling(&self) -> bool {
        self.place == 0
    }
}

impl Types {
    /// Of blocks of a size with these words.
    pub(super) fn of<'a>(blocks: impl Iterator<Item = (u64, &'a Words)>) -> Self {
        let mut times = FxHashMap::default();
        for (size, words) in blocks {
            for place in places(size) {
                let value = word(words, place);
                if value >= LEAST_ADDRESS && value.is_multiple_of(8) {
                    *times.entry((place, value)).or_default() += 1;
                }
            }
        }
        times.retain(|_, times| *times > 1);
        Self(times)
    }

    /// What may be types, each at least once.
    pub(super) fn candidates(&self) -> impl Iterator<Item = u64> {
        self.0.keys().map(|&(_, value)| value)
    }

    /// Forgets those that are none.
    pub(super) fn keep(&mut self, is_type: impl Fn(u64) -> bool) {
        self.0.retain(|&(_, value), _| is_type(value));
    }

    /// Whether a block holds another object than before; what it holds is remembered once it is known.
    pub(super) fn is_another(&self, before: &mut Option<Content>, size: u64, words: &Words) -> bool {
        let Some(before) = *before else {
            let mut known = places(size).filter(|&place| self.has(place, word(words, place)));
            *before = known.next().map(|place| content(place, size, words));
            return false;
        };
        let now = content(before.place, size, words);
        // A hash is not there until somebody asks for it.
        let is_same = |(before, now): (u64, u64)| before == now || before == u64::MAX;
        before.type_ != now.type_
            || !before.more.into_iter().zip(now.more).all(is_same)
            || before.rest != now.rest
    }

    fn has(&self, place: usize, value: u64) -> bool {
        self.0.contains_key(&(place, value))
    }
}

fn content(place: usize, size: u64, words: &Words) -> Content {
    let more = |at| {
        if place == 0 && is_inside(at, size) {
            word(words, at)
        } else {
            0
        }
    };
    Content {
        place,
        type_: word(words, place),
        more: [more(1), more(2)],
        rest: [3, 4, 5, 6].map(more),
    }
}

/// The words of a block from its second one on; zeros where there is none.
pub(super) fn words(bytes: &[u8]) -> Words {
    let mut words = [0; WORDS_BYTES];
    for (to, from) in words.iter_mut().zip(bytes) {
        *to = *from;
    }
    words
}

/// Where types can stand in a block of a size.
fn places(size: u64) -> impl Iterator<Item = usize> {
    TYPE_AT.into_iter().filter(move |&place| is_inside(place, size))
}

fn is_inside(place: usize, size: u64) -> bool {
    WORDS_FROM + 8 * (place as u64 + 1) <= size
}

fn word(words: &Words, at: usize) -> u64 {
    let (words, _) = words.as_chunks::<8>();
    words.get(at).map_or(0, |word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: u64 = 0x55_0000;

    fn block(words_of_it: [u64; 5]) -> Words {
        words(&words_of_it.map(u64::to_le_bytes).concat())
    }

    /// Two blocks of a size; the first has other words later. Whether that is another object.
    #[track_caller]
    fn check(size: u64, blocks: [[u64; 5]; 2], later: [u64; 5], expected: bool) {
        let blocks = blocks.map(block);
        let types = Types::of(blocks.iter().map(|words| (size, words)));
        let mut content = None;
        assert!(!types.is_another(&mut content, size, &blocks[0]));
        let later = [block(later), blocks[1]];
        let types = Types::of(later.iter().map(|words| (size, words)));
        assert_eq!(types.is_another(&mut content, size, &later[0]), expected);
    }

    #[test]
    fn an_object_is_its_type_and_what_follows_it() {
        let blocks = [[TYPE, 3, 4, 5, 6], [TYPE, 1, 1, 1, 1]];
        check(64, blocks, [TYPE, 3, 4, 5, 6], false);
        check(64, blocks, [TYPE, 3, 4, 5, 9], true);
        check(64, blocks, [TYPE + 8, 3, 4, 5, 6], true);
        check(64, blocks, [TYPE, 9, 4, 5, 6], true);
        check(64, blocks, [TYPE, 3, 9, 5, 6], true);
        // What is behind a small block is another one's.
        check(16, blocks, [TYPE, 9, 9, 9, 9], false);
        check(16, blocks, [TYPE + 8, 3, 4, 5, 6], true);
    }

    #[test]
    fn a_hash_that_was_asked_for_makes_no_other_object() {
        let blocks = [[TYPE, 3, u64::MAX, 5, 6], [TYPE, 1, 1, 1, 1]];
        check(64, blocks, [TYPE, 3, 77, 5, 6], false);
        check(64, blocks, [TYPE, 4, 77, 5, 6], true);
        // Of a date it comes first.
        let blocks = [[TYPE, u64::MAX, 3, 5, 6], [TYPE, 1, 1, 1, 1]];
        check(64, blocks, [TYPE, 77, 3, 5, 6], false);
        check(64, blocks, [TYPE, 77, 4, 5, 6], true);
    }

    #[test]
    fn places_in_the_collectors_list_change() {
        let blocks = [[0x7f_1000, 1, TYPE, 8, 9], [0x7f_2000, 1, TYPE, 8, 9]];
        check(64, blocks, [0x7f_3000, 2, TYPE, 0, 0], false);
        check(64, blocks, [0x7f_1000, 1, TYPE + 8, 8, 9], true);
        let blocks = [
            [0, 0x7f_0000, 0x7f_1000, 1, TYPE],
            [0, 0x7f_0000, 0x7f_2000, 1, TYPE],
        ];
        check(64, blocks, [0x7f_5000, 0, 0x7f_3000, 2, TYPE], false);
        check(64, blocks, [0, 0x7f_0000, 0x7f_1000, 1, TYPE + 8], true);
        // A block that is smaller has no such place.
        check(32, blocks, [0, 0x7f_0000, 0x7f_1000, 1, TYPE + 8], false);
    }

    #[test]
    fn what_no_other_block_has_is_no_type() {
        check(
            64,
            [[TYPE, 3, 4, 5, 6], [TYPE + 8, 1, 1, 1, 1]],
            [9, 9, 9, 9, 9],
            false,
        );
        check(64, [[1, 3, 4, 5, 6], [1, 1, 1, 1, 1]], [9, 9, 9, 9, 9], false);
    }
}
