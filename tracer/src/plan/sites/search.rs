//! Who refers to an address: a search over the bytes of all code, each hit confirmed by decoding its function.
//!
//! Independent of what the site finder recognises, so that it can tell what that missed. Found are direct calls and
//! jumps, conditional ones too, immediates and absolute displacements of 32 bits, and displacements relative to
//! the instruction pointer.

use iced_x86::{Instruction, OpKind};

use super::{
    code::Code,
    words::{self, Reading},
};
use crate::units::VirtAddr;

/// References taken; the optimised builds have some 2,000.
const MAX_HITS: usize = 1 << 16;
/// Bytes of an immediate that may follow a displacement.
const TRAILING: [u64; 4] = [0, 1, 2, 4];
/// How four bytes may make a target.
const RELATIVE: u8 = 1;
const ABSOLUTE: u8 = 2;

/// An instruction that refers to one of the addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    /// The one referred to.
    pub(super) target: u64,
    /// What refers to it.
    pub(super) instruction: Instruction,
}

/// What a search found.
#[derive(Debug, Default)]
pub(super) struct Hits {
    /// By address of the instruction.
    pub(super) hits: Vec<Hit>,
    /// Bytes that look like a call or jump, outside of all known functions: target and place.
    pub(super) outside: Vec<(u64, u64)>,
}

/// A search that was made.
#[derive(Debug)]
pub(super) struct Searched {
    /// In order.
    targets: Vec<u64>,
    hits: Hits,
}

impl Hits {
    /// The instructions that refer to `target`.
    pub(super) fn of(&self, target: VirtAddr) -> impl Iterator<Item = &Instruction> {
        let hits = self.hits.iter().filter(move |hit| hit.target == target.get());
        hits.map(|hit| &hit.instruction)
    }
}

impl Code<'_> {
    /// All references to `targets`.
    pub(super) fn references(&self, targets: &[VirtAddr]) -> Hits {
        let mut targets: Vec<u64> = targets.iter().map(|target| target.get()).collect();
        targets.sort_unstable();
        targets.dedup();
        match self.searched.get() {
            Some(searched) if targets.iter().all(|target| searched.targets.contains(target)) => Hits {
                hits: {
                    let wanted = |hit: &&Hit| targets.binary_search(&hit.target).is_ok();
                    searched.hits.hits.iter().filter(wanted).copied().collect()
                },
                outside: {
                    let wanted = |(target, _): &&(u64, u64)| targets.binary_search(target).is_ok();
                    searched.hits.outside.iter().filter(wanted).copied().collect()
                },
            },
            _ => self.search(&targets),
        }
    }

    /// Searches for `targets` in one go; what refers to some of them is known afterwards.
    pub(super) fn search_ahead(&self, targets: impl Iterator<Item = u64>) {
        let mut targets: Vec<u64> = targets.collect();
        targets.sort_unstable();
        targets.dedup();
        let hits = self.search(&targets);
        // Only the first search is kept.
        let _ = self.searched.set(Searched { targets, hits });
    }

    fn search(&self, targets: &[u64]) -> Hits {
        let mut found = Hits::default();
        for (target, place) in self.candidates(targets) {
            match self.over(place) {
                Some(instruction) if refers(&instruction, target) => {
                    found.hits.push(Hit { target, instruction });
                }
                None if self.is_branch(place, target) && self.function_at(place).is_none() => {
                    found.outside.push((target, place));
                }
                _ => {}
            }
        }
        found.hits.sort_by_key(|hit| (hit.instruction.ip(), hit.target));
        found.hits.dedup_by_key(|hit| (hit.instruction.ip(), hit.target));
        found
    }

    /// Whether the four bytes at `place` would be a direct call's or jump's to `target`.
    fn is_branch(&self, place: u64, target: u64) -> bool {
        let opcode = place
            .checked_sub(2)
            .and_then(|start| self.elf().bytes(VirtAddr(start), 6));
        let Some([a, b, displacement @ ..]) = opcode.and_then(|bytes| bytes.first_chunk::<6>()) else {
            return false;
        };
        let displacement = i64::from(i32::from_le_bytes(*displacement));
        let leads_there = place.wrapping_add(4).wrapping_add_signed(displacement) == target;
        let is_opcode = matches!((a, b), (_, 0xe8 | 0xe9) | (0x0f, 0x80..=0x8f));
        leads_there && is_opcode
    }

    /// Four bytes of code that make a target, as they stand or relative to an instruction's end: target and place.
    fn candidates(&self, targets: &[u64]) -> Vec<(u64, u64)> {
        let (Some(first), Some(last)) = (targets.first(), targets.last()) else {
            return Vec::new();
        };
        let span = first.saturating_sub(4)..=*last;
        // Most displacements lead elsewhere: a small table on the low bits tells without a search.
        let mut maybe = [0_u8; 4096];
        let mut mark = |value: u64, bit: u8| {
            if let Some(place) = maybe.get_mut(low_bits(value)) {
                *place |= bit;
            }
        };
        for target in targets {
            mark(*target, ABSOLUTE);
            for trailing in TRAILING {
                mark(target.wrapping_sub(trailing), RELATIVE);
            }
        }
        let is_maybe =
            |value: u64, bit: u8| maybe.get(low_bits(value)).copied().unwrap_or_default() & bit != 0;
        let mut found = Vec::new();
        for segment in self.elf().segments().iter().filter(|segment| segment.executable) {
            let Some(bytes) = self.elf().bytes_from(segment.address) else {
                continue;
            };
            words::within(bytes, segment.address, &span, |_, word| {
                if found.len() >= MAX_HITS {
                    return;
                }
                match word.reading {
                    Reading::Displacement if is_maybe(word.address, RELATIVE) => {
                        for trailing in TRAILING {
                            let target = word.address.wrapping_add(trailing);
                            if targets.binary_search(&target).is_ok() {
                                found.push((target, word.place));
                            }
                        }
                    }
                    Reading::Absolute
                        if is_maybe(word.address, ABSOLUTE)
                            && targets.binary_search(&word.address).is_ok() =>
                    {
                        found.push((word.address, word.place));
                    }
                    _ => {}
                }
            });
        }
        found
    }
}

fn low_bits(value: u64) -> usize {
    usize::from((value & 0xfff) as u16)
}

/// Whether an operand of the instruction is that address.
fn refers(instruction: &Instruction, target: u64) -> bool {
    (0..instruction.op_count()).any(|operand| match instruction.op_kind(operand) {
        OpKind::NearBranch64 => instruction.near_branch_target() == target,
        OpKind::Memory if instruction.is_ip_rel_memory_operand() => {
            instruction.ip_rel_memory_address() == target
        }
        OpKind::Memory => instruction.memory_displacement64() == target,
        OpKind::Immediate32 | OpKind::Immediate32to64 => instruction.immediate(operand) == target,
        _ => false,
    })
}
