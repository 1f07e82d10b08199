//! Guards: a compare of an allocator table's slot with a function's address, and the conditional jump behind it.
//!
//! Compilers that know from training what a slot usually holds put `slot == function ? inlined copy : call slot`
//! into the code. The address is an immediate operand, or where code may be loaded anywhere, it is in a register.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic};

use tracer_ebpf::site::flag;

use super::{
    super::{code::Code, hoisted, registers::on_equality},
    state::{State, Value},
    walk::{Next, walk},
};
use crate::{plan::placement::is_emulated, units::VirtAddr};

/// Instructions that may stand between the compare and its jump.
const MAX_BETWEEN: usize = 6;
/// Instructions that may stand between where the address is put into a register and the compare.
const MAX_AHEAD: usize = 24;

/// Instructions looked at before a guard, all ways together.
const MAX_BEFORE: usize = 200;

/// A guard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    /// The conditional jump.
    pub(super) jump: VirtAddr,
    /// Where it goes on if the slot holds the function.
    pub(super) equal: VirtAddr,
    /// Where it goes on otherwise.
    pub(super) different: VirtAddr,
    /// [`flag::IF_ZERO`]: the jump's flags say that the slot holds the function. Whichever way the jump goes then.
    pub(super) if_equal: u32,
    /// What was compared with the function's address, in terms of the state at the jump.
    pub(super) compared: Value,
}

impl Guard {
    /// A conditional jump on the zero flag as if it were a guard: `equal` is one of its two ways.
    pub(super) fn by_flag(jump: &Instruction, equal: VirtAddr) -> Option<Self> {
        let taken = VirtAddr(jump.near_branch_target());
        let following = VirtAddr(jump.next_ip());
        if !is_emulated(jump) || taken == following {
            return None;
        }
        let (if_taken, if_not) = if on_equality(jump)? {
            (flag::IF_ZERO, flag::IF_NOT_ZERO)
        } else {
            (flag::IF_NOT_ZERO, flag::IF_ZERO)
        };
        let (different, if_equal) = if equal == taken {
            (following, if_taken)
        } else {
            (taken, if_not)
        };
        Some(Self {
            jump: VirtAddr(jump.ip()),
            equal,
            different,
            if_equal,
            compared: Value::Unknown,
        })
    }

    /// The registers that hold at the jump what `value` is there, on whichever way it was reached.
    pub(super) fn registers_with(&self, code: &Code<'_>, value: Value) -> Vec<Value> {
        let registers = (0..16).map(|number| Value::Start(number, 0));
        registers
            .filter(|register| *register != value && are_equal(code, self.jump, *register, value))
            .collect()
    }
}

/// Whether two values are the same at `address`, because all ways there make them so.
fn are_equal(code: &Code<'_>, address: VirtAddr, one: Value, other: Value) -> bool {
    let mut left = MAX_BEFORE;
    // Instructions before the address, the last one first.
    let mut ways: Vec<Vec<Instruction>> = vec![Vec::new()];
    while let Some(way) = ways.pop() {
        let state = state_after(&way);
        let value = state.translate(one);
        if value != Value::Unknown && value == state.translate(other) {
            continue;
        }
        let first = way.last().map_or(address.get(), Instruction::ip);
        let before = code.predecessors(first);
        if before.is_empty() || code.begins(first) || way.len() >= MAX_AHEAD {
            return false;
        }
        for instruction in before {
            let is_plain = matches!(
                instruction.flow_control(),
                FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
            );
            if !is_plain || left == 0 {
                return false;
            }
            left -= 1;
            let mut longer = way.clone();
            longer.push(instruction);
            ways.push(longer);
        }
    }
    true
}

/// The state behind the instructions, of which the last one is given first.
fn state_after(way: &[Instruction]) -> State {
    let mut state = State::default();
    let mut info = InstructionInfoFactory::new();
    for instruction in way.iter().rev() {
        if instruction.flow_control() == FlowControl::Next {
            state.execute(instruction, &mut info);
        }
    }
    state
}

/// Why a reference is no guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoGuard {
    /// The address is put somewhere, or compared where this does not look.
    NotCompared,
    /// It is compared, but not in a way that is understood.
    Unclear(&'static str),
}

