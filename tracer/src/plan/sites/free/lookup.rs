//! The uses of the arenas' radix tree.
//!
//! Every inlined `address_in_range` begins with the index into the tree's root: a shift, then a load of the word with
//! that index. All code is searched for the bytes of the shift, whatever stands around them.
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c>

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};
use rustc_hash::FxHashSet;

use super::{super::code::Code, sides::Implementation};
use crate::python::ImageFacts;

/// Uses taken; optimised builds have fewer than 100.
const MAX_LOOKUPS: usize = 1 << 12;
/// 3.9 tells its blocks by the index of their arena.
const TREE_SINCE: u8 = 10;
/// Instructions from the shift to the load.
const MAX_TO_LOAD: usize = 16;
/// Instructions from the shift to the tree's leaf, all ways together.
const MAX_TO_LEAF: usize = 200;
/// Bytes of a pointer in an inner node, and of an entry in a leaf.
const SCALE: u32 = 8;

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
        for opcode in memchr::memchr_iter(0xc1, bytes) {
            // REX.W or REX.WB, `shr r64, imm8`.
            let Some(index) = opcode.checked_sub(1) else {
                continue;
            };
            let Some([0x48 | 0x49, _, 0xe8..=0xef, shift]) =
                bytes.get(index..).and_then(<[u8]>::first_chunk::<4>)
            else {
                continue;
            };
            if *shift == implementation.shift
                && found.len() < MAX_LOOKUPS
                && let Some(instruction) = code.at(segment.address.get().wrapping_add(index as u64))
                && implementation.is_lookup(&instruction)
                && is_index(code, &instruction)
            {
                found.push(instruction);
            }
        }
    }
    found
}

/// Whether a word is loaded with the shifted value as its index; cryptography shifts by such constants, too.
fn is_index(code: &Code<'_>, lookup: &Instruction) -> bool {
    let mut holders = vec![lookup.op0_register().full_register()];
    let mut at = *lookup;
    for _ in 0..MAX_TO_LOAD {
        at = match code.at(at.next_ip()) {
            Some(next) => next,
            None => return false,
        };
        let holds = |register: Register| holders.contains(&register.full_register());
        if holds(at.memory_index()) && at.memory_index_scale() == SCALE {
            return true;
        }
        if !matches!(
            at.flow_control(),
            FlowControl::Next | FlowControl::ConditionalBranch
        ) {
            return false;
        }
        let is_register = |kind| kind == OpKind::Register;
        let is_copy = matches!(at.mnemonic(), Mnemonic::Mov | Mnemonic::Movsxd)
            && is_register(at.op0_kind())
            && is_register(at.op1_kind())
            && holds(at.op1_register());
        // 3.10 ignores the upper 16 bits of addresses.
        let is_mask = at.mnemonic() == Mnemonic::And && !is_register(at.op1_kind());
        if !is_mask {
            let written = code.written(&at);
            holders.retain(|register| !written.contains(*register));
        }
        if is_copy {
            holders.push(at.op0_register().full_register());
        }
    }
    false
}

/// Whether the use is one of `arena_map_mark_used`, which writes into the leaf; a search for a block only reads it.
pub(super) fn marks_arena(code: &Code<'_>, lookup: &Instruction) -> bool {
    let mut writes = false;
    let mut seen = FxHashSet::default();
    let mut ways = vec![lookup.next_ip()];
    while let Some(address) = ways.pop() {
        if !seen.insert(address) {
            continue;
        }
        let Some(at) = code.at(address) else {
            continue;
        };
        if seen.len() > MAX_TO_LEAF {
            return false;
        }
        // An entry of the leaf is two 32-bit numbers.
        if at.memory_index_scale() == SCALE && at.memory_size().size() == 4 {
            if at.mnemonic() != Mnemonic::Mov || at.op0_kind() != OpKind::Memory {
                return false;
            }
            writes = true;
            continue;
        }
        ways.extend(code.successors(&at).iter());
    }
    writes
}
