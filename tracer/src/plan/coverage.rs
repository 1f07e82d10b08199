//! How much of pymalloc's allocation code function probes see.
//!
//! `allocate_from_new_pool` is the slow path of every copy of `pymalloc_alloc`, inlined or not, and compilers
//! leave it out of line: <https://github.com/python/cpython/blob/v3.11.0/Objects/obmalloc.c#L1880>. So the calls to
//! it are the copies, and those within the probed functions are the copies that are seen. All of the code is
//! searched for their bytes, which is much faster than decoding it.

use rustc_hash::FxHashSet;

use crate::{
    elf::{Elf, Pointer},
    python::{
        ImageFacts,
        flow::{Next, explore},
    },
    units::VirtAddr,
};

/// Instructions followed in one function.
const LIMIT: usize = 3000;

/// How much of the allocator's code in an image is seen: of the copies of pymalloc's allocation by function probes, of all
/// references to the allocator by sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Coverage {
    /// Those that a site sees.
    pub resolved: u32,
    /// All of them.
    pub copies: u32,
}

impl Coverage {
    /// Copies whose allocations are not seen.
    pub fn unseen(self) -> u32 {
        self.copies.saturating_sub(self.resolved)
    }

    /// Percent seen; of nothing, all. To be rounded down, so that 100 means all.
    pub fn percent(self) -> f64 {
        match self.copies {
            0 => 100.0,
            copies => 100.0 * f64::from(self.resolved) / f64::from(copies),
        }
    }
}

/// Counts the copies; `None` if `allocate_from_new_pool` is not recognised (clang inlines it).
pub(super) fn of(facts: &ImageFacts, elf: &Elf<'_>) -> Option<Coverage> {
    let [malloc, calloc, realloc, _] = facts.functions.obj;
    let refill = refill_function(facts, elf, malloc)?;
    let mut seen = FxHashSet::default();
    for function in [malloc, calloc, realloc] {
        calls(elf, function, &mut |at, target| {
            if target == refill {
                seen.insert(at);
            }
        });
    }
    Some(Coverage {
        resolved: u32::try_from(seen.len()).ok()?,
        copies: u32::try_from(count_calls(elf, refill)).ok()?,
    })
}

/// `allocate_from_new_pool`: the one function that `_PyObject_Malloc` calls and that nobody can call by name.
fn refill_function(facts: &ImageFacts, elf: &Elf<'_>, malloc: VirtAddr) -> Option<VirtAddr> {
    let exported = [
        "PyMem_RawMalloc",
        "PyThreadState_Get",
        "_PyThreadState_GetCurrent",
        "_PyInterpreterState_Get",
    ];
    let mut excluded: Vec<VirtAddr> = exported
        .iter()
        .filter_map(|name| elf.exported(name))
        .map(|symbol| symbol.address)
        .collect();
    excluded.extend(facts.functions.raw);
    excluded.extend(facts.functions.obj);
    let mut found = Vec::new();
    calls(elf, malloc, &mut |_, target| {
        if !excluded.contains(&target) && !found.contains(&target) {
            found.push(target);
        }
    });
    match *found {
        [refill] => Some(refill),
        _ => None,
    }
}

/// The direct calls that a function makes: place and target.
fn calls(elf: &Elf<'_>, function: VirtAddr, visit: &mut dyn FnMut(VirtAddr, VirtAddr)) {
    explore(elf, function, LIMIT, &mut |step| {
        if let Some(Pointer::Address(target)) = step.target
            && step.instruction.is_call_near()
        {
            visit(VirtAddr(step.instruction.ip()), target);
        }
        Next::Go
    });
}

/// How many `call rel32` in the image's code lead to `target`.
fn count_calls(elf: &Elf<'_>, target: VirtAddr) -> usize {
    let code = elf.segments().iter().filter(|segment| segment.executable);
    code.filter_map(|segment| Some((segment.address.get(), elf.bytes_from(segment.address)?)))
        .map(|(start, bytes)| {
            // From the end of the call's five bytes on.
            let wanted = |index: u64| {
                target
                    .get()
                    .wrapping_sub(start.wrapping_add(index).wrapping_add(5))
            };
            bytes
                .array_windows::<5>()
                .zip(0_u64..)
                .filter(|([opcode, displacement @ ..], index)| {
                    *opcode == 0xe8
                        && i64::from(i32::from_le_bytes(*displacement)).cast_unsigned() == wanted(*index)
                })
                .count()
        })
        .sum()
}
