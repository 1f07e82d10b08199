//! Probe sites: what stands at an instruction, and what its registers mean there.
//!
//! The attach cookie of a probe is the index of its [`Site`]. Where the kernel has one cookie for many probes, it is an
//! [`event`]'s, and the site is found by where the probe stands in the file.

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
    /// A copy of pymalloc's allocation: the jump behind `cmp pool, pool->nextpool`. The pool is
    /// [`Site::operand`]; where the jump does not lead to the slow path, the block is `pool->freeblock` and its size
    /// class `pool->szidx`.
    PoolAlloc = 9,
    /// The return of `allocate_from_new_pool`, the slow path of those copies: the result is the block. With an operand, a
    /// place behind a call of it, where the result is that.
    PoolRefill = 10,
    /// Where a compiler has inlined that function: the jump behind `cmp class, pool->szidx`. The pool is
    /// [`Site::operand`], the index of the class [`Site::second`]; the block is `pool->freeblock` if they are equal (the
    /// zero flag is set), otherwise the pool's first one.
    PoolInit = 11,
    /// Behind a call of libc's `malloc` or `calloc` in a copy of the raw allocator: the block is [`Site::operand`].
    RawResult = 12,
    /// A copy of a free behind a guard on the allocator table's slot: the jump of the guard. The pointer is
    /// [`Site::operand`]; a block of either allocator. A copy without a guard: the jump behind the end of a free of
    /// pymalloc's, with [`flag::POOL_ONLY`].
    GuardedFree = 13,
    /// The call of (or jump to) libc's `free` in a copy of the raw allocator: the pointer is in RDI.
    LibcFree = 14,
    /// The call of libc's `realloc` in a copy of the raw allocator: the pointer is in RDI, the size in RSI.
    LibcRealloc = 15,
    /// Behind that call: the new block is [`Site::operand`].
    ReallocResult = 16,
    /// A copy of pymalloc's allocation that has taken the block from its pool: the jump that asks whether the pool has
    /// another free one. The block is [`Site::operand`]; the bytes of its class are 16 times the low half of
    /// [`Site::second`], if that is a register, plus `second`'s displacement.
    PoolTaken = 17,
    /// `PyTraceMalloc_Track(domain, pointer, size)`: an extension tells of memory of its own. The pointer is
    /// [`Site::operand`], the size [`Site::second`].
    Track = 18,
    /// `PyTraceMalloc_Untrack(domain, pointer)`: it has given that back. The pointer is [`Site::operand`].
    Untrack = 19,
}

impl Role {
    /// All roles, in the order of their numbers.
    pub const ALL: [Self; 20] = [
        Self::ObjMalloc,
        Self::ObjCalloc,
        Self::ObjRealloc,
        Self::ObjFree,
        Self::RawMalloc,
        Self::RawCalloc,
        Self::RawRealloc,
        Self::RawFree,
        Self::CodeDealloc,
        Self::PoolAlloc,
        Self::PoolRefill,
        Self::PoolInit,
        Self::RawResult,
        Self::GuardedFree,
        Self::LibcFree,
        Self::LibcRealloc,
        Self::ReallocResult,
        Self::PoolTaken,
        Self::Track,
        Self::Untrack,
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
    /// The hit counts only if the zero flag is set (the compare before a conditional jump found equality).
    pub const IF_ZERO: u32 = 8;
    /// The hit counts only if the zero flag is clear.
    pub const IF_NOT_ZERO: u32 = 16;
    /// A [`super::Role::GuardedFree`] concerns pymalloc's blocks only: a block of libc's passes another site.
    pub const POOL_ONLY: u32 = 32;
    /// The function is the bundled mimalloc's, which serves requests of any size by itself (builds without the GIL).
    pub const MIMALLOC: u32 = 64;
    /// It is about memory that an extension tells of, not the interpreter's allocator.
    pub const DOMAIN: u32 = 128;
}

/// Values of [`Site::group`]: what hits are counted under, and what is taken off as one to bound the cost.
pub mod group {
    /// Acquisitions of pools: rare, most of the time.
    pub const POOLS: u32 = 0;
    /// Blocks of libc's.
    pub const LARGE: u32 = 1;
    /// Every small block.
    pub const BLOCKS: u32 = 2;
    /// What extensions report of their own memory (`PyTraceMalloc_Track`).
    pub const DOMAINS: u32 = 3;
    /// Page faults.
    pub const FAULTS: u32 = 4;
    /// Deaths of code objects; never taken off, since an address that is used again would be taken for the one before.
    pub const CODES: u32 = 5;
    /// Room for groups: a power of two, so that a mask keeps an index within bounds.
    pub const GROUPS: usize = 8;
}

/// Cookies of probe events: the number of the event, and this bit.
pub mod event {
    /// No index of a site has it.
    pub const COOKIE: u64 = 1 << 63;
}

/// Key of the table that leads from a probe of an event to the index of its [`Site`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PointKey {
    /// An [`event`]'s cookie.
    pub cookie: u64,
    /// Offset in the file.
    pub offset: u64,
}

/// Values of [`Operand::kind`].
pub mod operand {
    /// There is none.
    pub const NONE: u8 = 0;
    /// The value of the register.
    pub const REGISTER: u8 = 1;
    /// The 64-bit word in memory at register plus displacement.
    pub const MEMORY: u8 = 2;
}

/// Where a value is at a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Operand {
    /// One of [`operand`]'s constants.
    pub kind: u8,
    /// Number of a general purpose register as instructions encode it: RAX 0, RCX 1, RDX 2, RBX 3, RSP 4, RBP 5,
    /// RSI 6, RDI 7, R8 8 to R15 15.
    pub register: u8,
    /// For what a call has returned: bytes from where it returned to up to the site. Other ways may lead to the site, too;
    /// then the word below the stack pointer, where the call left its return address, says otherwise. 0: none do.
    pub behind: u16,
    /// Bytes added to the register, if the value is in memory.
    pub displacement: i32,
}

impl Operand {
    /// In a register.
    pub const fn register(number: u8) -> Self {
        Self {
            kind: operand::REGISTER,
            register: number,
            behind: 0,
            displacement: 0,
        }
    }

    /// In memory at a register's value plus `displacement`.
    pub const fn memory(number: u8, displacement: i32) -> Self {
        Self {
            kind: operand::MEMORY,
            register: number,
            behind: 0,
            displacement,
        }
    }
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
    /// One of [`group`]'s constants.
    pub group: u32,
    /// See [`Role`]: the pool, the block or the pointer.
    pub operand: Operand,
    /// See [`Role`]: what else there is to know.
    pub second: Operand,
}

const _: () = assert!(size_of::<Operand>() == 8);
const _: () = assert!(size_of::<PointKey>() == 16);
const _: () = assert!(size_of::<Site>() == 40);
