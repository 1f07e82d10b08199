//! Compares with an address that was put into a register long before: compilers take that out of loops, and share it
//! between several guards.
//!
//! A compare counts if the register holds the address on every way that leads there.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use rustc_hash::FxHashSet;

use super::{code::Code, registers::number};

/// Instructions followed from the load on, and back from one compare.
const MAX_SEEN: usize = 4000;

/// The compares that the address is used in which `load` puts into a register, each with the operand that it is compared
/// with; `None` if not all of them are proven.
pub(super) fn compares(
    code: &Code<'_>,
    load: &Instruction,
    function: u64,
) -> Option<Vec<(Instruction, u32)>> {
    let register = loaded(load, function)?;
    let mut found = Vec::new();
    let mut seen = FxHashSet::default();
    let mut ways: Vec<u64> = code.successors(load).iter().collect();
    while let Some(at) = ways.pop() {
        if !seen.insert(at) {
            continue;
        }
        if seen.len() > MAX_SEEN {
            return None;
        }
        let instruction = code.at(at)?;
        found.extend(compared_with(&instruction, register).map(|other| (instruction, other)));
        if !code.written(&instruction).contains(register) {
            ways.extend(code.successors(&instruction).iter());
        }
    }
    let is_proven = |(compare, _): &(Instruction, u32)| is_always_loaded(code, compare, register, function);
    (!found.is_empty() && found.iter().all(is_proven)).then_some(found)
}

/// The register that the instruction puts the address into.
fn loaded(instruction: &Instruction, function: u64) -> Option<Register> {
    let address = match (instruction.mnemonic(), instruction.op1_kind()) {
        (Mnemonic::Lea, OpKind::Memory)
            if matches!(instruction.memory_base(), Register::None | Register::RIP)
                && instruction.memory_index() == Register::None =>
        {
            instruction.memory_displacement64()
        }
        (Mnemonic::Mov, OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64) => {
            instruction.immediate(1)
        }
        _ => return None,
    };
    let is_register = instruction.op0_kind() == OpKind::Register;
    (is_register && address == function).then(|| instruction.op0_register())
}

/// The operand that the register is compared with.
fn compared_with(instruction: &Instruction, register: Register) -> Option<u32> {
    let names = |operand| {
        instruction.op_kind(operand) == OpKind::Register
            && instruction.op_register(operand).is_gpr64()
            && number(instruction.op_register(operand)) == number(register)
    };
    match instruction.mnemonic() {
        Mnemonic::Cmp if names(1) => Some(0),
        Mnemonic::Cmp if names(0) => Some(1),
        _ => None,
    }
}

/// Whether all ways to `place` put the address into the register.
fn is_always_loaded(code: &Code<'_>, place: &Instruction, register: Register, function: u64) -> bool {
    let mut seen = FxHashSet::default();
    let mut open = vec![place.ip()];
    while let Some(at) = open.pop() {
        if !seen.insert(at) {
            continue;
        }
        let before = code.predecessors(at);
        if before.is_empty() || code.begins(at) || seen.len() > MAX_SEEN {
            return false;
        }
        for instruction in before {
            if loaded(&instruction, function).is_some_and(|other| number(other) == number(register)) {
                continue;
            }
            if code.written(&instruction).contains(register) {
                return false;
            }
            open.push(instruction.ip());
        }
    }
    true
}
