//! Follows the code of one function with constants propagated: which words does it load, whom does it call?
//!
//! This is how facts are read from stripped files: an exported function of known meaning leads to the unexported
//! thing it uses. Bounded by a number of instructions; every address is visited once, with the registers of the
//! first way that leads there.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use rustc_hash::FxHashSet;

use crate::{
    elf::{Elf, Pointer, TlsReloc},
    units::VirtAddr,
};

/// What thread-local storage is reached through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsBase {
    /// The thread pointer (FS base).
    Thread,
    /// The thread pointer plus the offset in this GOT slot (`TPOFF64`).
    Slot(VirtAddr),
    /// The thread pointer plus what the descriptor at this address gives (`TLSDESC`).
    Descriptor(VirtAddr),
    /// What `__tls_get_addr` gives for the pair of words at this address (`DTPMOD64`, offset).
    Block(VirtAddr),
}

/// What is known of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Unknown,
    /// A link-time address, or a plain number.
    Number(u64),
    /// An address in thread-local storage: base plus offset.
    TlsAddress(TlsBase, i64),
    /// An offset that gives such an address once the thread pointer is added.
    TlsOffset(TlsBase, i64),
}

/// What a memory operand refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A fixed link-time address.
    Fixed(VirtAddr),
    /// Thread-local storage.
    Tls(TlsBase, i64),
}

/// One instruction on the way.
pub(crate) struct Step<'s, 'a> {
    pub(crate) instruction: &'s Instruction,
    /// Its memory operand, if it is known; not set for `lea`.
    pub(crate) memory: Option<Place>,
    /// Where a call or jump goes, PLT stubs resolved.
    pub(crate) target: Option<Pointer<'a>>,
    /// What its first operand holds afterwards, if that is a register.
    pub(crate) result: Value,
}

impl Step<'_, '_> {
    /// Whether it is a call, or a jump out of the function as far as can be told.
    pub(crate) fn is_call(&self) -> bool {
        matches!(
            self.instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        )
    }
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Go on; direct jumps are followed, calls are not.
    Go,
    /// Leave this way, take the others.
    Leave,
    /// All is known.
    Stop,
}

/// Visits what can be reached from `entry`, at most `limit` instructions.
pub(crate) fn explore<'a>(
    elf: &Elf<'a>,
    entry: VirtAddr,
    limit: usize,
    visit: &mut dyn FnMut(&Step<'_, 'a>) -> Next,
) {
    let mut seen = FxHashSet::default();
    let mut ways = vec![(entry, Registers::default())];
    let mut left = limit;
    let mut info = InstructionInfoFactory::new();
    let mut instruction = Instruction::default();
    while let Some((start, mut registers)) = ways.pop() {
        if !elf.is_code(start) {
            continue;
        }
        let Some(bytes) = elf.bytes_from(start) else {
            continue;
        };
        let mut decoder = Decoder::with_ip(64, bytes, start.get(), DecoderOptions::NONE);
        while decoder.can_decode() && left > 0 && seen.insert(decoder.ip()) {
            left -= 1;
            decoder.decode_out(&mut instruction);
            let memory = registers.place(&instruction);
            let target = target(elf, &instruction, memory, &registers);
            registers.execute(elf, &instruction, memory, target, &mut info);
            let step = Step {
                instruction: &instruction,
                memory,
                target,
                result: registers.get(instruction.op0_register()),
            };
            match visit(&step) {
                Next::Go => {}
                Next::Leave => break,
                Next::Stop => return,
            }
            let jump = match target {
                Some(Pointer::Address(address)) => Some(address),
                _ => None,
            };
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {}
                FlowControl::ConditionalBranch => {
                    ways.extend(jump.map(|address| (address, registers.clone())));
                }
                FlowControl::UnconditionalBranch => {
                    ways.extend(jump.map(|address| (address, registers.clone())));
                    break;
                }
                _ => break,
            }
        }
    }
}

