//! What is needed of an ELF file, read defensively: segments, symbols, relocations, build id.
//!
//! Everything borrows from the bytes of the file and works without section headers where the loader does too,
//! so that stripped files read the same. Invariant: no input makes it panic, and the work is bounded by the
//! size of the file. Only 64-bit little-endian x86-64 files are taken.

mod dynamic;
mod frames;
mod needed;
mod relocations;
mod symbols;

use std::{fmt::Write as _, sync::OnceLock};

use object::{
    LittleEndian as Le,
    elf::{self, FileHeader64},
    read::elf::{FileHeader as _, ProgramHeader as _},
};

use self::{dynamic::Dynamic, relocations::Relocations};
pub use self::{
    frames::FunctionTable,
    needed::{Step, needed},
    relocations::{Pointer, TlsReloc},
    symbols::Symbol,
};
use crate::units::{FileOffset, VirtAddr};

/// Loadable segments looked at; real files have about five.
const MAX_SEGMENTS: usize = 64;

/// Why a file is not an ELF file that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// No ELF magic.
    #[error("not an ELF file")]
    NotElf,
    /// Another word size or byte order.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf64,
    /// Another processor.
    #[error("built for another processor (ELF machine {machine}), not for x86-64")]
    Machine {
        /// `e_machine`.
        machine: u16,
    },
    /// An object file, a core dump or the like.
    #[error("neither an executable nor a shared library (ELF type {kind})")]
    Kind {
        /// `e_type`.
        kind: u16,
    },
    /// A header points behind the end of the file, or makes no sense.
    #[error("truncated or malformed ELF file: {what}")]
    Malformed {
        /// Which part.
        what: &'static str,
    },
}

/// How a file is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// `ET_EXEC`: at its link-time addresses.
    Executable,
    /// `ET_DYN` with an interpreter: an executable at any address.
    PositionIndependent,
    /// `ET_DYN` without an interpreter.
    SharedLibrary,
}

/// A `PT_LOAD` segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First link-time address.
    pub address: VirtAddr,
    /// Where its bytes stand in the file.
    pub offset: FileOffset,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory; what is beyond the file's bytes is zero.
    pub memory_size: u64,
    /// `PF_X`.
    pub executable: bool,
    /// `PF_W`.
    pub writable: bool,
}

impl Segment {
    /// Whether `address` is in the part that the file backs; gives the distance from the segment's start.
    fn file_distance(&self, address: VirtAddr) -> Option<u64> {
        let distance = address.get().checked_sub(self.address.get())?;
        (distance < self.file_size).then_some(distance)
    }

    fn contains(&self, address: VirtAddr) -> bool {
        address
            .get()
            .checked_sub(self.address.get())
            .is_some_and(|distance| distance < self.memory_size)
    }
}

/// A parsed file. Cheap to make: symbols are looked up through the hash table, relocations read when first asked for.
#[derive(Debug)]
pub struct Elf<'a> {
    data: &'a [u8],
    header: &'a FileHeader64<Le>,
    kind: ImageKind,
    segments: Vec<Segment>,
    build_id: Option<String>,
    /// `.eh_frame_hdr`.
    frame_header: Option<VirtAddr>,
    dynamic: Dynamic<'a>,
    relocations: OnceLock<Relocations>,
}

impl<'a> Elf<'a> {
    /// Parses the file's headers.
    ///
    /// # Errors
    /// See [`ElfError`]; damaged symbol or relocation tables are no error here, they read as empty.
    pub fn parse(data: &'a [u8]) -> Result<Self, ElfError> {
        if data.get(..4) != Some(&elf::ELFMAG) {
            return Err(ElfError::NotElf);
        }
        if data.get(4..6) != Some(&[elf::ELFCLASS64, elf::ELFDATA2LSB]) {
            return Err(ElfError::NotElf64);
        }
        let malformed = |what| move |_: object::read::Error| ElfError::Malformed { what };
        let header = FileHeader64::<Le>::parse(data).map_err(malformed("file header"))?;
        let machine = header.e_machine(Le);
        if machine != elf::EM_X86_64 {
            return Err(ElfError::Machine { machine });
        }
        let programs = header
            .program_headers(Le, data)
            .map_err(malformed("program headers"))?;
        let has_interpreter = programs
            .iter()
            .any(|program| program.p_type(Le) == elf::PT_INTERP);
        let kind = match header.e_type(Le) {
            elf::ET_EXEC => ImageKind::Executable,
            elf::ET_DYN if has_interpreter => ImageKind::PositionIndependent,
            elf::ET_DYN => ImageKind::SharedLibrary,
            kind => return Err(ElfError::Kind { kind }),
        };
        let mut segments: Vec<Segment> = programs
            .iter()
            .filter(|program| program.p_type(Le) == elf::PT_LOAD)
            .take(MAX_SEGMENTS)
            .map(|program| Segment {
                address: VirtAddr(program.p_vaddr(Le)),
                offset: FileOffset(program.p_offset(Le)),
                file_size: program.p_filesz(Le).min(program.p_memsz(Le)),
                memory_size: program.p_memsz(Le),
                executable: program.p_flags(Le) & elf::PF_X != 0,
                writable: program.p_flags(Le) & elf::PF_W != 0,
            })
            .collect();
        segments.sort_by_key(|segment| segment.address);
        let end = data.len() as u64;
        let beyond = |segment: &Segment| {
            segment
                .offset
                .get()
                .checked_add(segment.file_size)
                .is_none_or(|last| last > end)
        };
        if segments.is_empty() || segments.iter().any(beyond) {
            return Err(ElfError::Malformed {
                what: "a segment reaches beyond the end of the file",
            });
        }
        let build_id = programs.iter().find_map(|program| build_id(program, data));
        let frame_header = programs
            .iter()
            .find(|program| program.p_type(Le) == elf::PT_GNU_EH_FRAME)
            .map(|program| VirtAddr(program.p_vaddr(Le)));
        let mut elf = Self {
            data,
            header,
            kind,
            segments,
            build_id,
            frame_header,
            dynamic: Dynamic::default(),
            relocations: OnceLock::new(),
        };
        if let Some(program) = programs
            .iter()
            .find(|program| program.p_type(Le) == elf::PT_DYNAMIC)
        {
            elf.dynamic = Dynamic::parse(&elf, VirtAddr(program.p_vaddr(Le)), program.p_filesz(Le));
        }
        Ok(elf)
    }

