//! What registers and memory hold on one way through the code, in terms of what they held where it began.
//!
//! Only copies are followed: moves, loads and stores of whole words, pushes and pops, constants added. Whatever else
//! writes a place makes it unknown. Invariant: a value that is not [`Value::Unknown`] is what the machine holds,
//! whatever the code is; where a store might have changed a word, the word is unknown.

mod effects;

use iced_x86::{Instruction, OpKind, Register};

use crate::units::VirtAddr;

/// Number of RSP as instructions encode it.
const RSP: u8 = 4;
/// Number of RSI.
pub(super) const RSI: u8 = 6;
/// Number of RBP.
const RBP: u8 = 5;
/// RAX, RCX, RDX, RSI, RDI and R8 to R11, which a callee may change (x86-64 psABI).
const CALLER_SAVED: u16 = 0b0000_1111_1100_0111;
/// Stores remembered; more make all memory unknown.
const MAX_STORES: usize = 64;

/// What is known of a 64-bit word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing.
    Unknown,
    /// A number, or a link-time address.
    Number(u64),
    /// What a register (by its number) held at the beginning, plus so many bytes.
    Start(u8, i64),
    /// The word that was at the beginning in memory at a register's value then, plus so many bytes.
    Word(u8, i64),
    /// The word in memory at a fixed link-time address.
    Fixed(VirtAddr),
}

/// Where a memory operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Unknown,
    Start(u8, i64),
    Fixed(u64),
}

#[derive(Clone, Copy, Debug)]
struct Store {
    base: u8,
    at: i64,
    bytes: i64,
    value: Value,
}

/// Registers and memory at one point of one way.
#[derive(Clone, Debug)]
pub(super) struct State {
    registers: [Value; 16],
    /// Oldest first.
    stores: Vec<Store>,
    /// Something was stored at an unknown place.
    scattered: bool,
    /// Something was stored at a fixed address, which a register may hold, but not the stack pointer.
    statics: bool,
    /// The value that the zero flag tells to be 0 or not.
    pub(super) tested: Option<Value>,
    /// For the visitor of a walk: whether the way has passed what it looks for.
    pub(super) passed: bool,
}

impl Default for State {
    fn default() -> Self {
        let mut registers = [Value::Unknown; 16];
        for (place, number) in registers.iter_mut().zip(0..) {
            *place = Value::Start(number, 0);
        }
        Self {
            registers,
            stores: Vec::new(),
            scattered: false,
            statics: false,
            tested: None,
            passed: false,
        }
    }
}

/// Number of a general purpose register, whatever part of it is named.
fn number(register: Register) -> Option<u8> {
    let full = register.full_register();
    if full.is_gpr64() {
        u8::try_from(full.number()).ok()
    } else {
        None
    }
}

fn is_word(register: Register) -> bool {
    register.is_gpr64()
}

fn plus(value: Value, bytes: i64) -> Value {
    match value {
        Value::Number(number) => Value::Number(number.wrapping_add_signed(bytes)),
        Value::Start(register, by) => Value::Start(register, by.wrapping_add(bytes)),
        value if bytes == 0 => value,
        _ => Value::Unknown,
    }
}

impl State {
    /// What a register holds; of a part of it nothing is known.
    pub(super) fn get(&self, register: Register) -> Value {
        match number(register) {
            Some(number) if is_word(register) => self.by_number(number),
            _ => Value::Unknown,
        }
    }

    fn by_number(&self, number: u8) -> Value {
        let value = self.registers.get(usize::from(number));
        value.copied().unwrap_or(Value::Unknown)
    }

    fn set(&mut self, number: u8, value: Value) {
        if let Some(place) = self.registers.get_mut(usize::from(number)) {
            *place = value;
        }
    }

    /// What the operand holds: a 64-bit register, a 64-bit word in memory, or an immediate.
    pub(super) fn operand(&self, instruction: &Instruction, operand: u32) -> Value {
        match instruction.op_kind(operand) {
            OpKind::Register => self.get(instruction.op_register(operand)),
            OpKind::Memory if instruction.memory_size().size() == 8 => {
                self.load(self.memory_operand(instruction))
            }
            OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64 => {
                Value::Number(instruction.immediate(operand))
            }
            _ => Value::Unknown,
        }
    }

    /// Whether the memory operand is the word that `pointer` points to.
    pub(super) fn points_to(&self, instruction: &Instruction, pointer: Value) -> bool {
        let is_plain = instruction.memory_index() == Register::None;
        is_plain
            && pointer != Value::Unknown
            && match (self.memory_operand(instruction), pointer) {
                (Place::Start(base, at), Value::Start(register, by)) => (base, at) == (register, by),
                _ => {
                    instruction.memory_displacement64() == 0 && self.get(instruction.memory_base()) == pointer
                }
            }
    }

