//! The uses of the arenas' radix tree.
//!
//! Every inlined `address_in_range` begins with the index into the tree's root, a shift by a constant that little else
//! shifts by. All code is searched for its bytes, whatever stands around them.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};

use super::{super::code::Code, sides::Implementation};
use crate::python::ImageFacts;

/// Uses taken; optimised builds have fewer than 100.
const MAX_LOOKUPS: usize = 1 << 12;
/// 3.9 tells its blocks by the index of their arena.
const TREE_SINCE: u8 = 10;
/// 3.10 ignores the upper 16 bits of addresses.
const MASKED_UNTIL: u8 = 10;
/// Instructions up to where it does.
const MAX_TO_MASK: usize = 8;

/// All of them, by address.
pub(super) fn all(code: &Code<'_>, implementation: &Implementation, facts: &ImageFacts) -> Vec<Instruction> {
    let mut found = Vec::new();
    if facts.version.minor < TREE_SINCE {
        return found;
    }
    for segment in code.elf().segments().iter().filter(|segment| segment.executable) {
        let Some(bytes) = code.elf().bytes_from(segment.address) else {
            continue;
        };
        for (window, index) in bytes.array_windows::<4>().zip(0_u64..) {
            // REX.W or REX.WB, `shr r64, imm8`.
            let [0x48 | 0x49, 0xc1, 0xe8..=0xef, shift] = *window else {
                continue;
            };
            if shift == implementation.shift
                && found.len() < MAX_LOOKUPS
                && let Some(instruction) = code.at(segment.address.get().wrapping_add(index))
                && implementation.is_lookup(&instruction)
                && (facts.version.minor > MASKED_UNTIL || is_masked(code, &instruction))
            {
                found.push(instruction);
            }
        }
    }
    found
}

/// Whether what is left of the address is cut to 10 bits, as an index of 48-bit addresses is.
fn is_masked(code: &Code<'_>, lookup: &Instruction) -> bool {
    const MAP_TOP_MASK: u64 = 0x3ff;
    let register = lookup.op0_register();
    let mut at = *lookup;
    for _ in 0..MAX_TO_MASK {
        match code.at(at.next_ip()) {
            Some(next) if next.flow_control() == FlowControl::Next => at = next,
            _ => return false,
        }
        if code.written(&at).contains(register) {
            return at.mnemonic() == Mnemonic::And
                && is_immediate(at.op1_kind())
                && at.immediate(1) == MAP_TOP_MASK;
        }
    }
    false
}

/// Whether the function around it is `arena_map_mark_used`, which adds an arena's size to the address and goes
/// through the tree once more; no copy of a free or realloc does.
/// <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c>
pub(super) fn marks_arena(code: &Code<'_>, lookup: &Instruction) -> bool {
    const ARENA_SIZE: u64 = 1 << 20;
    const POOL_MASK: u64 = !0x3fff;
    let Some(body) = code.body(lookup.ip()) else {
        return false;
    };
    let has = |mnemonic, value| {
        body.instructions().iter().any(|instruction| {
            instruction.mnemonic() == mnemonic
                && instruction.op_count() == 2
                && is_immediate(instruction.op1_kind())
                && instruction.immediate(1) == value
        })
    };
    has(Mnemonic::Add, ARENA_SIZE) && !has(Mnemonic::And, POOL_MASK)
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8to64 | OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64
    )
}
