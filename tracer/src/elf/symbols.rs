//! Symbols by name: the dynamic ones through the GNU hash table, the local ones (if not stripped) in one pass.
//!
//! Only defined symbols are given. Names longer than any that is asked for are never compared, so that a forged
//! string table costs nothing.

use object::{
    LittleEndian as Le,
    elf::{self, Sym64},
    read::elf::{FileHeader as _, SectionHeader as _},
};

use super::{Elf, dynamic::string_at};
use crate::units::VirtAddr;

/// Longest name that is looked at.
const MAX_NAME: usize = 256;

/// A defined symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Link-time address.
    pub address: VirtAddr,
    /// Bytes; 0 if not known.
    pub size: u64,
}

impl Symbol {
    fn of(entry: &Sym64<Le>) -> Option<Self> {
        let defined = entry.st_shndx.get(Le) != elf::SHN_UNDEF && entry.st_value.get(Le) != 0;
        let is_tls = entry.st_info & 0xf == elf::STT_TLS;
        (defined && !is_tls).then(|| Self {
            address: VirtAddr(entry.st_value.get(Le)),
            size: entry.st_size.get(Le),
        })
    }
}

impl<'a> Elf<'a> {
    /// The dynamic symbol of that name, if this file defines it.
    pub fn exported(&self, name: &str) -> Option<Symbol> {
        match self.dynamic.gnu_hash.and_then(GnuHash::parse) {
            Some(table) => table
                .find(name, |index| self.dynamic_name(index) == Some(name))
                .and_then(|index| {
                    let entry = self.dynamic.symbols.get(usize::try_from(index).ok()?)?;
                    Symbol::of(entry)
                }),
            None => self
                .dynamic
                .symbols
                .iter()
                .filter(|entry| self.name_of(entry) == Some(name))
                .find_map(Symbol::of),
        }
    }

    /// For each name the symbol in the full symbol table, which stripped files do not have.
    ///
    /// The first one of a name wins.
    pub fn local<const N: usize>(&self, names: [&str; N]) -> [Option<Symbol>; N] {
        let mut found = [None; N];
        let Ok(sections) = self.header.sections(Le, self.data) else {
            return found;
        };
        let Some((_, section)) = sections
            .enumerate()
            .find(|(_, section)| section.sh_type(Le) == elf::SHT_SYMTAB)
        else {
            return found;
        };
        let Ok(entries) = section.data_as_array::<Sym64<Le>, _>(Le, self.data) else {
            return found;
        };
        let strings = sections.section(object::SectionIndex(section.sh_link(Le) as usize));
        let Some(strings) = strings.ok().and_then(|strings| strings.data(Le, self.data).ok()) else {
            return found;
        };
        for entry in entries {
            let Ok(offset) = usize::try_from(entry.st_name.get(Le)) else {
                continue;
            };
            for (name, place) in names.iter().zip(&mut found) {
                if place.is_none() && has_text_at(strings, offset, name) {
                    *place = Symbol::of(entry);
                }
            }
        }
        found
    }

    /// Name of a dynamic symbol, defined or not.
    pub(super) fn dynamic_name(&self, index: u32) -> Option<&'a str> {
        self.name_of(self.dynamic.symbols.get(usize::try_from(index).ok()?)?)
    }

    /// A dynamic symbol by its index, if this file defines it.
    pub(super) fn dynamic_symbol(&self, index: u32) -> Option<Symbol> {
        Symbol::of(self.dynamic.symbols.get(usize::try_from(index).ok()?)?)
    }

    fn name_of(&self, entry: &Sym64<Le>) -> Option<&'a str> {
        string_at(
            self.dynamic.strings,
            usize::try_from(entry.st_name.get(Le)).ok()?,
            MAX_NAME,
        )
    }
}

/// Whether exactly `text` and a NUL stand at `offset`.
fn has_text_at(strings: &[u8], offset: usize, text: &str) -> bool {
    let rest = strings
        .get(offset..)
        .and_then(|bytes| bytes.strip_prefix(text.as_bytes()));
    rest.is_some_and(|rest| rest.first() == Some(&0))
}

/// A `DT_GNU_HASH` table. Format: <https://sourceware.org/legacy-ml/binutils/2006-10/msg00377.html>.
pub(super) struct GnuHash<'a> {
    first_symbol: u32,
    buckets: &'a [[u8; 4]],
    chains: &'a [[u8; 4]],
}

impl<'a> GnuHash<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<4>();
        let field = |index: usize| words.get(index).map(|word| u32::from_le_bytes(*word));
        let bucket_count = usize::try_from(field(0)?).ok()?;
        let first_symbol = field(1)?;
        let bloom_words = usize::try_from(field(2)?).ok()?.checked_mul(2)?;
        let buckets_start = bloom_words.checked_add(4)?;
        let chains_start = buckets_start.checked_add(bucket_count)?;
        Some(Self {
            first_symbol,
            buckets: words.get(buckets_start..chains_start)?,
            chains: words.get(chains_start..)?,
        })
    }

    pub(super) fn buckets(&self) -> impl Iterator<Item = u32> + '_ {
        self.buckets.iter().map(|word| u32::from_le_bytes(*word))
    }

    /// The hash of symbol `index`; its lowest bit is set at the end of a chain.
    pub(super) fn chain(&self, index: u32) -> Option<u32> {
        let place = usize::try_from(index.checked_sub(self.first_symbol)?).ok()?;
        self.chains.get(place).map(|word| u32::from_le_bytes(*word))
    }

    fn find(&self, name: &str, matches: impl Fn(u32) -> bool) -> Option<u32> {
        let hash = name.bytes().fold(5381_u32, |hash, byte| {
            hash.wrapping_mul(33).wrapping_add(u32::from(byte))
        });
        let bucket = usize::try_from(hash).ok()?.checked_rem(self.buckets.len())?;
        let mut index = u32::from_le_bytes(*self.buckets.get(bucket)?);
        loop {
            let entry = self.chain(index)?;
            if entry | 1 == hash | 1 && matches(index) {
                return Some(index);
            }
            if entry & 1 == 1 {
                return None;
            }
            index = index.checked_add(1)?;
        }
    }
}
