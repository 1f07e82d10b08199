//! What an instruction does to the general purpose registers and to memory, as far as data flow needs it.

use iced_x86::{Code as Opcode, FlowControl, Instruction, Mnemonic, OpKind, Register};
use tracer_ebpf::site::Operand;

use super::code::Code;
use crate::python::flow::writes;

/// A set of general purpose registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RegisterSet(u16);

impl RegisterSet {
    /// What a callee may change (x86-64 psABI).
    pub(super) const CALLER_SAVED: Self = Self(0b0000_1111_1100_0111);

    pub(super) fn contains(self, register: Register) -> bool {
        number(register).is_some_and(|number| self.contains_number(number))
    }

    pub(super) fn contains_number(self, number: u8) -> bool {
        u32::from(self.0) >> number & 1 != 0
    }

    pub(super) fn insert_all(&mut self, others: Self) {
        self.0 |= others.0;
    }

    pub(super) fn insert(&mut self, register: Register) {
        if let Some(number) = number(register) {
            self.0 |= 1 << number;
        }
    }
}

/// The number of a 64-bit general purpose register, whatever part of it is named: RAX 0 to R15 15.
pub(super) fn number(register: Register) -> Option<u8> {
    let full = register.full_register();
    full.is_gpr64().then(|| u8::try_from(full.number()).ok())?
}

/// The register as a site's operand.
pub(super) fn operand(register: Register) -> Option<Operand> {
    number(register).map(Operand::register)
}

/// Memory at a register plus a displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) base: Register,
    pub(super) displacement: i64,
}

/// The memory operand, if it is a base register plus displacement without index or segment.
pub(super) fn word(instruction: &Instruction) -> Option<Word> {
    let has_memory =
        (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    let is_plain = instruction.memory_index() == Register::None
        && instruction.segment_prefix() == Register::None
        && instruction.memory_base().is_gpr64();
    (has_memory && is_plain).then(|| Word {
        base: instruction.memory_base(),
        displacement: instruction.memory_displacement64().cast_signed(),
    })
}

/// `mov %from, %to`, both of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) to: Register,
    pub(super) from: Register,
}

pub(super) fn register_move(instruction: &Instruction) -> Option<Move> {
    let is_move = matches!(instruction.code(), Opcode::Mov_r64_rm64 | Opcode::Mov_rm64_r64);
    let is_between = instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Register;
    (is_move && is_between).then(|| Move {
        to: instruction.op0_register(),
        from: instruction.op1_register(),
    })
}

/// `mov displacement(%base), %to` of 64 bits: what is loaded to where.
pub(super) fn load(instruction: &Instruction) -> Option<(Register, Word)> {
    let is_load = instruction.code() == Opcode::Mov_r64_rm64 && instruction.op1_kind() == OpKind::Memory;
    is_load.then(|| Some((instruction.op0_register(), word(instruction)?)))?
}

/// `mov %from, displacement(%base)` of 64 bits: what is stored where.
pub(super) fn store(instruction: &Instruction) -> Option<(Register, Word)> {
    let is_store = instruction.code() == Opcode::Mov_rm64_r64 && instruction.op0_kind() == OpKind::Memory;
    is_store.then(|| Some((instruction.op1_register(), word(instruction)?)))?
}

/// Whether a jump is taken if the zero flag is set, or if it is not; `None` for one that asks for anything else. (`loope` and `loopne`
/// ask for the count in RCX, too.)
pub(super) fn on_equality(jump: &Instruction) -> Option<bool> {
    match jump.mnemonic() {
        Mnemonic::Je => Some(true),
        Mnemonic::Jne => Some(false),
        _ => None,
    }
}

/// Whether it is a call, direct or not.
pub(super) fn is_call(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::Call | FlowControl::IndirectCall
    )
}

/// Whether it changes any of the flags.
pub(super) fn writes_flags(instruction: &Instruction) -> bool {
    is_call(instruction) || instruction.rflags_modified() != 0
}

impl Code<'_> {
    /// The registers that an instruction may change; for a call, those that the callee need not keep.
    pub(super) fn written(&self, instruction: &Instruction) -> RegisterSet {
        if is_call(instruction) {
            return RegisterSet::CALLER_SAVED;
        }
        let mut set = RegisterSet::default();
        if let Ok(mut info) = self.info.try_borrow_mut() {
            for used in info.info(instruction).used_registers() {
                if writes(used.access()) {
                    set.insert(used.register());
                }
            }
        }
        set
    }
}
