//! The data of made files: words, and the tables that tell the loader what to import.

/// The data segment.
pub(super) struct Tables {
    pub(super) bytes: Vec<u8>,
    /// Offset of the dynamic section, which goes on to the end.
    pub(super) dynamic: usize,
}

/// Tags of the dynamic section.
const HASH: u64 = 4;
const STRINGS: u64 = 5;
const SYMBOLS: u64 = 6;
const RELA: u64 = 7;
const RELA_SIZE: u64 = 8;
const STRINGS_SIZE: u64 = 10;

/// `R_X86_64_GLOB_DAT`.
const GLOB_DAT: u64 = 6;

/// Data at `at`: the words, and tables by which other files' functions are put into the slots.
pub(super) fn tables(at: u64, words: &[u64], imports: &[(u64, &str)]) -> Tables {
    let mut symbols = vec![0; 24];
    let mut relocations = Vec::new();
    let mut strings = vec![0];
    for (index, (slot, name)) in (1_u64..).zip(imports) {
        symbols.extend(u32::try_from(strings.len()).unwrap().to_le_bytes());
        symbols.resize(symbols.len() + 20, 0);
        for word in [*slot, index << 32 | GLOB_DAT, 0] {
            relocations.extend(word.to_le_bytes());
        }
        strings.extend(name.bytes());
        strings.push(0);
    }
    // Only the number of symbols is read of it.
    let count = u32::try_from(imports.len() + 1).unwrap();
    let hash = [0_u32.to_le_bytes(), count.to_le_bytes()].concat();
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut put = |table: &[u8]| {
        let start = at + bytes.len() as u64;
        bytes.extend(table);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        start
    };
    let entries = [
        (SYMBOLS, put(&symbols)),
        (RELA, put(&relocations)),
        (RELA_SIZE, relocations.len() as u64),
        (STRINGS, put(&strings)),
        (STRINGS_SIZE, strings.len() as u64),
        (HASH, put(&hash)),
        (0, 0),
    ];
    let dynamic = bytes.len();
    for (tag, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    Tables { bytes, dynamic }
}
