//! What one instruction does to the state.

use iced_x86::{
    Instruction, InstructionInfo, InstructionInfoFactory, Mnemonic, OpKind, Register, UsedMemory,
};

use super::{Place, RBP, RSP, State, Value, is_word, number, plus};
use crate::python::flow::writes;

impl State {
    /// What an instruction that only goes on to the next one does.
    pub(in crate::plan::sites::free) fn execute(
        &mut self,
        instruction: &Instruction,
        info: &mut InstructionInfoFactory,
    ) {
        let result = self.result(instruction);
        let stored = self.stored(instruction);
        let tested = self.test(instruction);
        let info = info.info(instruction);
        let places = self.written_places(instruction, info);
        let stack_pointer = match instruction.mnemonic() {
            Mnemonic::Leave => plus(self.by_number(RBP), 8),
            Mnemonic::Push | Mnemonic::Pop => plus(
                self.by_number(RSP),
                i64::from(instruction.stack_pointer_increment()),
            ),
            _ => Value::Unknown,
        };
        for used in info.used_registers() {
            if writes(used.access())
                && let Some(number) = number(used.register())
            {
                let value = if number == RSP {
                    stack_pointer
                } else {
                    Value::Unknown
                };
                self.set(number, value);
            }
        }
        if let Some((register, value)) = result {
            self.set(register, value);
        }
        for (place, bytes) in places {
            self.store(place, bytes, stored);
        }
        self.tested = tested;
    }

    /// Where it writes, with the registers as they are before it.
    fn written_places(&self, instruction: &Instruction, info: &InstructionInfo) -> Vec<(Place, usize)> {
        let is_repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let place = |used: &UsedMemory| {
            if is_repeated {
                return Place::Unknown;
            }
            self.place(
                used.base(),
                used.index(),
                used.displacement(),
                instruction.segment_prefix(),
            )
        };
        info.used_memory()
            .iter()
            .filter(|used| writes(used.access()))
            .map(|used| (place(used), used.memory_size().size()))
            .collect()
    }

    /// What it puts into memory, if that is a copy.
    fn stored(&self, instruction: &Instruction) -> Value {
        match instruction.mnemonic() {
            Mnemonic::Mov => self.operand(instruction, 1),
            Mnemonic::Push => self.operand(instruction, 0),
            _ => Value::Unknown,
        }
    }

    /// Which register gets a known value.
    fn result(&self, instruction: &Instruction) -> Option<(u8, Value)> {
        if instruction.mnemonic() == Mnemonic::Leave {
            return Some((
                RBP,
                self.load(self.place(Register::RBP, Register::None, 0, Register::None)),
            ));
        }
        if instruction.op0_kind() != OpKind::Register {
            return None;
        }
        let register = instruction.op0_register();
        let target = number(register)?;
        if !is_word(register) {
            return (register.size() == 4).then(|| self.half_result(instruction, target))?;
        }
        let value = match instruction.mnemonic() {
            Mnemonic::Mov => self.operand(instruction, 1),
            Mnemonic::Pop => self.load(self.place(Register::RSP, Register::None, 0, Register::None)),
            Mnemonic::Lea => match self.memory_operand(instruction) {
                Place::Start(base, at) => Value::Start(base, at),
                Place::Fixed(address) => Value::Number(address),
                Place::Unknown => Value::Unknown,
            },
            Mnemonic::Add | Mnemonic::Sub => match self.operand(instruction, 1) {
                Value::Number(bytes) => {
                    let bytes = bytes.cast_signed();
                    let is_add = instruction.mnemonic() == Mnemonic::Add;
                    plus(
                        self.by_number(target),
                        if is_add { bytes } else { bytes.wrapping_neg() },
                    )
                }
                _ => Value::Unknown,
            },
            Mnemonic::Xor if instruction.op1_kind() == OpKind::Register => {
                if instruction.op1_register() != register {
                    return None;
                }
                Value::Number(0)
            }
            _ => return None,
        };
        Some((target, value))
    }

    /// 32-bit constants: their upper half is 0.
    fn half_result(&self, instruction: &Instruction, target: u8) -> Option<(u8, Value)> {
        match instruction.mnemonic() {
            Mnemonic::Mov if instruction.op1_kind() == OpKind::Immediate32 => {
                Some((target, Value::Number(u64::from(instruction.immediate32()))))
            }
            Mnemonic::Mov if instruction.op1_kind() == OpKind::Register => {
                match self.by_number(number(instruction.op1_register())?) {
                    Value::Number(value) => Some((target, Value::Number(value & 0xffff_ffff))),
                    _ => None,
                }
            }
            Mnemonic::Xor
                if instruction.op1_kind() == OpKind::Register
                    && instruction.op1_register() == instruction.op0_register() =>
            {
                Some((target, Value::Number(0)))
            }
            _ => None,
        }
    }

    /// The value whose being 0 the zero flag tells afterwards.
    fn test(&self, instruction: &Instruction) -> Option<Value> {
        match instruction.mnemonic() {
            Mnemonic::Test
                if instruction.op1_kind() == OpKind::Register
                    && instruction.op0_kind() == OpKind::Register
                    && instruction.op0_register() == instruction.op1_register() =>
            {
                Some(self.operand(instruction, 0))
            }
            Mnemonic::Cmp if self.operand(instruction, 1) == Value::Number(0) => {
                Some(self.operand(instruction, 0))
            }
            _ if instruction.rflags_modified() == 0 => self.tested,
            _ => None,
        }
    }
}
