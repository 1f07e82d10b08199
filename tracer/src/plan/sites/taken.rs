//! Where a copy of pymalloc's allocation has taken the block: the jump that asks whether the pool has another free one.
//!
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c#L2196-L2206>. There the block is in a register, and
//! if none is left, `pymalloc_pool_extend` adds the class's bytes to `pool->nextoffset`, so what it adds is there, too, or
//! is a constant. A site there spares the read of the pool's header, a tenth of a hit. Apart from `pool`, which proves the
//! jump before it and is what remains where this cannot be shown.
//!
//! Invariant: whoever goes on from the proven jump passes this one, and nobody else does.

use std::collections::VecDeque;

use iced_x86::{Code as Opcode, FlowControl, Instruction, Mnemonic, OpKind, Register};
use tracer_ebpf::site::Operand;

use super::{
    code::Code,
    pool::{FREEBLOCK, equality_edges, is_freeblock_store},
    registers::{is_call, load, number, register_move, word},
};

/// `offsetof(struct pool_header, nextoffset)`, the same since 3.4:
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L268-L279>.
const NEXTOFFSET: i64 = 40;
/// Bits that an index of a class is shifted left by to have bytes.
const ALIGNMENT_SHIFT: u32 = 4;
/// Bytes of the largest class.
const LARGEST: u32 = 512;
/// Instructions between the two jumps.
const MAX_BETWEEN: usize = 32;
/// Instructions looked at behind the second jump, nearest first.
const BUDGET: usize = 64;
/// General purpose registers.
const REGISTERS: usize = 16;

/// The second jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) jump: Instruction,
    /// Holds the block.
    pub(super) block: Operand,
    /// The class, see `Role::PoolTaken`.
    pub(super) class: Operand,
}

/// The jump behind one that is proven, if it can be shown what the registers hold there.
pub(super) fn find(code: &Code<'_>, proven: &Instruction, pool: Register) -> Option<Taken> {
    let (_, fast) = equality_edges(proven)?;
    let (jump, known) = follow(code, fast, pool)?;
    let block = known.iter().position(|what| *what == Known::Block)?;
    let pools = known.map(|what| what == Known::Pool);
    let (none_left, _) = equality_edges(&jump)?;
    let added = added_to_next_offset(code, none_left, &pools)?;
    Some(Taken {
        jump,
        block: Operand::register(u8::try_from(block).ok()?),
        class: added.class()?,
    })
}

/// What a register holds between the two jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    Pool,
    Block,
}

/// The next conditional jump on the only way from `fast` on, on which no other way comes in, and what is known there.
fn follow(code: &Code<'_>, fast: u64, pool: Register) -> Option<(Instruction, [Known; REGISTERS])> {
    let mut known = [Known::Nothing; REGISTERS];
    *known.get_mut(index(pool)?)? = Known::Pool;
    let holds = |known: &[Known; REGISTERS], register, what| {
        index(register).and_then(|index| known.get(index)) == Some(&what)
    };
    let mut is_taken = false;
    let mut at = fast;
    for _ in 0..MAX_BETWEEN {
        let instruction = code.at(at)?;
        if code.predecessors(at).len() != 1 || is_call(&instruction) {
            return None;
        }
        if instruction.flow_control() == FlowControl::ConditionalBranch {
            return Some((instruction, known));
        }
        if let Some((to, from)) = load(&instruction)
            && from.displacement == FREEBLOCK
            && holds(&known, from.base, Known::Pool)
        {
            if is_taken {
                return None;
            }
            *known.get_mut(index(to)?)? = Known::Block;
        } else if let Some(moved) = register_move(&instruction) {
            let what = *known.get(index(moved.from)?)?;
            *known.get_mut(index(moved.to)?)? = what;
        } else {
            is_taken |= word(&instruction).is_some_and(|memory| {
                holds(&known, memory.base, Known::Pool) && is_freeblock_store(&instruction, memory.base)
            });
            forget(code, &instruction, &mut known, Known::Nothing);
        }
        let successors = code.successors(&instruction);
        at = successors.next.or(successors.jump)?;
    }
    None
}

