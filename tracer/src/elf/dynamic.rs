//! The dynamic section: where the loader finds symbols, strings and relocations.
//!
//! Read through the program headers, so that a file without section headers works too. Every table is checked
//! against its segment; one that does not fit reads as empty.

use object::{
    LittleEndian as Le,
    elf::{self, Dyn64, Rela64, Sym64},
};

use super::Elf;
use crate::units::VirtAddr;

/// Entries looked at; real files have about thirty.
const MAX_ENTRIES: usize = 1024;
/// Longest library name or path taken.
const MAX_TEXT: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Dynamic<'a> {
    pub(super) symbols: &'a [Sym64<Le>],
    pub(super) strings: &'a [u8],
    pub(super) gnu_hash: Option<&'a [u8]>,
    pub(super) rela: &'a [Rela64<Le>],
    pub(super) jump_slots: &'a [Rela64<Le>],
    pub(super) needed: Vec<&'a str>,
    pub(super) rpath: Option<&'a str>,
    pub(super) run_path: Option<&'a str>,
}

impl<'a> Dynamic<'a> {
    pub(super) fn parse(elf: &Elf<'a>, address: VirtAddr, size: u64) -> Self {
        let count = usize::try_from(size / 16).unwrap_or(usize::MAX).min(MAX_ENTRIES);
        let entries: &[Dyn64<Le>] = table(elf, Some(address), count);
        let value = |tag: i64| {
            let entry = entries
                .iter()
                .take_while(|entry| entry.d_tag.get(Le) != elf::DT_NULL)
                .find(|entry| entry.d_tag.get(Le) == tag);
            entry.map(|entry| entry.d_val.get(Le))
        };
        let address_of = |tag| value(tag).map(VirtAddr);
        let relocations = |table_tag, size_tag| {
            let count = usize::try_from(value(size_tag).unwrap_or(0) / 24).unwrap_or(usize::MAX);
            table(elf, address_of(table_tag), count)
        };
        let string_size = value(elf::DT_STRSZ).and_then(|size| usize::try_from(size).ok());
        let strings = address_of(elf::DT_STRTAB)
            .and_then(|start| elf.bytes(start, string_size?))
            .unwrap_or(&[]);
        let text = |offset: u64| string_at(strings, usize::try_from(offset).ok()?, MAX_TEXT);
        let gnu_hash = address_of(elf::DT_GNU_HASH).and_then(|start| elf.bytes_from(start));
        let count = symbol_count(elf, gnu_hash, address_of(elf::DT_HASH));
        Self {
            symbols: table(elf, address_of(elf::DT_SYMTAB), count),
            strings,
            gnu_hash,
            rela: relocations(elf::DT_RELA, elf::DT_RELASZ),
            jump_slots: relocations(elf::DT_JMPREL, elf::DT_PLTRELSZ),
            needed: entries
                .iter()
                .take_while(|entry| entry.d_tag.get(Le) != elf::DT_NULL)
                .filter(|entry| entry.d_tag.get(Le) == elf::DT_NEEDED)
                .filter_map(|entry| text(entry.d_val.get(Le)))
                .collect(),
            rpath: value(elf::DT_RPATH).and_then(text),
            run_path: value(elf::DT_RUNPATH).and_then(text),
        }
    }
}

/// `count` entries at `address`, or as many as there are; nothing if they are not aligned.
fn table<'a, T: object::Pod>(elf: &Elf<'a>, address: Option<VirtAddr>, count: usize) -> &'a [T] {
    let Some(bytes) = address.and_then(|address| elf.bytes_from(address)) else {
        return &[];
    };
    let count = count.min(bytes.len() / size_of::<T>().max(1));
    object::slice_from_bytes(bytes, count).map_or(&[], |(entries, _)| entries)
}

/// The text at `offset` of a string table.
pub(super) fn string_at(strings: &[u8], offset: usize, limit: usize) -> Option<&str> {
    let bytes = strings.get(offset..)?;
    let bytes = bytes.get(..limit).unwrap_or(bytes);
    let length = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(bytes.get(..length)?).ok()
}

/// How many dynamic symbols there are: no header says it, only the hash tables do.
fn symbol_count(elf: &Elf<'_>, gnu_hash: Option<&[u8]>, hash: Option<VirtAddr>) -> usize {
    if let Some(bytes) = hash.and_then(|address| elf.bytes(address, 8)) {
        let count = bytes.last_chunk().map(|chunk| u32::from_le_bytes(*chunk));
        return count.map_or(0, |count| count as usize);
    }
    gnu_hash.and_then(gnu_symbol_count).unwrap_or(0)
}

/// The highest symbol index in the chains of a GNU hash table, plus one.
fn gnu_symbol_count(bytes: &[u8]) -> Option<usize> {
    let table = super::symbols::GnuHash::parse(bytes)?;
    let last = table.buckets().max()?;
    let mut index = last;
    while table.chain(index)? & 1 == 0 {
        index = index.checked_add(1)?;
    }
    usize::try_from(index).ok()?.checked_add(1)
}
