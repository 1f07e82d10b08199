//! Little ELF files around assembled code, with call frame information for its functions.

use iced_x86::code_asm::CodeAssembler;

use super::loader::{self, Tables};
use crate::elf::Elf;

/// Where the code is loaded.
pub(super) const BASE: u64 = 0x1000;
/// Where the data is loaded.
const DATA: usize = 0x8000;
/// Length of the ELF header and the program headers.
const HEADERS: usize = 64 + PROGRAMS * 56;
const PROGRAMS: usize = 4;

/// Types of program headers.
const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const EH_FRAME: u32 = 0x6474_e550;

/// Assembles code; functions begin where the given closure says so.
pub(super) struct Made {
    pub(super) assembler: CodeAssembler,
    /// Indices of the instructions at which functions begin.
    starts: Vec<usize>,
    /// Functions, by number, whose addresses stand in data.
    pub(super) in_data: Vec<usize>,
    /// Functions, by number, that are no code but words into which the loader puts another file's function.
    pub(super) imports: Vec<(usize, &'static str)>,
}

impl Made {
    pub(super) fn new() -> Self {
        Self {
            assembler: CodeAssembler::new(64).unwrap(),
            starts: vec![0],
            in_data: Vec::new(),
            imports: Vec::new(),
        }
    }

    /// Another function begins here.
    pub(super) fn function(&mut self) {
        self.starts.push(self.assembler.instructions().len());
    }

    /// Bytes that nothing leads to, so many that jumps across them have a displacement of four bytes.
    pub(super) fn gap(&mut self) {
        (0..200).for_each(|_| self.assembler.int3().unwrap());
    }

    /// The file, and the addresses of the functions.
    pub(super) fn file(mut self) -> (Vec<u8>, Vec<u64>) {
        let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = self.assembler.assemble_options(BASE, options).unwrap();
        let code = result.inner.code_buffer;
        let offsets = result.inner.new_instruction_offsets;
        let starts: Vec<u64> = self
            .starts
            .iter()
            .map(|index| {
                offsets
                    .get(*index)
                    .map_or(code.len() as u64, |offset| u64::from(*offset))
            })
            .collect();
        let addresses: Vec<u64> = starts.iter().map(|start| BASE + start).collect();
        let words: Vec<u64> = self.in_data.iter().map(|index| addresses[*index]).collect();
        let imports: Vec<(u64, &str)> = self
            .imports
            .iter()
            .map(|(index, name)| (addresses[*index], *name))
            .collect();
        let tables = loader::tables(DATA as u64, &words, &imports);
        (elf(&code, &starts, &tables), addresses)
    }
}

/// Calls `check` with the parsed file.
pub(super) fn with_elf(made: Made, check: impl FnOnce(&Elf<'_>, &[u64])) {
    let (data, starts) = made.file();
    check(&Elf::parse(&data).unwrap(), &starts);
}

/// One segment, readable and executable: the headers, the code at [`BASE`], the frames behind it. Then one of data.
fn elf(code: &[u8], starts: &[u64], tables: &Tables) -> Vec<u8> {
    let code_at = usize::try_from(BASE).unwrap();
    let frames_at = (code_at + code.len()).next_multiple_of(16);
    let frames = frames(frames_at as u64, code.len() as u64, starts);
    let header_at = (frames_at + frames.len()).next_multiple_of(16);
    let header = frame_header(header_at as u64, frames_at as u64, starts);
    let end = header_at + header.len();
    assert!(HEADERS <= code_at && end <= DATA);
    let mut file = vec![0; DATA + tables.bytes.len()];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &3_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(20, &1_u32.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &u16::try_from(PROGRAMS).unwrap().to_le_bytes());
    let programs: [(u32, u32, usize, usize); PROGRAMS] = [
        (LOAD, 5, 0, end),
        (LOAD, 4, DATA, tables.bytes.len()),
        (
            DYNAMIC,
            4,
            DATA + tables.dynamic,
            tables.bytes.len() - tables.dynamic,
        ),
        (EH_FRAME, 4, header_at, header.len()),
    ];
    for (index, (kind, flags, offset, length)) in programs.into_iter().enumerate() {
        put(
            64 + index * 56,
            &program(kind, flags, offset as u64, length as u64),
        );
    }
    put(code_at, code);
    put(frames_at, &frames);
    put(header_at, &header);
    put(DATA, &tables.bytes);
    file
}

/// A program header whose addresses are its offsets.
fn program(kind: u32, flags: u32, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    for word in [offset, offset, offset, length, length, 0x1000] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// Bytes of the one common entry, and of each function's.
const COMMON: usize = 24;
const ENTRY: usize = 20;

/// `.eh_frame`: a common entry whose pointers are relative, 4 bytes long, and one entry for each function.
fn frames(at: u64, code_length: u64, starts: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(20_u32.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(b"\x01zR\0\x01\x78\x10\x01\x1b");
    bytes.resize(COMMON, 0);
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(code_length);
        let here = at + bytes.len() as u64;
        bytes.extend(16_u32.to_le_bytes());
        bytes.extend(u32::try_from(here + 4 - at).unwrap().to_le_bytes());
        bytes.extend(relative(BASE + start, here + 8).to_le_bytes());
        bytes.extend(u32::try_from(end - start).unwrap().to_le_bytes());
        bytes.resize(bytes.len() + 4, 0);
    }
    bytes.extend(0_u32.to_le_bytes());
    bytes
}

/// `.eh_frame_hdr` with its sorted table.
fn frame_header(at: u64, frames_at: u64, starts: &[u64]) -> Vec<u8> {
    let mut bytes = vec![1, 0x1b, 0x03, 0x3b];
    bytes.extend(relative(frames_at, at + 4).to_le_bytes());
    bytes.extend(u32::try_from(starts.len()).unwrap().to_le_bytes());
    for (index, start) in starts.iter().enumerate() {
        let entry = frames_at + (COMMON + index * ENTRY) as u64;
        bytes.extend(relative(BASE + start, at).to_le_bytes());
        bytes.extend(relative(entry, at).to_le_bytes());
    }
    bytes
}

fn relative(to: u64, from: u64) -> i32 {
    i32::try_from(to.cast_signed() - from.cast_signed()).unwrap()
}
