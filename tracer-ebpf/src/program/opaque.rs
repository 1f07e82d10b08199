//! Arithmetic that the compiler cannot turn into branches and that says no more to the verifier than it must.
//!
//! The verifier follows every path through every iteration of a loop. A minimum that becomes a branch doubles
//! the paths, and a counter of which it knows the value makes each iteration a new one.

use core::arch::asm;

/// `value & MASK`, with nothing known about the result but that.
#[inline(always)]
pub(crate) fn low_bits<const MASK: i32>(value: u32) -> u32 {
    let mut value = u64::from(value);
    // SAFETY: pure arithmetic on a register.
    unsafe {
        asm!("{value} &= {mask}", value = inout(reg) value, mask = const MASK, options(pure, nomem, nostack))
    };
    value as u32
}

/// The smaller of `a` and `most`, for numbers below 2^63.
#[inline(always)]
pub(crate) fn at_most(a: u64, most: u64) -> u64 {
    let mut difference = a;
    // SAFETY: pure arithmetic on registers.
    unsafe {
        asm!(
            "{difference} -= {most}",
            "{sign} = {difference}",
            "{sign} s>>= 63",
            "{difference} &= {sign}",
            "{difference} += {most}",
            difference = inout(reg) difference,
            sign = out(reg) _,
            most = in(reg) most,
            options(pure, nomem, nostack),
        );
    }
    difference
}

/// 1 if `a < b`, otherwise 0, for numbers below 2^63.
#[inline(always)]
pub(crate) fn less(a: u64, b: u64) -> u64 {
    let mut value = a;
    // SAFETY: pure arithmetic on registers.
    unsafe {
        asm!("{value} -= {b}", "{value} >>= 63", value = inout(reg) value, b = in(reg) b,
            options(pure, nomem, nostack));
    };
    value
}

/// `value`, with nothing known about it: two paths that differ only in it are one again. `nothing` is
/// `Config::nothing`.
#[inline(always)]
pub(crate) fn forget(value: u64, nothing: u64) -> u64 {
    let mut value = value;
    // SAFETY: pure arithmetic on registers.
    unsafe {
        asm!("{value} ^= {nothing}", value = inout(reg) value, nothing = in(reg) nothing,
            options(pure, nomem, nostack));
    };
    value
}

/// All ones if the highest bit of `value` is set, otherwise 0.
#[inline(always)]
pub(crate) fn sign(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: pure arithmetic on a register.
    unsafe { asm!("{value} s>>= 63", value = inout(reg) value, options(pure, nomem, nostack)) };
    value
}
