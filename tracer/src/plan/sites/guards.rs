//! Guards: where code asks whether an allocator table's slot holds a function that was inlined there.
//!
//! A compiler that knows from training what a slot holds writes `cmp $function, slot ; jne`, with the address as an
//! immediate or, in code that may be loaded anywhere, in a register.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{
    code::Code,
    hoisted,
    pool::equality_edges,
    registers::{is_call, number, writes_flags},
};

/// Instructions between the load of the address, the compare and the jump.
const MAX_BETWEEN: usize = 24;

/// The jump of a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guard {
    /// The function asked for.
    pub(super) function: u64,
    /// The conditional jump.
    pub(super) jump: u64,
    /// Where it goes on if the slot holds the function.
    pub(super) equal: u64,
    /// Where it goes on otherwise.
    pub(super) different: u64,
}

/// The guards that an instruction with the function's address belongs to; none if it is for something else.
pub(super) fn all(code: &Code<'_>, reference: &Instruction, function: u64) -> Vec<Guard> {
    let compares: Vec<Instruction> = if reference.mnemonic() == Mnemonic::Cmp {
        vec![*reference]
    } else {
        match hoisted::compares(code, reference, function) {
            Some(compares) => compares.into_iter().map(|(compare, _)| compare).collect(),
            None => compare_with(code, reference).into_iter().collect(),
        }
    };
    let guards = compares
        .iter()
        .filter_map(|compare| behind(code, compare, function));
    guards.collect()
}

/// The guard that a compare belongs to.
fn behind(code: &Code<'_>, compare: &Instruction, function: u64) -> Option<Guard> {
    let mut at = *compare;
    for _ in 0..MAX_BETWEEN {
        at = code.at(at.next_ip())?;
        if let Some((equal, different)) = equality_edges(&at) {
            return Some(Guard {
                function,
                jump: at.ip(),
                equal,
                different,
            });
        }
        if writes_flags(&at) || code.successors(&at).next.is_none() {
            return None;
        }
    }
    None
}

/// The compare of the register that `lea` or `mov` has put the address into.
fn compare_with(code: &Code<'_>, load: &Instruction) -> Option<Instruction> {
    let is_load = matches!(load.mnemonic(), Mnemonic::Lea | Mnemonic::Mov);
    if !is_load || load.op0_kind() != OpKind::Register {
        return None;
    }
    let register = load.op0_register();
    let mut at = *load;
    for _ in 0..MAX_BETWEEN {
        at = code.at(at.next_ip())?;
        let names =
            |operand| at.op_kind(operand) == OpKind::Register && is_same(at.op_register(operand), register);
        if at.mnemonic() == Mnemonic::Cmp && (names(0) || names(1)) {
            return Some(at);
        }
        if is_call(&at) || code.written(&at).contains(register) || code.successors(&at).next.is_none() {
            return None;
        }
    }
    None
}

fn is_same(a: Register, b: Register) -> bool {
    number(a).is_some() && number(a) == number(b)
}
