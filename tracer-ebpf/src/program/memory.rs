//! Working memory of a hit: pieces of the target's memory in which several frames lie, the stack that is walked, and what
//! is remembered of the thread that was here last.
//!
//! A read of the target's memory costs little more for 1500 bytes than for 8, so that frames are read many at a time.
//! That takes more memory than a program's stack has, and memory per CPU is not safe in a program that can be preempted.
//! So there is a number of places, and a hit takes one that is free for as long as it walks: nearly always the same one
//! for the same thread. They are an array's, which the kernel allocates in a way that its checks of copies from user space
//! are quick about; entries of a hash map double the price of a read.

use core::{arch::asm, mem};

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use tracer_ebpf::limits::{FRAME_WINDOW, WORKPLACES};

use crate::{maps::WORKPLACE, opaque::sign, thread::Thread, walk::Stack};

/// Bytes of a piece of a thread's data stack; frames of 3.11 and newer take 100 to 200 bytes each, and more bytes cost
/// more: 60 ns for a KiB, half as much as a read of a few.
const FRAMES: u64 = 1536;
/// Bytes of a piece around a variable of a C function.
const VARIABLES: u64 = 512;
/// Room for a piece.
const PIECE: u64 = 2048;
/// The thread's data stack, and the C stack, where the frames of C stubs are.
const PIECES: usize = 2;
/// No page is smaller. A piece does not reach down into a page in which no frame is: it may not be there, and a read
/// that fails costs as much as seven.
const PAGE: u64 = 4096;
/// Stacks that a place remembers; a power of two.
const KNOWN: usize = 64;
/// Where no frame is: an address of the kernel.
const NOWHERE: u64 = 1 << 63;
/// Room behind the pieces, for an index and a field's offset in the window, each masked on its own.
const ROOM: usize = 128;
const WINDOW_MASK: u32 = ROOM as u32 - 8;
const _: () = assert!(FRAME_WINDOW <= ROOM);
/// Places that are tried before a hit goes without: for none of them to be free, most must be taken.
const TRIES: u32 = 8;
/// How far apart they are.
const STRIDE: u32 = 61;
const _: () = assert!(WORKPLACES.is_power_of_two());

/// Value of [`WORKPLACE`].
#[repr(C)]
pub(crate) struct Memory {
    /// 1 while a hit uses it.
    taken: u64,
    /// What is remembered of the thread that used it last.
    pub(crate) thread: Thread,
    /// Number of the piece to be read next.
    turn: u64,
    /// Addresses at which the pieces begin.
    start: [u64; PIECES],
    /// A window that begins here in a piece, or before, lies in it.
    last: [u64; PIECES],
    /// Stacks of late that were sent, by the low bits of their key.
    known: [u64; KNOWN],
    /// The stack that is being walked.
    pub(crate) stack: Stack,
    bytes: [u8; PIECE as usize * PIECES + ROOM],
}

/// Takes a free place; `None` if there is none. It must be given back.
#[inline(always)]
pub(crate) fn take(thread: u64) -> Option<*mut Memory> {
    let found = try_to_take(thread, 0);
    if found.is_some() {
        return found;
    }
    take_another(thread)
}

/// The other places. A function of its own, so that the verifier sees one way out of it and not one for each attempt.
#[inline(never)]
fn take_another(thread: u64) -> Option<*mut Memory> {
    for attempt in 1..TRIES {
        let found = try_to_take(thread, attempt);
        if found.is_some() {
            return found;
        }
    }
    None
}

#[inline(always)]
fn try_to_take(thread: u64, attempt: u32) -> Option<*mut Memory> {
    let memory = place(thread, attempt)?;
    let mut taken = 1_u64;
    // Rust has no atomic read-modify-write for this target, BPF has.
    // SAFETY: a map value's word, aligned.
    unsafe {
        asm!("{value} = xchg_64({place} + 0, {value})", value = inout(reg) taken,
            place = in(reg) &raw mut (*memory).taken);
    }
    (taken == 0).then_some(memory)
}

/// Threads are numbered one by one, so that they seldom meet.
#[inline(always)]
fn place(thread: u64, attempt: u32) -> Option<*mut Memory> {
    WORKPLACE.get_ptr_mut((thread as u32).wrapping_add(attempt * STRIDE) & (WORKPLACES as u32 - 1))
}

/// A thread has ended, or runs another program: nothing of it is remembered, since its number can come again.
#[inline(always)]
pub(crate) fn forget_thread(thread: u64) {
    for attempt in 0..TRIES {
        if let Some(memory) = place(thread, attempt) {
            // SAFETY: a map value. Another thread can write its own name there at the same time; then that is lost, and
            // found again.
            unsafe {
                if (*memory).thread.number == thread {
                    (*memory).thread.number = 0;
                }
            }
        }
    }
}

/// Where a piece lies around the address for which it is read.
#[derive(Clone, Copy)]
pub(crate) enum Around {
    /// Most of it below: callers' frames in a thread's data stack.
    Below,
    /// Half of it below: what else the same C function has on its stack.
    Both,
}

