//! Probe sites: what stands at an instruction, and what its registers mean there.
//!
//! The attach cookie of a probe is the index of its [`Site`].

/// What happens at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Role {
    /// `_PyObject_Malloc(ctx, n)`.
    ObjMalloc = 0,
    /// `_PyObject_Calloc(ctx, n, size)`.
    ObjCalloc = 1,
    /// `_PyObject_Realloc(ctx, p, n)`.
    ObjRealloc = 2,
    /// `_PyObject_Free(ctx, p)`.
    ObjFree = 3,
    /// `_PyMem_RawMalloc(ctx, n)`.
    RawMalloc = 4,
    /// `_PyMem_RawCalloc(ctx, n, size)`.
    RawCalloc = 5,
    /// `_PyMem_RawRealloc(ctx, p, n)`.
    RawRealloc = 6,
    /// `_PyMem_RawFree(ctx, p)`.
    RawFree = 7,
    /// `PyCode_Type.tp_dealloc(code)`: a code object's address may be reused from here on.
    CodeDealloc = 8,
}

impl Role {
    /// All roles, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::ObjMalloc,
        Self::ObjCalloc,
        Self::ObjRealloc,
        Self::ObjFree,
        Self::RawMalloc,
        Self::RawCalloc,
        Self::RawRealloc,
        Self::RawFree,
        Self::CodeDealloc,
    ];
}

/// Bits of [`Site::flags`].
pub mod flag {
    /// The raw allocator is inlined into this function, so that requests which leave pymalloc
    /// (over 512 bytes, or 0) pass no other site: report them here.
    pub const LARGE_HERE: u32 = 1;
    /// At this instruction the second argument is in RDI, where it was moved, not in RSI (entry and return sites).
    pub const FIRST_IN_RDI: u32 = 2;
    /// At this instruction the third argument is in RSI, where it was moved, not in RDX (entry and return sites).
    pub const SECOND_IN_RSI: u32 = 4;
}

/// One entry of the site table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Site {
    /// Link-time address of the instruction under the probe; with the instruction pointer of a hit it gives the load bias.
    pub address: u64,
    /// Index into the image table.
    pub image: u32,
    /// A [`Role`], as its number.
    pub role: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Always 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Site>() == 24);