fn index(register: Register) -> Option<usize> {
    number(register).map(usize::from)
}

/// Puts `nothing` in the place of what is known of the registers that an instruction writes.
fn forget<T: Copy>(code: &Code<'_>, instruction: &Instruction, known: &mut [T; REGISTERS], nothing: T) {
    let written = code.written(instruction);
    for (of, known) in known.iter_mut().enumerate() {
        if u8::try_from(of).is_ok_and(|of| written.contains_number(of)) {
            *known = nothing;
        }
    }
}

/// A number made of what the registers held at the second jump. All of it is about the lower 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    /// How many times `pool->nextoffset` as it was.
    next_offset: u8,
    /// A register, and how far it is shifted left.
    register: Option<(usize, u32)>,
    constant: u32,
}

impl Sum {
    const NEXT_OFFSET: Self = Self {
        next_offset: 1,
        register: None,
        constant: 0,
    };

    const fn constant(constant: u32) -> Self {
        Self {
            next_offset: 0,
            register: None,
            constant,
        }
    }

    fn plus(self, other: Self) -> Option<Self> {
        Some(Self {
            next_offset: self.next_offset + other.next_offset,
            register: match (self.register, other.register) {
                (register, None) | (None, register) => register,
                (Some((one, by)), Some((same, as_far))) if one == same && by == as_far => Some((one, by + 1)),
                _ => return None,
            },
            constant: self.constant.wrapping_add(other.constant),
        })
    }

    fn shifted(self, by: u32) -> Option<Self> {
        (self.next_offset == 0 && by < 8).then(|| Self {
            register: self.register.map(|(register, already)| (register, already + by)),
            constant: self.constant << by,
            ..self
        })
    }

    /// As the second operand of a site, if it is `pool->nextoffset` plus a class's bytes.
    fn class(self) -> Option<Operand> {
        let displacement = i32::try_from(self.constant).ok()?;
        match (self.next_offset, self.register) {
            (1, None) => {
                let is_class = self.constant.wrapping_sub(1) < LARGEST
                    && self.constant.trailing_zeros() >= ALIGNMENT_SHIFT;
                is_class.then(|| Operand {
                    displacement,
                    ..Operand::default()
                })
            }
            (1, Some((register, ALIGNMENT_SHIFT))) => Some(Operand {
                displacement,
                ..Operand::register(u8::try_from(register).ok()?)
            }),
            _ => None,
        }
    }
}

/// What is known of a register behind the second jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Unknown,
    Pool,
    Is(Sum),
}

type Values = [Value; REGISTERS];

/// What `pool->nextoffset` becomes behind `start`, in terms of the registers there. If several ways lead to a store,
/// it must be the same on those that are looked at.
fn added_to_next_offset(code: &Code<'_>, start: u64, pools: &[bool; REGISTERS]) -> Option<Sum> {
    let mut values = [Value::Unknown; REGISTERS];
    for ((register, value), is_pool) in values.iter_mut().enumerate().zip(pools) {
        *value = if *is_pool {
            Value::Pool
        } else {
            Value::Is(Sum {
                register: Some((register, 0)),
                ..Sum::default()
            })
        };
    }
    let mut found = None;
    let mut ways = VecDeque::from([(start, values)]);
    for _ in 0..BUDGET {
        let Some((at, mut values)) = ways.pop_front() else {
            break;
        };
        let Some(instruction) = code.at(at).filter(|instruction| !is_call(instruction)) else {
            continue;
        };
        if let Some(stored) = stored(&instruction, &values) {
            match (stored, found) {
                (Value::Is(stored), None) => found = Some(stored),
                (Value::Is(stored), Some(same)) if stored == same => {}
                _ => return None,
            }
            continue;
        }
        let result = result(&instruction, &values);
        forget(code, &instruction, &mut values, Value::Unknown);
        if let Some((to, value)) = result {
            *values.get_mut(index(to)?)? = value;
        }
        let successors = code.successors(&instruction);
        ways.extend(successors.iter().map(|next| (next, values)));
    }
    found
}