impl Memory {
    /// Gives the place back.
    ///
    /// # Safety
    /// All functions here: `this` was taken by this hit.
    #[inline(always)]
    pub(crate) unsafe fn give_back(this: *mut Self) {
        // SAFETY: by contract. x86 keeps stores in order.
        unsafe { (&raw mut (*this).taken).write_volatile(0) };
    }

    /// Its bytes, for something else than pieces, which are forgotten at the beginning of each walk.
    #[inline(always)]
    pub(crate) unsafe fn room<T>(this: *mut Self) -> *mut T {
        const {
            assert!(size_of::<T>() <= PIECE as usize && align_of::<T>() <= align_of::<Self>());
            assert!(mem::offset_of!(Self, bytes).is_multiple_of(align_of::<Self>()));
        };
        // SAFETY: by contract.
        unsafe { (&raw mut (*this).bytes).cast() }
    }

    /// Whether the stack with this key was sent, as far as this place knows.
    #[inline(always)]
    pub(crate) unsafe fn knows(this: *const Self, key: u64) -> bool {
        let at = key as usize & (KNOWN - 1);
        // SAFETY: by contract; the index is masked.
        unsafe { (&raw const (*this).known).cast::<u64>().add(at).read_volatile() == key }
    }

    /// It was.
    #[inline(always)]
    pub(crate) unsafe fn remember(this: *mut Self, key: u64) {
        let at = key as usize & (KNOWN - 1);
        // SAFETY: as above.
        unsafe { (&raw mut (*this).known).cast::<u64>().add(at).write_volatile(key) };
    }

    /// Forgets the pieces.
    #[inline(always)]
    pub(crate) unsafe fn begin(this: *mut Self) {
        // SAFETY: by contract.
        unsafe {
            (&raw mut (*this).start[0]).write_volatile(NOWHERE);
            (&raw mut (*this).start[1]).write_volatile(NOWHERE);
            (&raw mut (*this).last[0]).write_volatile(0);
            (&raw mut (*this).last[1]).write_volatile(0);
        }
    }

    /// Finds the window at `from`, which takes no read if it is in a piece; its index for [`Memory::word`]. `None` if
    /// the target's memory cannot be read.
    #[inline(always)]
    pub(crate) unsafe fn look(this: *mut Self, from: u64, around: Around) -> Option<u64> {
        // SAFETY: by contract.
        unsafe {
            let first = from.wrapping_sub((&raw const (*this).start[0]).read_volatile());
            if first <= (&raw const (*this).last[0]).read_volatile() {
                return Some(first);
            }
            let second = from.wrapping_sub((&raw const (*this).start[1]).read_volatile());
            if second <= (&raw const (*this).last[1]).read_volatile() {
                return Some(second.wrapping_add(PIECE));
            }
        }
        // SAFETY: by contract.
        unsafe { Self::fetch(this, from, around) }
    }

    /// Reads the piece around the window at `from`.
    #[inline(always)]
    unsafe fn fetch(this: *mut Self, from: u64, around: Around) -> Option<u64> {
        // SAFETY: by contract.
        let turn = unsafe { (&raw const (*this).turn).read_volatile() } & 1;
        let (len, below) = match around {
            Around::Below => (FRAMES, FRAMES - FRAME_WINDOW as u64),
            Around::Both => (VARIABLES, VARIABLES / 2),
        };
        let page = from & !(PAGE - 1);
        let start = page + not_negative(from.wrapping_sub(below).wrapping_sub(page));
        // SAFETY: by contract; `turn` is 0 or 1.
        unsafe {
            (&raw mut (*this).turn).write_volatile(turn ^ 1);
            let bytes = (&raw mut (*this).bytes).cast::<u8>().add((turn * PIECE) as usize);
            if bpf_probe_read_user(bytes.cast(), len as u32, start as *const _) != 0 {
                return None;
            }
            (&raw mut (*this).start)
                .cast::<u64>()
                .add(turn as usize)
                .write_volatile(start);
            (&raw mut (*this).last)
                .cast::<u64>()
                .add(turn as usize)
                .write_volatile(len - FRAME_WINDOW as u64);
        }
        Some(from.wrapping_sub(start).wrapping_add(turn * PIECE))
    }

    /// The word at `offset` in the window at `index`.
    #[inline(always)]
    pub(crate) unsafe fn word(this: *const Self, index: u64, offset: u32) -> u64 {
        // SAFETY: by contract; both parts are masked so that the word is in `bytes`.
        unsafe {
            let at = (index & (PIECE * PIECES as u64 - 8)) as usize + (offset & WINDOW_MASK) as usize;
            (&raw const (*this).bytes)
                .cast::<u8>()
                .add(at)
                .cast::<u64>()
                .read_volatile()
        }
    }
}

/// `value`, or 0 if it is negative.
#[inline(always)]
fn not_negative(value: u64) -> u64 {
    value & !sign(value)
}