    /// A value of a state that begins here, in terms of this one.
    pub(super) fn translate(&self, value: Value) -> Value {
        match value {
            Value::Start(register, by) => plus(self.by_number(register), by),
            Value::Word(register, at) => match plus(self.by_number(register), at) {
                Value::Start(register, at) => self.load(Place::Start(register, at)),
                Value::Number(address) => self.load(Place::Fixed(address)),
                _ => Value::Unknown,
            },
            Value::Fixed(address) => self.load(Place::Fixed(address.get())),
            Value::Number(_) | Value::Unknown => value,
        }
    }

    /// Whether a register or a place that was written holds the value.
    pub(super) fn holds(&self, value: Value) -> bool {
        self.registers.contains(&value) || self.stores.iter().any(|store| store.value == value)
    }

    /// Whether what a value of the beginning names still is there.
    pub(super) fn keeps(&self, value: Value) -> bool {
        self.translate(value) == value
    }

    fn memory_operand(&self, instruction: &Instruction) -> Place {
        self.place(
            instruction.memory_base(),
            instruction.memory_index(),
            instruction.memory_displacement64(),
            instruction.segment_prefix(),
        )
    }

    fn place(&self, base: Register, index: Register, displacement: u64, segment: Register) -> Place {
        if index != Register::None || matches!(segment, Register::FS | Register::GS) {
            return Place::Unknown;
        }
        let base = match base {
            // iced gives the target itself as the displacement.
            Register::None | Register::RIP => Value::Number(0),
            base => self.get(base),
        };
        match plus(base, displacement.cast_signed()) {
            Value::Start(register, at) => Place::Start(register, at),
            Value::Number(address) => Place::Fixed(address),
            _ => Place::Unknown,
        }
    }

    /// The 64-bit word at a place.
    fn load(&self, place: Place) -> Value {
        let (base, at) = match place {
            Place::Start(base, at) => (base, at),
            Place::Fixed(address)
                if !self.scattered && !self.statics && self.stores.iter().all(|store| store.base == RSP) =>
            {
                return Value::Fixed(VirtAddr(address));
            }
            Place::Fixed(_) | Place::Unknown => return Value::Unknown,
        };
        for store in self.stores.iter().rev() {
            if store.base == base {
                if store.at == at && store.bytes == 8 {
                    return store.value;
                }
                if store.at < at.saturating_add(8) && at < store.at.saturating_add(store.bytes) {
                    return Value::Unknown;
                }
            } else if !is_new(store.base, store.at) {
                return Value::Unknown;
            }
        }
        if self.scattered || (self.statics && base != RSP) {
            return Value::Unknown;
        }
        Value::Word(base, at)
    }

    fn store(&mut self, place: Place, bytes: usize, value: Value) {
        let Place::Start(base, at) = place else {
            if matches!(place, Place::Unknown) {
                self.scatter();
            } else {
                self.statics = true;
                self.forget_other(RSP);
            }
            return;
        };
        let Ok(bytes) = i64::try_from(bytes) else {
            return self.scatter();
        };
        if bytes == 0 || self.stores.len() >= MAX_STORES {
            return self.scatter();
        }
        if !is_new(base, at) {
            self.forget_other(base);
        }
        self.stores.push(Store {
            base,
            at,
            bytes,
            value: if bytes == 8 { value } else { Value::Unknown },
        });
    }

    /// What was stored through another register may just have been overwritten.
    fn forget_other(&mut self, base: u8) {
        for store in &mut self.stores {
            if store.base != base && !is_new(store.base, store.at) {
                store.value = Value::Unknown;
            }
        }
    }

    fn scatter(&mut self) {
        self.scattered = true;
        for store in &mut self.stores {
            store.value = Value::Unknown;
        }
    }

    /// What a call does: of the caller's memory nothing is known afterwards.
    pub(super) fn call(&mut self) {
        self.call_without_memory();
        self.scatter();
    }

    /// What a call does that changes no memory of the caller.
    pub(super) fn call_without_memory(&mut self) {
        for (place, number) in self.registers.iter_mut().zip(0_u8..) {
            if CALLER_SAVED >> number & 1 != 0 {
                *place = Value::Unknown;
            }
        }
        if let Value::Start(RSP, at) = self.by_number(RSP) {
            // Below it, the callee has written.
            self.store(
                Place::Start(RSP, at.saturating_sub(1 << 20)),
                1 << 20,
                Value::Unknown,
            );
        } else {
            self.scatter();
        }
        self.tested = None;
    }
}

/// Whether it is stack that was not in use at the beginning: nothing but the stack pointer leads there.
fn is_new(base: u8, at: i64) -> bool {
    base == RSP && at < 0
}