fn of(values: &Values, register: Register) -> Value {
    let value = index(register).and_then(|index| values.get(index));
    value.copied().unwrap_or(Value::Unknown)
}

fn sum_of(values: &Values, register: Register) -> Option<Sum> {
    match of(values, register) {
        Value::Is(sum) => Some(sum),
        _ => None,
    }
}

/// Whether the memory operand is `pool->nextoffset`.
fn is_next_offset(instruction: &Instruction, values: &Values) -> bool {
    word(instruction)
        .is_some_and(|memory| memory.displacement == NEXTOFFSET && of(values, memory.base) == Value::Pool)
}

/// What an instruction stores to `pool->nextoffset`; `None` if it does not.
fn stored(instruction: &Instruction, values: &Values) -> Option<Value> {
    if instruction.op0_kind() != OpKind::Memory || !is_next_offset(instruction, values) {
        return None;
    }
    let sum = match instruction.code() {
        Opcode::Mov_rm32_r32 => sum_of(values, instruction.op1_register()),
        Opcode::Add_rm32_r32 => {
            sum_of(values, instruction.op1_register()).and_then(|sum| sum.plus(Sum::NEXT_OFFSET))
        }
        Opcode::Add_rm32_imm8 | Opcode::Add_rm32_imm32 => {
            Sum::constant(low_half(instruction.immediate(1))).plus(Sum::NEXT_OFFSET)
        }
        _ if matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test) => return None,
        _ => None,
    };
    Some(sum.map_or(Value::Unknown, Value::Is))
}

/// What an instruction leaves in which register, if that is known.
fn result(instruction: &Instruction, values: &Values) -> Option<(Register, Value)> {
    let of_operand = |operand: u32| -> Option<Sum> {
        match instruction.op_kind(operand) {
            OpKind::Register => sum_of(values, instruction.op_register(operand)),
            OpKind::Memory => is_next_offset(instruction, values).then_some(Sum::NEXT_OFFSET),
            _ => instruction
                .try_immediate(operand)
                .ok()
                .map(|immediate| Sum::constant(low_half(immediate))),
        }
    };
    if instruction.op0_kind() != OpKind::Register || !is_wide(instruction.op0_register()) {
        return None;
    }
    let to = instruction.op0_register();
    if let Some(moved) = register_move(instruction) {
        return Some((to, of(values, moved.from)));
    }
    let sum = match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movsxd => of_operand(1)?,
        Mnemonic::Add => of_operand(0)?.plus(of_operand(1)?)?,
        Mnemonic::Sub if instruction.op1_kind() != OpKind::Register => {
            let minus = of_operand(1).filter(|sum| *sum == Sum::constant(sum.constant))?;
            of_operand(0)?.plus(Sum::constant(minus.constant.wrapping_neg()))?
        }
        Mnemonic::Inc => of_operand(0)?.plus(Sum::constant(1))?,
        Mnemonic::Shl => of_operand(0)?.shifted(of_operand(1)?.constant)?,
        Mnemonic::Lea => address(instruction, values)?,
        _ => return None,
    };
    Some((to, Value::Is(sum)))
}

/// The address that `lea` computes.
fn address(instruction: &Instruction, values: &Values) -> Option<Sum> {
    let part = |register: Register, scale: u32| match register {
        Register::None => Some(Sum::default()),
        register if is_wide(register) => sum_of(values, register)?.shifted(scale.trailing_zeros()),
        _ => None,
    };
    let base = instruction.memory_base();
    let base = if base == Register::None {
        Sum::default()
    } else {
        is_wide(base).then(|| sum_of(values, base))??
    };
    base.plus(part(
        instruction.memory_index(),
        instruction.memory_index_scale(),
    )?)?
    .plus(Sum::constant(low_half(instruction.memory_displacement64())))
}

fn is_wide(register: Register) -> bool {
    register.is_gpr32() || register.is_gpr64()
}

#[expect(clippy::cast_possible_truncation, reason = "its lower half is what counts")]
fn low_half(value: u64) -> u32 {
    value as u32
}