/// The guards that an instruction with the function's address belongs to: one, or all that use the register that the
/// address was put into.
pub(super) fn all_at(
    code: &Code<'_>,
    reference: &Instruction,
    function: VirtAddr,
) -> Result<Vec<Guard>, NoGuard> {
    match hoisted::compares(code, reference, function.get()) {
        Some(compares) => {
            let guards = compares
                .iter()
                .map(|(compare, other)| behind(code, compare, *other));
            guards.collect()
        }
        None => at(code, VirtAddr(reference.ip()), function).map(|guard| vec![guard]),
    }
}

/// The guard right behind an instruction with the function's address.
pub(super) fn at(code: &Code<'_>, reference: VirtAddr, function: VirtAddr) -> Result<Guard, NoGuard> {
    let mut state = State::default();
    let mut info = InstructionInfoFactory::new();
    let mut address = reference;
    for _ in 0..MAX_AHEAD {
        let instruction = code
            .at(address.get())
            .ok_or(NoGuard::Unclear("it leads to what is no code"))?;
        if address != reference && is_jumped_to(code, &instruction) {
            break;
        }
        if let Some(other) = compared_with(&state, &instruction, function) {
            return behind(code, &instruction, other);
        }
        match instruction.flow_control() {
            FlowControl::Next => state.execute(&instruction, &mut info),
            FlowControl::ConditionalBranch => {}
            _ => break,
        }
        address = VirtAddr(instruction.next_ip());
    }
    if is_compared(code, reference, function) {
        Err(NoGuard::Unclear("other ways lead to the compare, too"))
    } else {
        Err(NoGuard::NotCompared)
    }
}

/// The operand with which an instruction compares the function's address.
fn compared_with(state: &State, instruction: &Instruction, function: VirtAddr) -> Option<u32> {
    if instruction.mnemonic() != Mnemonic::Cmp {
        return None;
    }
    let is_function = |operand| state.operand(instruction, operand) == Value::Number(function.get());
    match (is_function(0), is_function(1)) {
        (_, true) => Some(0),
        (true, false) => Some(1),
        (false, false) => None,
    }
}

/// Whether the address may be compared on any way from where it is referred to.
fn is_compared(code: &Code<'_>, reference: VirtAddr, function: VirtAddr) -> bool {
    let mut found = false;
    let walked = walk(
        code,
        reference,
        State::default(),
        &[],
        &mut |instruction, state| {
            found |= compared_with(state, instruction, function).is_some();
            if found {
                Next::Stop
            } else if instruction.ip() != reference.get() && !state.holds(Value::Number(function.get())) {
                Next::End
            } else {
                Next::Go
            }
        },
    );
    found || walked.is_err()
}

/// The jump behind the compare.
fn behind(code: &Code<'_>, compare: &Instruction, compared: u32) -> Result<Guard, NoGuard> {
    let mut state = State::default();
    let compared = state.operand(compare, compared);
    let mut info = InstructionInfoFactory::new();
    let mut address = VirtAddr(compare.next_ip());
    for _ in 0..MAX_BETWEEN {
        let instruction = code
            .at(address.get())
            .ok_or(NoGuard::Unclear("it leads to what is no code"))?;
        if is_jumped_to(code, &instruction) {
            return Err(NoGuard::Unclear("a jump leads between the compare and its jump"));
        }
        match instruction.flow_control() {
            FlowControl::Next if instruction.rflags_modified() == 0 => {
                state.execute(&instruction, &mut info);
            }
            FlowControl::ConditionalBranch => {
                let equal = match on_equality(&instruction) {
                    Some(true) => instruction.near_branch_target(),
                    _ => instruction.next_ip(),
                };
                let mut guard = Guard::by_flag(&instruction, VirtAddr(equal)).ok_or(NoGuard::Unclear(
                    "its jump is not for equality, or the kernel does not emulate it",
                ))?;
                if state.keeps(compared) {
                    guard.compared = compared;
                }
                return Ok(guard);
            }
            _ => break,
        }
        address = VirtAddr(instruction.next_ip());
    }
    Err(NoGuard::Unclear("no conditional jump follows the compare"))
}

/// Whether something else than the instruction before leads there.
fn is_jumped_to(code: &Code<'_>, instruction: &Instruction) -> bool {
    code.predecessors(instruction.ip())
        .iter()
        .any(|before| before.next_ip() != instruction.ip())
}
