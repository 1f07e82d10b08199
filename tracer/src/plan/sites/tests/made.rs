//! Little ELF files around assembled code, with call frame information for its functions.

use iced_x86::code_asm::CodeAssembler;

use crate::elf::Elf;

/// Where the code is loaded.
pub(super) const BASE: u64 = 0x1000;
/// Length of the ELF header and two program headers.
const HEADERS: usize = 64 + 2 * 56;

/// Assembles code; functions begin where the given closure says so.
pub(super) struct Made {
    pub(super) assembler: CodeAssembler,
    /// Indices of the instructions at which functions begin.
    starts: Vec<usize>,
}

impl Made {
    pub(super) fn new() -> Self {
        Self {
            assembler: CodeAssembler::new(64).unwrap(),
            starts: vec![0],
        }
    }

    /// Another function begins here.
    pub(super) fn function(&mut self) {
        self.starts.push(self.assembler.instructions().len());
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
        (
            elf(&code, &starts),
            starts.iter().map(|start| BASE + start).collect(),
        )
    }
}

/// Calls `check` with the parsed file.
pub(super) fn with_elf(made: Made, check: impl FnOnce(&Elf<'_>, &[u64])) {
    let (data, starts) = made.file();
    check(&Elf::parse(&data).unwrap(), &starts);
}

/// One segment, readable and executable: the headers, the code at [`BASE`], the frames behind it.
fn elf(code: &[u8], starts: &[u64]) -> Vec<u8> {
    let code_at = usize::try_from(BASE).unwrap();
    let frames_at = (code_at + code.len()).next_multiple_of(16);
    let frames = frames(frames_at as u64, code.len() as u64, starts);
    let header_at = (frames_at + frames.len()).next_multiple_of(16);
    let header = frame_header(header_at as u64, frames_at as u64, starts);
    let end = header_at + header.len();
    let mut file = vec![0; end];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &3_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(20, &1_u32.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &2_u16.to_le_bytes());
    put(64, &program(1, 0, end as u64));
    put(
        64 + 56,
        &program(0x6474_e550, header_at as u64, header.len() as u64),
    );
    assert!(HEADERS <= code_at);
    put(code_at, code);
    put(frames_at, &frames);
    put(header_at, &header);
    file
}

/// A program header whose addresses are its offsets.
fn program(kind: u32, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(5_u32.to_le_bytes());
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