    /// How it is loaded.
    pub fn kind(&self) -> ImageKind {
        self.kind
    }

    /// The GNU build id, as lower-case hexadecimal digits.
    pub fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    /// The loadable segments, by address.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// `DT_NEEDED`: the libraries it asks for, as written.
    pub fn needed(&self) -> &[&'a str] {
        &self.dynamic.needed
    }

    /// `DT_RUNPATH`, or else `DT_RPATH`: where those are looked for first.
    pub fn run_path(&self) -> Option<&'a str> {
        self.dynamic.run_path.or(self.dynamic.rpath)
    }

    /// Where the byte at `address` stands in the file; `None` if the file does not back it.
    pub fn file_offset(&self, address: VirtAddr) -> Option<FileOffset> {
        self.segments.iter().find_map(|segment| {
            let distance = segment.file_distance(address)?;
            segment.offset.get().checked_add(distance).map(FileOffset)
        })
    }

    /// The link-time address of a byte of the file, if it is loaded.
    pub fn address_of(&self, offset: FileOffset) -> Option<VirtAddr> {
        self.segments.iter().find_map(|segment| {
            let distance = offset.get().checked_sub(segment.offset.get())?;
            (distance < segment.file_size).then(|| segment.address.checked_add(distance))?
        })
    }

    /// The segment that `address` is in.
    pub fn segment_at(&self, address: VirtAddr) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.contains(address))
    }

    /// Whether `address` is in a segment with code.
    pub fn is_code(&self, address: VirtAddr) -> bool {
        self.segment_at(address).is_some_and(|segment| segment.executable)
    }

    /// The file's bytes from `address` to the end of its segment.
    pub fn bytes_from(&self, address: VirtAddr) -> Option<&'a [u8]> {
        let segment = self
            .segments
            .iter()
            .find(|segment| segment.file_distance(address).is_some())?;
        let distance = segment.file_distance(address)?;
        let start = usize::try_from(segment.offset.get().checked_add(distance)?).ok()?;
        let length = usize::try_from(segment.file_size - distance).ok()?;
        self.data.get(start..start.checked_add(length)?)
    }

    /// `length` bytes at `address`, without relocations; memory that the file does not back is not readable here.
    pub fn bytes(&self, address: VirtAddr, length: usize) -> Option<&'a [u8]> {
        self.bytes_from(address)?.get(..length)
    }

    /// The 64-bit word at `address`, without relocations; zero in memory that is zero at start (`.bss`).
    pub fn word(&self, address: VirtAddr) -> Option<u64> {
        match self.bytes_from(address) {
            Some(bytes) => Some(u64::from_le_bytes(*bytes.first_chunk()?)),
            None => self.segment_at(address).map(|_| 0),
        }
    }

    /// The text that starts at `address` and ends at a NUL, at most `limit` bytes long.
    pub fn text(&self, address: VirtAddr, limit: usize) -> Option<&'a str> {
        let bytes = self.bytes_from(address)?;
        let bytes = bytes.get(..limit.saturating_add(1)).unwrap_or(bytes);
        let length = bytes.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(bytes.get(..length)?).ok()
    }
}

/// The build id in a `PT_NOTE` segment.
fn build_id(program: &elf::ProgramHeader64<Le>, data: &[u8]) -> Option<String> {
    let mut notes = program.notes(Le, data).ok()??;
    while let Ok(Some(note)) = notes.next() {
        if note.n_type(Le) == elf::NT_GNU_BUILD_ID && note.name() == elf::ELF_NOTE_GNU {
            let mut text = String::with_capacity(40);
            for byte in note.desc().iter().take(32) {
                write!(text, "{byte:02x}").ok()?;
            }
            return Some(text);
        }
    }
    None
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
