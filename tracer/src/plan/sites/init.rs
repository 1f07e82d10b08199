//! Where a pool is set up: the end of the slow path, in `allocate_from_new_pool` or wherever that is inlined.
//!
//! ```c
//! pool->ref.count = 1;
//! if (pool->szidx == size) { bp = pool->freeblock; ... return bp; }
//! pool->szidx = size; ...
//! ```
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c#L2151-L2170>. All code is searched for the compare's
//! bytes. Invariant: a jump is taken only if the equal way takes the pool's free block and the other way stores
//! the class.

use iced_x86::{Code as Opcode, Instruction, OpKind, Register};
use rustc_hash::FxHashSet;

use super::{
    code::Code,
    pool::{self, equality_edges, takes_freeblock},
    registers::{is_call, number, word},
};

/// `offsetof(struct pool_header, szidx)`.
const SZIDX: u8 = 0x24;
/// Bytes between the compare and the store of the pool's first use.
const NEAR: usize = 64;
/// `1`, as an immediate.
const ONE: [u8; 4] = [1, 0, 0, 0];
/// Set-ups taken; every known build has fewer than five.
const MAX_FOUND: usize = 1 << 10;
/// Instructions looked at behind a jump.
const BUDGET: usize = 60;

/// The jump of a set-up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Init {
    pub(super) jump: Instruction,
    pub(super) pool: Register,
    /// Holds the index of the class.
    pub(super) class: Register,
}

/// All of them.
pub(super) fn all(code: &Code<'_>) -> Vec<Init> {
    let mut found: Vec<Init> = Vec::new();
    for segment in code.elf().segments().iter().filter(|segment| segment.executable) {
        let Some(bytes) = code.elf().bytes_from(segment.address) else {
            continue;
        };
        // `cmp r32, 0x24(r64)` or the other way round; the base is not RSP, whose encoding is longer.
        for index in memchr::memchr2_iter(0x39, 0x3b, bytes) {
            let Some([_, mode, SZIDX]) = bytes.get(index..).and_then(<[u8]>::first_chunk::<3>) else {
                continue;
            };
            if mode & 0xc0 != 0x40 || mode & 7 == 4 || found.len() >= MAX_FOUND {
                continue;
            }
            let around = bytes.get(index.saturating_sub(NEAR)..bytes.len().min(index + NEAR));
            let is_near = around.is_some_and(|around| around.array_windows::<4>().any(|bytes| *bytes == ONE));
            let Some(init) = is_near
                .then(|| code.over(segment.address.get().wrapping_add(index as u64)))
                .flatten()
                .and_then(|compare| prove(code, &compare))
            else {
                continue;
            };
            if found.iter().all(|known| known.jump.ip() != init.jump.ip()) {
                found.push(init);
            }
        }
    }
    found
}

fn prove(code: &Code<'_>, compare: &Instruction) -> Option<Init> {
    let class = match compare.code() {
        Opcode::Cmp_r32_rm32 if compare.op1_kind() == OpKind::Memory => compare.op0_register(),
        Opcode::Cmp_rm32_r32 if compare.op0_kind() == OpKind::Memory => compare.op1_register(),
        _ => return None,
    };
    let memory = word(compare).filter(|memory| memory.displacement == i64::from(SZIDX))?;
    let (jump, between) = pool::jump_behind(code, compare)?;
    let is_kept = |register| between.iter().all(|step| !code.written(step).contains(register));
    if !is_kept(memory.base) || !is_kept(class) {
        return None;
    }
    let (equal, different) = equality_edges(&jump)?;
    let is_proven =
        takes_freeblock(code, equal, memory.base) && stores_class(code, different, memory.base, class);
    is_proven.then_some(Init {
        jump,
        pool: memory.base,
        class: class.full_register(),
    })
}

/// Whether every way from `start` on stores the class into the pool's header.
fn stores_class(code: &Code<'_>, start: u64, pool: Register, class: Register) -> bool {
    let is_store = |instruction: &Instruction| {
        instruction.code() == Opcode::Mov_rm32_r32
            && instruction.op0_kind() == OpKind::Memory
            && number(instruction.op1_register()) == number(class)
            && word(instruction).is_some_and(|to| to.base == pool && to.displacement == i64::from(SZIDX))
    };
    let mut seen = FxHashSet::default();
    let mut ways = vec![start];
    while let Some(at) = ways.pop() {
        if !seen.insert(at) {
            continue;
        }
        let Some(instruction) = code.at(at) else {
            return false;
        };
        if is_store(&instruction) {
            continue;
        }
        let written = code.written(&instruction);
        let is_lost = written.contains(pool) || written.contains(class);
        let next = code.successors(&instruction);
        if seen.len() > BUDGET || is_lost || is_call(&instruction) || next.iter().next().is_none() {
            return false;
        }
        ways.extend(next.iter());
    }
    true
}
