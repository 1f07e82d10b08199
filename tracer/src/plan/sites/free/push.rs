//! What every free of pymalloc does in the end: it makes the block the first one of its pool's list.
//!
//! `*(block **)p = pool->freeblock; pool->freeblock = p; pool->ref.count--`. This finds copies that stand behind no
//! guard, because the compiler knew whom it called (`_PyObject_Realloc` frees what it has moved), and is a
//! second enumeration of those that do. All code is searched for the bytes of the second store, whatever stands around.
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c>

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::super::{
    code::Code,
    registers::{load, number, store, word},
};
use crate::{plan::placement::is_emulated, units::VirtAddr};

/// Offset of `freeblock` in a pool's header; `ref.count` is at its beginning.
const FREEBLOCK: i64 = 8;
/// Bytes before the store in which the load of `freeblock` stands.
const MAX_BYTES: usize = 40;
/// Instructions between that load and the jump behind the store.
const MAX_STEPS: usize = 24;
/// Pushes taken; optimised builds have fewer than 100.
const MAX_PUSHES: usize = 1 << 12;

/// Opcodes of `mov %r64, m64` and `mov m64, %r64`.
const STORE: u8 = 0x89;
const LOAD: u8 = 0x8b;

/// A block is put onto its pool's list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Push {
    /// The store into the block.
    pub(super) link: VirtAddr,
    /// The store into the pool.
    pub(super) store: VirtAddr,
    /// The first jump behind it that every such free passes, and the register that has the block there.
    pub(super) jump: Option<(VirtAddr, Register)>,
}

/// All of them, by address.
pub(super) fn all(code: &Code<'_>) -> Vec<Push> {
    let mut found = Vec::new();
    for segment in code.elf().segments().iter().filter(|segment| segment.executable) {
        let Some(bytes) = code.elf().bytes_from(segment.address) else {
            continue;
        };
        for opcode in memchr::memchr_iter(STORE, bytes) {
            let Some(index) = opcode.checked_sub(1) else {
                continue;
            };
            let window = bytes.get(index..).and_then(<[u8]>::first_chunk::<5>);
            let Some(pool) = window.and_then(|window| base(*window, STORE)) else {
                continue;
            };
            let before = bytes
                .get(index.saturating_sub(MAX_BYTES)..index)
                .unwrap_or_default();
            let first = index - before.len();
            let mut loads = before
                .array_windows::<5>()
                .enumerate()
                .filter(|(_, window)| base(**window, LOAD) == Some(pool));
            // The nearest load is the one that counts.
            let Some((distance, _)) = loads.next_back() else {
                continue;
            };
            let address = |index: usize| segment.address.get().wrapping_add(index as u64);
            if found.len() < MAX_PUSHES {
                found.extend(push(code, address(first + distance), address(index)));
            }
        }
    }
    found
}

/// The base register's number of `mov %r64, 8(%base)` or `mov 8(%base), %r64`.
fn base(bytes: [u8; 5], opcode: u8) -> Option<u8> {
    let [rex @ 0x48..=0x4f, found, modrm, third, fourth] = bytes else {
        return None;
    };
    let low = modrm & 7;
    // RSP and R12 need another byte.
    let displacement = if low == 4 { fourth } else { third };
    let is_plain = low != 4 || third == 0x24;
    let is_wanted = found == opcode && modrm & 0xc0 == 0x40 && is_plain && displacement == 8;
    is_wanted.then_some(low | (rex & 1) << 3)
}

/// Looks from the load on: the store into the block, the store into the pool, the count, the jump.
fn push(code: &Code<'_>, from: u64, wanted: u64) -> Option<Push> {
    let mut at = code.at(from)?;
    let (first, place) = load(&at).filter(|(_, place)| place.displacement == FREEBLOCK)?;
    let pool = place.base;
    let mut counts = counts_down(code, from, pool);
    let mut link = None;
    let mut steps = MAX_STEPS;
    while at.ip() != wanted {
        at = code
            .at(at.next_ip())
            .filter(|at| at.flow_control() == FlowControl::Next)?;
        steps = steps.checked_sub(1)?;
        counts |= is_count(&at, pool);
        match store(&at) {
            Some((value, place)) if value == first && place.displacement == 0 && place.base != pool => {
                link = Some((VirtAddr(at.ip()), place.base));
            }
            // What was loaded, the pool and the block must be those of the load and of the store into the block.
            _ => {
                let written = code.written(&at);
                let block = link.map(|(_, block)| block);
                let is_lost = link.is_none() && written.contains(first);
                if is_lost || written.contains(pool) || block.is_some_and(|block| written.contains(block)) {
                    return None;
                }
            }
        }
    }
    let (link, block) = link?;
    store(&at).filter(|(value, place)| *value == block && place.base == pool)?;
    let mut jump = None;
    let mut knows = true;
    for _ in 0..steps {
        let Some(next) = code.at(at.next_ip()) else { break };
        at = next;
        // Other ways that lead here have another block.
        knows &= code.predecessors(at.ip()).len() == 1;
        match at.flow_control() {
            FlowControl::Next => counts |= is_count(&at, pool),
            FlowControl::ConditionalBranch if knows && is_emulated(&at) => {
                jump = Some((VirtAddr(at.ip()), block));
                break;
            }
            _ => break,
        }
        knows &= !code.written(&at).contains(block);
    }
    counts.then_some(Push {
        link,
        store: VirtAddr(wanted),
        jump,
    })
}

/// Whether the pool's count is written shortly before the load.
fn counts_down(code: &Code<'_>, load: u64, pool: Register) -> bool {
    let mut address = load;
    for _ in 0..4 {
        let [before] = *code.predecessors(address) else {
            return false;
        };
        if is_count(&before, pool) {
            return true;
        }
        address = before.ip();
    }
    false
}

/// Whether it writes the 32-bit word that a pool's header begins with.
fn is_count(instruction: &Instruction, pool: Register) -> bool {
    let is_first = word(instruction).is_some_and(|place| place.base == pool && place.displacement == 0);
    let is_written = instruction.op0_kind() == OpKind::Memory
        && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
    is_first && is_written && instruction.memory_size().size() == 4 && number(pool).is_some()
}