/// Where a direct call or jump goes, or an indirect one through a known word.
fn target<'a>(
    elf: &Elf<'a>,
    instruction: &Instruction,
    memory: Option<Place>,
    registers: &Registers,
) -> Option<Pointer<'a>> {
    match instruction.flow_control() {
        FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
            let is_near = matches!(instruction.op0_kind(), OpKind::NearBranch64);
            is_near.then(|| elf.call_target(VirtAddr(instruction.near_branch_target())))
        }
        FlowControl::IndirectCall | FlowControl::IndirectBranch => match (memory, instruction.op0_kind()) {
            (Some(Place::Fixed(slot)), OpKind::Memory) => elf.pointer_at(slot),
            (_, OpKind::Register) => match registers.get(instruction.op0_register()) {
                Value::Number(address) => Some(elf.call_target(VirtAddr(address))),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

#[derive(Clone, Debug)]
struct Registers([Value; 16]);

impl Default for Registers {
    fn default() -> Self {
        Self([Value::Unknown; 16])
    }
}

/// Index of a general purpose register, whatever part of it is named.
fn index(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number())
}

impl Registers {
    fn get(&self, register: Register) -> Value {
        index(register)
            .and_then(|index| self.0.get(index).copied())
            .unwrap_or(Value::Unknown)
    }

    fn set(&mut self, register: Register, value: Value) {
        if let Some(place) = index(register).and_then(|index| self.0.get_mut(index)) {
            *place = value;
        }
    }

    /// What the memory operand refers to.
    fn place(&self, instruction: &Instruction) -> Option<Place> {
        if instruction.mnemonic() == Mnemonic::Lea {
            return None;
        }
        self.effective(instruction)
    }

    fn effective(&self, instruction: &Instruction) -> Option<Place> {
        let has_memory =
            (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
        if !has_memory || instruction.memory_index() != Register::None {
            return None;
        }
        let displacement = instruction.memory_displacement64();
        let base = match instruction.memory_base() {
            Register::RIP | Register::None => Value::Number(0),
            register => self.get(register),
        };
        let is_fs = instruction.segment_prefix() == Register::FS;
        let signed = displacement.cast_signed();
        match (base, is_fs) {
            (Value::Number(base), false) => Some(Place::Fixed(VirtAddr(base.wrapping_add(displacement)))),
            (Value::Number(base), true) => Some(Place::Tls(
                TlsBase::Thread,
                base.cast_signed().wrapping_add(signed),
            )),
            (Value::TlsAddress(base, offset), false) | (Value::TlsOffset(base, offset), true) => {
                Some(Place::Tls(base, offset.wrapping_add(signed)))
            }
            _ => None,
        }
    }

    fn execute(
        &mut self,
        elf: &Elf<'_>,
        instruction: &Instruction,
        memory: Option<Place>,
        target: Option<Pointer<'_>>,
        info: &mut InstructionInfoFactory,
    ) {
        if matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall
        ) {
            self.call(memory, target);
            return;
        }
        let value = self.result(elf, instruction, memory);
        for used in info.info(instruction).used_registers() {
            if writes(used.access()) {
                self.set(used.register(), Value::Unknown);
            }
        }
        if instruction.op0_kind() == OpKind::Register && instruction.op0_register().size() >= 4 {
            self.set(instruction.op0_register(), value);
        }
    }

    /// What a move, `lea` or addition puts into its first operand; unknown for anything else that writes it.
    fn result(&self, elf: &Elf<'_>, instruction: &Instruction, memory: Option<Place>) -> Value {
        let second = |this: &Self| match instruction.op1_kind() {
            OpKind::Register => this.get(instruction.op1_register()),
            OpKind::Memory => Self::loaded(elf, instruction, memory),
            kind if is_immediate(kind) => Value::Number(instruction.immediate(1)),
            _ => Value::Unknown,
        };
        match instruction.mnemonic() {
            Mnemonic::Mov => match (second(self), instruction.op0_register().size()) {
                (value, 8) => value,
                (Value::Number(number), 4) => Value::Number(number & 0xffff_ffff),
                _ => Value::Unknown,
            },
            Mnemonic::Lea => match self.effective(instruction) {
                Some(Place::Fixed(address)) => Value::Number(address.get()),
                Some(Place::Tls(base, offset)) => Value::TlsAddress(base, offset),
                None => Value::Unknown,
            },
            Mnemonic::Add if instruction.op0_register().size() == 8 => {
                match (self.get(instruction.op0_register()), second(self)) {
                    (Value::Number(a), Value::Number(b)) => Value::Number(a.wrapping_add(b)),
                    (Value::TlsAddress(base, a), Value::Number(b)) => {
                        Value::TlsAddress(base, a.wrapping_add(b.cast_signed()))
                    }
                    (Value::TlsOffset(base, a), Value::TlsAddress(TlsBase::Thread, b))
                    | (Value::TlsAddress(TlsBase::Thread, b), Value::TlsOffset(base, a)) => {
                        Value::TlsAddress(base, a.wrapping_add(b))
                    }
                    _ => Value::Unknown,
                }
            }
            // Compares and the like leave their first operand as it is.
            _ if !matches!(instruction.op0_kind(), OpKind::Register) => Value::Unknown,
            Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push => self.get(instruction.op0_register()),
            _ => Value::Unknown,
        }
    }

    /// What a 64-bit load gives.
    fn loaded(elf: &Elf<'_>, instruction: &Instruction, memory: Option<Place>) -> Value {
        if instruction.memory_size().size() != 8 {
            return Value::Unknown;
        }
        match memory {
            // The first word of the thread control block is its own address (x86-64 psABI, TLS variant II).
            Some(Place::Tls(TlsBase::Thread, 0)) => Value::TlsAddress(TlsBase::Thread, 0),
            Some(Place::Fixed(slot)) => match elf.pointer_at(slot) {
                Some(Pointer::Address(address)) => Value::Number(address.get()),
                Some(Pointer::Tls(TlsReloc::ThreadOffset)) => Value::TlsOffset(TlsBase::Slot(slot), 0),
                _ => Value::Unknown,
            },
            _ => Value::Unknown,
        }
    }

    fn call(&mut self, memory: Option<Place>, target: Option<Pointer<'_>>) {
        if let (Some(Place::Fixed(slot)), Some(Pointer::Tls(TlsReloc::Descriptor))) = (memory, target) {
            // The resolver keeps all registers but this one.
            self.set(Register::RAX, Value::TlsOffset(TlsBase::Descriptor(slot), 0));
            return;
        }
        let argument = self.get(Register::RDI);
        for register in CALLER_SAVED {
            self.set(register, Value::Unknown);
        }
        if let (Some(Pointer::Import("__tls_get_addr")), Value::Number(pair)) = (target, argument) {
            self.set(
                Register::RAX,
                Value::TlsAddress(TlsBase::Block(VirtAddr(pair)), 0),
            );
        }
    }
}

const CALLER_SAVED: [Register; 9] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32
            | OpKind::Immediate32to64
            | OpKind::Immediate64
    )
}

/// Whether an access may change the register.
pub(crate) fn writes(access: OpAccess) -> bool {
    !matches!(
        access,
        OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
    )
}
