//! A thread's own memory: pieces of the target's memory in which several frames lie, and what is known of the thread.
//!
//! A read of the target's memory costs the same for 8 bytes as for 1000, so that frames are read many at a time. That
//! takes more memory than a program's stack has, and memory per CPU is not safe in a program that can be
//! preempted; but a thread is in one probe at a time, so an entry of a map with the thread as its key is its own.
//! Pieces are never kept from one hit to the next: [`Memory::begin`].

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use tracer_ebpf::limits::FRAME_WINDOW;

use crate::{
    maps::{BLANK, THREADS},
    opaque::sign,
    walk::Stack,
};

/// Bytes of a piece; frames of 3.11 and newer take 100 to 200 bytes each.
const PIECE: u64 = 1024;
/// The thread's data stack, and the C stack, where the frames of C stubs are.
const PIECES: usize = 2;
/// A window that begins here in a piece, or before, lies in it.
const LAST: u64 = PIECE - FRAME_WINDOW as u64;
/// No page is smaller. A piece does not reach into a page in which no frame is: it may not be there, and a read that
/// fails costs as much as seven.
const PAGE: u64 = 4096;
/// Where no frame is: an address of the kernel.
const NOWHERE: u64 = 1 << 63;
/// Room behind the pieces, for an index and a field's offset in the window, each masked on its own.
const ROOM: usize = 128;
const WINDOW_MASK: u32 = ROOM as u32 - 8;
const _: () = assert!(FRAME_WINDOW <= ROOM);

/// Value of [`THREADS`].
#[repr(C)]
pub(crate) struct Memory {
    /// FS base of the thread that `slot` was found for.
    pub(crate) fs: u64,
    /// Load bias of the image that it was found for.
    pub(crate) bias: u64,
    /// Where the current thread state's address is.
    pub(crate) slot: u64,
    /// Addresses at which the pieces begin.
    start: [u64; PIECES],
    /// Number of the piece to be read next.
    turn: u64,
    /// Where the window is in `bytes`. Here, because the verifier keeps no account of a map's memory: however the
    /// window was found, what follows is one path.
    index: u64,
    /// The stack that is being walked.
    pub(crate) stack: Stack,
    bytes: [u8; PIECE as usize * PIECES + ROOM],
}

/// Memory of a thread, made at its first hit; `None` if there is no room.
#[inline(always)]
pub(crate) fn of(thread: u64) -> Option<*mut Memory> {
    if let Some(memory) = THREADS.get_ptr_mut(thread) {
        return Some(memory);
    }
    make(thread)
}

#[inline(never)]
fn make(thread: u64) -> Option<*mut Memory> {
    // SAFETY: nothing ever writes to that map.
    let _ = THREADS.insert(thread, unsafe { &*BLANK.get_ptr(0)? }, 0);
    THREADS.get_ptr_mut(thread)
}

impl Memory {
    /// Forgets the pieces.
    ///
    /// # Safety
    /// All functions here: `this` is the current thread's entry.
    #[inline(always)]
    pub(crate) unsafe fn begin(this: *mut Self) {
        // SAFETY: by contract.
        unsafe {
            (&raw mut (*this).start[0]).write_volatile(NOWHERE);
            (&raw mut (*this).start[1]).write_volatile(NOWHERE);
        }
    }

    /// Makes the window at `from` the current one, which takes no read if it is in a piece. `None` if the target's
    /// memory cannot be read.
    #[inline(always)]
    pub(crate) unsafe fn look(this: *mut Self, from: u64) -> Option<()> {
        // SAFETY: by contract.
        let (first, second) = unsafe {
            (
                from.wrapping_sub((&raw const (*this).start[0]).read_volatile()),
                from.wrapping_sub((&raw const (*this).start[1]).read_volatile()),
            )
        };
        // Without branches, but for the read: all ones if the window does not begin in the piece, or ends behind it.
        let (not_first, not_second) = (outside(first), outside(second));
        let mut index = first & !not_first | second.wrapping_add(PIECE) & not_first;
        if not_first & not_second != 0 {
            // SAFETY: by contract.
            index = unsafe { Self::fetch(this, from) }?;
        }
        // SAFETY: by contract.
        unsafe { (&raw mut (*this).index).write_volatile(index) };
        Some(())
    }

    /// Reads a piece that ends with the window at `from`: callers' frames are below.
    #[inline(always)]
    unsafe fn fetch(this: *mut Self, from: u64) -> Option<u64> {
        // SAFETY: by contract.
        let turn = unsafe { (&raw const (*this).turn).read_volatile() } & 1;
        let page = from & !(PAGE - 1);
        let start = page + not_negative(from.wrapping_sub(LAST).wrapping_sub(page));
        // SAFETY: by contract; `turn` is 0 or 1.
        unsafe {
            (&raw mut (*this).turn).write_volatile(turn ^ 1);
            let bytes = (&raw mut (*this).bytes).cast::<u8>().add((turn * PIECE) as usize);
            if bpf_probe_read_user(bytes.cast(), PIECE as u32, start as *const _) != 0 {
                return None;
            }
            (&raw mut (*this).start)
                .cast::<u64>()
                .add(turn as usize)
                .write_volatile(start);
        }
        Some(from.wrapping_sub(start).wrapping_add(turn * PIECE))
    }

    /// The word at `offset` in the current window.
    #[inline(always)]
    pub(crate) unsafe fn word(this: *const Self, offset: u32) -> u64 {
        // SAFETY: by contract; both parts are masked so that the word is in `bytes`.
        unsafe {
            let index = (&raw const (*this).index).read_volatile() & (PIECE * PIECES as u64 - 8);
            let at = index as usize + (offset & WINDOW_MASK) as usize;
            (&raw const (*this).bytes)
                .cast::<u8>()
                .add(at)
                .cast::<u64>()
                .read_volatile()
        }
    }

    /// Reads `len` bytes at `address`, at most a piece, for [`Memory::fetched`]; 0, or an error. Before
    /// [`Memory::begin`].
    #[inline(always)]
    pub(crate) unsafe fn read(this: *mut Self, address: u64, len: u32) -> i64 {
        // SAFETY: by contract; the length is masked.
        unsafe {
            bpf_probe_read_user(
                (&raw mut (*this).bytes).cast(),
                len & (PIECE as u32 - 1),
                address as *const _,
            )
        }
    }

    /// The word at `offset` in what was read.
    #[inline(always)]
    pub(crate) unsafe fn fetched(this: *const Self, offset: u32) -> u64 {
        // SAFETY: by contract; the offset is masked.
        unsafe {
            let at = offset & (PIECE as u32 - 8);
            (&raw const (*this).bytes)
                .cast::<u8>()
                .add(at as usize)
                .cast::<u64>()
                .read_volatile()
        }
    }
}

/// All ones if a window at `distance` from the start of a piece is not in it, otherwise 0.
#[inline(always)]
fn outside(distance: u64) -> u64 {
    sign(distance | LAST.wrapping_sub(distance))
}

/// `value`, or 0 if it is negative.
#[inline(always)]
fn not_negative(value: u64) -> u64 {
    value & !sign(value)
}
