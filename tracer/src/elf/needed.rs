//! Which parts of a file this stage looks at, so that the rest (debugging information, mostly) need not be read.
//!
//! Whoever reads a file asks step by step, each time with what was read so far and zeroes elsewhere. Invariant: a file that was read like that parses as the whole
//! one does.

use std::ops::Range;

use object::{
    LittleEndian as Le,
    elf::{self, FileHeader64, ProgramHeader64, SectionHeader64},
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _},
};

/// Bytes read in any case: the file header, and the program headers of nearly all files.
const HEAD: u64 = 4096;

/// One question after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The file header.
    Head,
    /// The program headers.
    Programs,
    /// Segments, notes and section headers.
    Loaded,
    /// The symbol table and its names.
    Symbols,
}

impl Step {
    /// In this order.
    pub const ALL: [Self; 4] = [Self::Head, Self::Programs, Self::Loaded, Self::Symbols];
}

/// The ranges of the file that are needed at a step: within `data`, not empty, without overlap.
pub fn needed(data: &[u8], step: Step) -> Vec<Range<u64>> {
    let named = match (step, FileHeader64::<Le>::parse(data)) {
        (Step::Head, _) => std::iter::once(0..HEAD).collect(),
        (Step::Programs, Ok(header)) => vec![range(
            header.e_phoff(Le),
            u64::from(header.e_phnum(Le)) * size_of::<ProgramHeader64<Le>>() as u64,
        )],
        (_, Err(_)) => Vec::new(),
        (Step::Loaded, Ok(header)) => loaded(header, data),
        (Step::Symbols, Ok(header)) => symbols(header, data),
    };
    united(named, data.len() as u64)
}

fn loaded(header: &FileHeader64<Le>, data: &[u8]) -> Vec<Range<u64>> {
    let sections = header.e_shoff(Le);
    // With more than fit there, the number is elsewhere.
    let length = match header.e_shnum(Le) {
        0 => u64::MAX,
        count => u64::from(count) * size_of::<SectionHeader64<Le>>() as u64,
    };
    let mut found: Vec<_> = (sections != 0)
        .then(|| range(sections, length))
        .into_iter()
        .collect();
    let programs = header.program_headers(Le, data).unwrap_or_default();
    found.extend(
        programs
            .iter()
            .filter(|program| matches!(program.p_type(Le), elf::PT_LOAD | elf::PT_NOTE))
            .map(|program| range(program.p_offset(Le), program.p_filesz(Le))),
    );
    found
}

fn symbols(header: &FileHeader64<Le>, data: &[u8]) -> Vec<Range<u64>> {
    let Ok(sections) = header.section_headers(Le, data) else {
        return Vec::new();
    };
    let of = |section: &SectionHeader64<Le>| range(section.sh_offset(Le), section.sh_size(Le));
    let at = |index: usize| sections.get(index).map(of);
    let names = header.shstrndx(Le, data).ok();
    let mut found: Vec<_> = names.and_then(|index| at(index as usize)).into_iter().collect();
    // The first one is the one that is used.
    let table = sections
        .iter()
        .find(|section| section.sh_type(Le) == elf::SHT_SYMTAB);
    if let Some(table) = table {
        found.push(of(table));
        found.extend(at(table.sh_link(Le) as usize));
    }
    found
}

fn range(start: u64, length: u64) -> Range<u64> {
    start..start.saturating_add(length)
}

/// The same bytes in order, each once, none behind `end`.
fn united(mut ranges: Vec<Range<u64>>, end: u64) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut done = 0;
    ranges.retain_mut(|range| {
        range.start = range.start.max(done);
        range.end = range.end.min(end);
        done = done.max(range.end);
        range.start < range.end
    });
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_in_order_and_bounded() {
        let united = united(vec![5..9, 0..3, 2..4, 8..20, 30..40, 1..2], 15);
        assert_eq!(united, [0..3, 3..4, 5..9, 9..15]);
    }

    #[test]
    fn what_is_no_elf_file_needs_its_head_only() {
        let data = vec![1; 10_000];
        assert_eq!(
            needed(&data, Step::Head),
            std::iter::once(0..HEAD).collect::<Vec<_>>()
        );
        assert_eq!(needed(&data, Step::Loaded), []);
        assert_eq!(needed(&data, Step::Symbols), []);
    }

    proptest! {
        #[test]
        fn no_bytes_lead_out_of_the_file(mut data in prop::collection::vec(any::<u8>(), 0..600)) {
            for (to, from) in data.iter_mut().zip(b"\x7fELF\x02\x01\x01") {
                *to = *from;
            }
            for step in Step::ALL {
                let mut last = 0;
                for range in needed(&data, step) {
                    prop_assert!(last <= range.start && range.start < range.end);
                    prop_assert!(range.end <= data.len() as u64);
                    last = range.end;
                }
            }
        }
    }
}
