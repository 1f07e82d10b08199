//! How the verifier is shown that a loop ends.
//!
//! It follows a counted loop through every one of its iterations, and that takes most of the time from the start of a
//! recording to its first event. From 6.9 on kernels know `may_goto`, an instruction that leaves a loop after millions
//! of iterations whatever the program does: then two iterations are followed, and the rest look the same.

use core::{arch::asm, marker::PhantomData};

use crate::opaque::low_bits;

/// One of the two ways.
pub(crate) trait Loops {
    /// The count to begin with; `zero` is `Config::zero`.
    fn first(zero: u32) -> u64;
    /// The count after one more iteration.
    fn count(done: u64) -> u64;
    /// Whether the kernel lets the loop go on.
    fn go_on() -> bool;
}

/// For all kernels: the verifier knows the count.
pub(crate) struct Counted;

impl Loops for Counted {
    #[inline(always)]
    fn first(_zero: u32) -> u64 {
        0
    }

    #[inline(always)]
    fn count(done: u64) -> u64 {
        done + 1
    }

    #[inline(always)]
    fn go_on() -> bool {
        true
    }
}

/// For kernels that have `may_goto`: of the count it is known that it is small, not what it is.
pub(crate) struct MayGoto;

impl Loops for MayGoto {
    #[inline(always)]
    fn first(zero: u32) -> u64 {
        low_bits::<1023>(zero).into()
    }

    #[inline(always)]
    fn count(done: u64) -> u64 {
        low_bits::<1023>(done as u32 + 1).into()
    }

    #[inline(always)]
    fn go_on() -> bool {
        // SAFETY: it does nothing but go on or leave.
        unsafe { asm!("may_goto {}", label { return false }) };
        true
    }
}

/// The iterations of a loop.
pub(crate) struct Rounds<L: Loops> {
    /// 64 bits: the verifier takes no note of the end of a shorter value's life on the stack, and would tell apart
    /// states that differ in what is left of it.
    done: u64,
    most: u64,
    how: PhantomData<L>,
}

impl<L: Loops> Rounds<L> {
    /// At most so many, below 1023; `zero` is `Config::zero`.
    #[inline(always)]
    pub(crate) fn new(most: u32, zero: u32) -> Self {
        Self {
            done: L::first(zero),
            most: most.into(),
            how: PhantomData,
        }
    }

    /// Whether there is another one.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> bool {
        if self.done >= self.most || !L::go_on() {
            return false;
        }
        self.done = L::count(self.done);
        true
    }
}
