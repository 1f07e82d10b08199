//! Image facts: version, layout, thread state access and allocator functions of a CPython runtime.
//!
//! Pure functions over the bytes of one ELF file, stripped or not. What cannot be established for certain is a
//! [`WhyNot`]: a wrong offset would show as garbage in every stack. x86-64, CPython 3.9 to 3.15; without a GIL 3.13.

pub mod allocator;
pub mod classify;
pub(crate) mod flow;
mod layout;
mod layout_table;
mod members;
mod pool_header;
mod pools;
mod tstate;
pub mod version;
mod windows;

use tracer_ebpf::layout::ImageLayout;

pub use self::{
    allocator::{AllocatorFunctions, AllocatorTables},
    classify::{Allocator, classify},
    layout::Gil,
    pool_header::{POOL_HEADER_BYTES, Pool, SIZE_CLASSES, pool_in_use},
    version::{Level, Version},
};
use crate::{
    elf::{Elf, ElfError, ImageKind, Segment},
    units::VirtAddr,
};

/// Everything that is known of one image.
#[derive(Clone, Debug)]
pub struct ImageFacts {
    /// CPython's version.
    pub version: Version,
    /// Whether it has a GIL.
    pub gil: Gil,
    /// How the file is loaded.
    pub kind: ImageKind,
    /// GNU build id, lower-case hexadecimal digits.
    pub build_id: Option<String>,
    /// What the walker needs.
    pub layout: ImageLayout,
    /// The functions that the allocator tables start with.
    pub functions: AllocatorFunctions,
    /// Where the allocator tables are.
    pub tables: AllocatorTables,
    /// `PyCode_Type.tp_dealloc`.
    pub code_dealloc: Option<VirtAddr>,
    /// What is worth telling: a debug build, a slow way to the thread state.
    pub notes: Vec<String>,
    /// Where code is, to tell its own functions from others.
    segments: Vec<Segment>,
}

impl ImageFacts {
    /// Whether a link-time address is in the image's code.
    pub fn holds_code(&self, address: VirtAddr) -> bool {
        let distance = |segment: &Segment| address.get().checked_sub(segment.address.get());
        self.segments
            .iter()
            .any(|segment| segment.executable && distance(segment).is_some_and(|by| by < segment.memory_size))
    }
}

/// Why an image is not traced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyNot {
    /// See [`ElfError`].
    #[error("{0}")]
    Elf(#[from] ElfError),
    /// No `_PyRuntime` of its own.
    #[error("not a CPython runtime")]
    NotRuntime,
    /// No version found.
    #[error("the version of this CPython could not be found")]
    VersionUnknown,
    /// 3.8 and older.
    #[error("CPython {version} is too old: 3.9 to 3.15 are supported")]
    TooOld {
        /// Its version.
        version: Version,
    },
    /// 3.16 and newer.
    #[error("CPython {version} is newer than this program knows: 3.9 to 3.15 are supported")]
    TooNew {
        /// Its version.
        version: Version,
    },
    /// Alpha and beta releases.
    #[error("CPython {version} is a pre-release, whose structures still change")]
    PreRelease {
        /// Its version.
        version: Version,
    },
    /// Built with `--disable-gil`, 3.14 and newer: threads run copies of the bytecode.
    #[error("CPython {version} is a free-threaded build: only those of 3.13 are supported")]
    FreeThreaded {
        /// Its version.
        version: Version,
    },
    /// The file does not export what every CPython exports.
    #[error("the symbol {name} is missing")]
    SymbolMissing {
        /// The symbol.
        name: &'static str,
    },
    /// The exported functions do not lead to the table.
    #[error("the {domain} allocator's table could not be found in the code")]
    AllocatorTableUnknown {
        /// raw, mem or obj.
        domain: &'static str,
    },
    /// The exported functions do not lead to the thread state.
    #[error("the place of the current thread state could not be found in the code")]
    ThreadStateUnknown,
    /// 3.13+ without its own description.
    #[error("CPython {version} without readable _Py_DebugOffsets")]
    DebugOffsetsMissing {
        /// Its version.
        version: Version,
    },
    /// The file contradicts the known layout.
    #[error("the layout is not CPython's: {what} is expected at {expected}, found at {found:?}")]
    LayoutMismatch {
        /// Which field.
        what: &'static str,
        /// What this version has.
        expected: u64,
        /// What the file has, if it could be read.
        found: Option<u64>,
    },
    /// The file's own description cannot be true.
    #[error("the layout cannot be used: {what}")]
    LayoutImplausible {
        /// Which field.
        what: &'static str,
    },
}

/// Whether a file may hold a CPython runtime of any version: a quick look, before [`examine`].
pub fn may_be_runtime(elf: &Elf<'_>) -> bool {
    own_runtime(elf).is_some() || elf.exported("Py_GetVersion").is_some()
}

/// `_PyRuntime`, unless it is a copy of a shared library's.
fn own_runtime(elf: &Elf<'_>) -> Option<crate::elf::Symbol> {
    let symbol = elf.exported("_PyRuntime")?;
    (!elf.is_copied_from_elsewhere(symbol.address)).then_some(symbol)
}

/// Finds out everything about an image.
///
/// # Errors
/// Says why the image is not traced.
pub fn examine(data: &[u8]) -> Result<ImageFacts, WhyNot> {
    examine_elf(&Elf::parse(data)?)
}

/// Like [`examine`], for a file that is parsed already.
///
/// # Errors
/// Says why the image is not traced.
pub fn examine_elf(elf: &Elf<'_>) -> Result<ImageFacts, WhyNot> {
    if !may_be_runtime(elf) {
        return Err(WhyNot::NotRuntime);
    }
    let version = version::find(elf).ok_or(WhyNot::VersionUnknown)?;
    match (version.major, version.minor, version.level) {
        (..=2, ..) | (3, ..=8, _) => return Err(WhyNot::TooOld { version }),
        (3, 9..=15, Level::Alpha | Level::Beta) => return Err(WhyNot::PreRelease { version }),
        (3, 9..=15, _) => {}
        _ => return Err(WhyNot::TooNew { version }),
    }
    let runtime = own_runtime(elf).ok_or(WhyNot::NotRuntime)?;
    let gil = layout::gil(elf, version, runtime);
    if gil == Gil::Disabled && version.minor != 13 {
        return Err(WhyNot::FreeThreaded { version });
    }
    let allocator = allocator::find(elf, gil)?;
    let mut notes = allocator.notes;
    let found = layout::find(elf, version, gil, runtime, allocator.tables, &mut notes)?;
    let code_type = elf.exported("PyCode_Type");
    let code_dealloc =
        code_type.and_then(|symbol| layout::type_dealloc(elf, symbol.address, found.tp_dealloc));
    if code_dealloc.is_none() {
        notes
            .push("the end of code objects is not seen: PyCode_Type.tp_dealloc could not be read".to_owned());
    }
    Ok(ImageFacts {
        version,
        gil,
        kind: elf.kind(),
        build_id: elf.build_id().map(str::to_owned),
        layout: found.layout,
        functions: allocator.functions,
        tables: allocator.tables,
        code_dealloc,
        notes,
        segments: elf.segments().to_vec(),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(crate) mod tests;
