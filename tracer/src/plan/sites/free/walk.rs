//! Follows every way through the code from one place, with the state of each.
//!
//! Ways are not merged where they meet again: what holds on all of them is what every one of them shows. That is
//! only for short ways, so there are limits, and to pass one is an answer of its own ([`Lost`]).

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory};

use super::{
    super::{code::Code, registers::on_equality},
    state::{State, Value},
};
use crate::units::VirtAddr;

/// Instructions looked at, all ways together.
const MAX_INSTRUCTIONS: usize = 600;
/// Ways that are open at one time.
const MAX_WAYS: usize = 32;

/// How a shared library of most compilers' making asks for the address of a thread-local variable.
pub(super) const TLS: &str = "__tls_get_addr";

/// What to do at an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Execute it.
    Go,
    /// This way is done.
    End,
    /// All is known.
    Stop,
}

/// Why the ways could not be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// There are too many, or they are too long.
    TooLong,
    /// One leads to what is no code, or to a conditional jump of a kind that compilers do not use.
    NotCode,
}

/// Visits the instructions of all ways from `start`, each before it is executed.
///
/// A way ends at what does not go on to a known place (a return, an indirect jump). Where the zero flag
/// tells whether one of `not_null` is 0, only the way on which it is not is taken.
pub(super) fn walk(
    code: &Code<'_>,
    start: VirtAddr,
    state: State,
    not_null: &[Value],
    visit: &mut dyn FnMut(&Instruction, &mut State) -> Next,
) -> Result<(), Lost> {
    let mut info = InstructionInfoFactory::new();
    let mut left = MAX_INSTRUCTIONS;
    let mut ways = vec![(start, state)];
    while let Some((mut address, mut state)) = ways.pop() {
        loop {
            left = left.checked_sub(1).ok_or(Lost::TooLong)?;
            let instruction = code.at(address.get()).ok_or(Lost::NotCode)?;
            match visit(&instruction, &mut state) {
                Next::Go => {}
                Next::End => break,
                Next::Stop => return Ok(()),
            }
            let target = VirtAddr(instruction.near_branch_target());
            let following = VirtAddr(instruction.next_ip());
            match instruction.flow_control() {
                FlowControl::Next => {
                    state.execute(&instruction, &mut info);
                    address = following;
                }
                FlowControl::UnconditionalBranch if instruction.is_jmp_short_or_near() => address = target,
                FlowControl::ConditionalBranch if instruction.is_jcc_short_or_near() => {
                    address = match is_taken(&instruction, &state, not_null) {
                        Some(true) => target,
                        Some(false) => following,
                        None if ways.len() < MAX_WAYS => {
                            ways.push((target, state.clone()));
                            following
                        }
                        None => return Err(Lost::TooLong),
                    };
                }
                // Where thread-local storage is reached through a call: it changes nothing that counts here.
                FlowControl::Call if code.import(&instruction) == Some(TLS) => {
                    state.call_without_memory();
                    address = following;
                }
                FlowControl::Call | FlowControl::IndirectCall => {
                    if code.successors(&instruction).next.is_none() {
                        break;
                    }
                    state.call();
                    address = following;
                }
                FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => return Err(Lost::NotCode),
                _ => break,
            }
        }
    }
    Ok(())
}

/// Whether a conditional jump is taken, where that is known.
fn is_taken(instruction: &Instruction, state: &State, not_null: &[Value]) -> Option<bool> {
    let tested = state.tested?;
    let is_zero = match tested {
        Value::Unknown => return None,
        Value::Number(number) => number == 0,
        value if not_null.contains(&value) => false,
        _ => return None,
    };
    on_equality(instruction).map(|if_zero| if_zero == is_zero)
}
