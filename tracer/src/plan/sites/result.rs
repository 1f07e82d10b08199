//! Where the result of a call is looked at: the first instruction behind it that the kernel emulates.
//!
//! Other ways often lead there, too, because the compiler tests the results of several calls in one place. They are
//! told apart by the return address that the call has left below the stack pointer. Invariant: after the call has
//! returned, the place is passed exactly once, the register holds the result, and that word is as the call left it.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use tracer_ebpf::site::Operand;

use super::{
    code::Code,
    registers::{RegisterSet, is_call, number, operand, register_move, word},
};
use crate::plan::placement::is_emulated;

/// Instructions looked at behind a call.
const MAX_BEHIND: usize = 24;
/// Instructions looked at before a call.
const MAX_BEFORE: usize = 16;

/// A place behind a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) instruction: Instruction,
    /// Where the result is.
    pub(super) operand: Operand,
    /// Registers that may have changed between the call's return and the place.
    written: RegisterSet,
}

/// The place for a call's result. Without an emulated instruction at hand it is the one right behind the call,
/// which is dear.
pub(super) fn place(code: &Code<'_>, call: &Instruction) -> Result<Place, &'static str> {
    let mut first = None;
    let mut is_only_way = true;
    let mut holders = vec![Register::RAX];
    let mut written = RegisterSet::default();
    let mut previous = *call;
    for _ in 0..MAX_BEHIND {
        let Some(instruction) = code.at(previous.next_ip()) else {
            break;
        };
        is_only_way &=
            matches!(*code.predecessors(instruction.ip()), [before] if before.ip() == previous.ip());
        let Some(mut operand) = holders.first().copied().and_then(operand) else {
            break;
        };
        let behind = u16::try_from(instruction.ip().wrapping_sub(call.next_ip()));
        operand.behind = if is_only_way { 0 } else { behind.unwrap_or(0) };
        if is_only_way || operand.behind != 0 {
            let place = Place {
                instruction,
                operand,
                written,
            };
            if is_emulated(&instruction) {
                return Ok(place);
            }
            first = first.or(Some(place));
        }
        let writes_below =
            word(&instruction).is_some_and(|memory| memory.base == Register::RSP && memory.displacement < 0);
        if is_call(&instruction)
            || code.successors(&instruction).next.is_none()
            || writes_below
            || code.written(&instruction).contains(Register::RSP)
        {
            break;
        }
        follow(code, &instruction, &mut holders, &mut written);
        previous = instruction;
    }
    first.ok_or("other ways lead to the instruction behind the call")
}

/// Keeps track of which registers hold the result.
fn follow(
    code: &Code<'_>,
    instruction: &Instruction,
    holders: &mut Vec<Register>,
    written: &mut RegisterSet,
) {
    let copy = register_move(instruction).filter(|copy| holders.contains(&copy.from));
    let changed = code.written(instruction);
    holders.retain(|register| !changed.contains(*register));
    holders.extend(copy.map(|copy| copy.to));
    written.insert_all(changed);
}

/// Where the size that `malloc` was asked for still is at the place behind the call: in a register that the callee
/// keeps. A request for 0 bytes is passed on as one for 1, which makes no difference here.
pub(super) fn requested(code: &Code<'_>, call: &Instruction, place: &Place) -> Operand {
    let mut tracked = Register::RDI;
    let mut at = *call;
    let mut passed = place.written;
    for _ in 0..MAX_BEFORE {
        let is_kept = !RegisterSet::CALLER_SAVED.contains(tracked) && tracked != Register::RSP;
        if is_kept {
            break;
        }
        let [previous] = *code.predecessors(at.ip()) else {
            return Operand::default();
        };
        let changed = code.written(&previous);
        if changed.contains(tracked) {
            let is_from_register = previous.op1_kind() == OpKind::Register
                && previous.op0_kind() == OpKind::Register
                && previous.op1_register().is_gpr64()
                && number(previous.op0_register()) == number(tracked);
            match previous.mnemonic() {
                // Zero is replaced by a constant from a register.
                Mnemonic::Cmove if is_from_register => {}
                Mnemonic::Mov | Mnemonic::Cmovne if is_from_register => tracked = previous.op1_register(),
                _ => return Operand::default(),
            }
        }
        passed.insert_all(changed);
        at = previous;
    }
    let is_kept = !RegisterSet::CALLER_SAVED.contains(tracked) && tracked != Register::RSP;
    match operand(tracked) {
        Some(operand) if is_kept && !passed.contains(tracked) => operand,
        _ => Operand::default(),
    }
}
