//! The two sides of a guard: the slow one, which calls through the slot, and the one with the inlined copy.
//!
//! The slow side names the pointer, because there it is an argument; the copy must do with the same pointer what a
//! free does first, that is to look it up in the arenas' radix tree. Only both together are a proof.

use iced_x86::{Code as Opcode, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{
    super::code::Code,
    guard::Guard,
    state::{State, Value},
    walk::{Lost, Next, TLS, walk},
};
use crate::{
    elf::{Elf, Pointer},
    python::ImageFacts,
    units::VirtAddr,
};

/// Offset of `freeblock` in a pool's header.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h>
const FREEBLOCK: u64 = 8;

/// What the slow side shows: the value of its second argument, RSI.
pub(super) fn slow_pointer(
    code: &Code<'_>,
    guard: &Guard,
    slots: &[VirtAddr],
) -> Result<Value, &'static str> {
    let mut found: Option<Value> = None;
    let mut wrong = None;
    walk(
        code,
        guard.different,
        State::default(),
        &[],
        &mut |instruction, state| match instruction.flow_control() {
            FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                let target = state.operand(instruction, 0);
                let is_slot = matches!(target, Value::Fixed(slot) if slots.contains(&slot));
                if target == Value::Unknown || (target != guard.compared && !is_slot) {
                    wrong = Some("its other side calls something else than the slot");
                    return Next::Stop;
                }
                let pointer = state.get(Register::RSI);
                if found.is_some_and(|before| before != pointer) {
                    wrong = Some("the ways on its other side free different pointers");
                    return Next::Stop;
                }
                found = Some(pointer);
                Next::End
            }
            FlowControl::Call | FlowControl::Return | FlowControl::Interrupt => {
                wrong = Some("its other side does something else before it calls the slot");
                Next::Stop
            }
            _ => Next::Go,
        },
    )
    .map_err(|lost| match lost {
        Lost::TooLong => "there are too many ways on its other side",
        Lost::NotCode => "its other side leads to what is no code",
    })?;
    match (wrong, found) {
        (Some(wrong), _) => Err(wrong),
        (None, Some(pointer)) => Ok(pointer),
        (None, None) => Err("its other side never calls the slot"),
    }
}

/// What becomes of the pointer on the equal side of a guard, or in the implementation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Copy {
    /// Where it begins to look the pointer up.
    pub(super) lookups: Vec<VirtAddr>,
    /// Where it calls the implementation instead.
    pub(super) calls: Vec<VirtAddr>,
    /// Where it calls libc's free with the pointer, directly.
    pub(super) libc: Vec<VirtAddr>,
    /// Where it hands the pointer to a function of the raw domain.
    pub(super) raw: Vec<VirtAddr>,
    /// Where it calls through the raw table's slot.
    pub(super) slots: Vec<VirtAddr>,
    /// Where it puts the block onto its pool's list.
    pub(super) listed: Vec<VirtAddr>,
    /// The conditional jumps on its ways.
    pub(super) jumps: Vec<VirtAddr>,
}

/// `_PyObject_Free`, as far as its copies must be recognised.
#[derive(Clone, Debug)]
pub(super) struct Implementation {
    /// Its entry.
    pub(super) entry: VirtAddr,
    /// `MAP_TOP_SHIFT`: the part of an address above this bit is its index in the root of the arenas' radix tree.
    pub(super) shift: u8,
    /// Functions of the raw domain that free: entry, and the register of the pointer.
    pub(super) raw: Vec<(VirtAddr, Register)>,
}

impl Implementation {
    /// Of an image.
    pub(super) fn of(elf: &Elf<'_>, facts: &ImageFacts) -> Self {
        let [.., entry] = facts.functions.obj;
        let [.., raw] = facts.functions.raw;
        let exported = elf
            .exported("PyMem_RawFree")
            .map(|symbol| (symbol.address, Register::RDI));
        Self {
            entry,
            // 48 bits of an address count in 3.10, all 64 later; a third of those above an arena's 20 make the index.
            // <https://github.com/python/cpython/blob/v3.10.0/Objects/obmalloc.c> (`IGNORE_BITS`)
            // <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h>
            shift: if facts.version.minor <= 10 { 38 } else { 49 },
            raw: [(raw, Register::RSI)].into_iter().chain(exported).collect(),
        }
    }

    /// Whether `target` is a raw function that is called with one of `pointers`.
    fn frees_raw(&self, target: VirtAddr, state: &State, pointers: &[Value]) -> bool {
        self.raw
            .iter()
            .any(|(raw, register)| *raw == target && pointers.contains(&state.get(*register)))
    }

    /// Whether it takes the index of an address in the root of the radix tree.
    pub(super) fn is_lookup(&self, instruction: &Instruction) -> bool {
        instruction.mnemonic() == Mnemonic::Shr
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_gpr64()
            && instruction.op1_kind() == OpKind::Immediate8
            && instruction.immediate8() == self.shift
    }
}

/// One step of a copy.
enum Event {
    None,
    /// It takes the pointer's index in the root of the radix tree.
    Lookup,
    /// It calls the implementation.
    Implementation,
    /// It puts the block onto its pool's list.
    Listed,
    /// It calls libc's free.
    Libc,
    /// It calls a raw function.
    Raw,
    /// It calls through the raw table's slot, or through a slot of the global offset table.
    Slot,
    Other(&'static str),
}

/// Follows all ways from `from` (a guard's equal side, or the entry of the implementation) until it is known what
/// becomes of the pointer. `pointers` are the places that hold it at `from`.
pub(super) fn copy(
    code: &Code<'_>,
    from: VirtAddr,
    pointers: &[Value],
    implementation: &Implementation,
) -> Result<Copy, &'static str> {
    if pointers.contains(&Value::Unknown) {
        return Err("the pointer is not known");
    }
    let mut found = Copy::default();
    let mut wrong = None;
    walk(
        code,
        from,
        State::default(),
        pointers,
        &mut |instruction, state| {
            let address = VirtAddr(instruction.ip());
            let event = event(code, instruction, state, pointers, implementation);
            let list = match event {
                Event::None => {
                    if instruction.flow_control() == FlowControl::ConditionalBranch {
                        add(&mut found.jumps, address);
                    }
                    return Next::Go;
                }
                Event::Lookup => {
                    state.passed = true;
                    add(&mut found.lookups, address);
                    return Next::Go;
                }
                Event::Implementation if !state.passed => &mut found.calls,
                Event::Libc if state.passed => &mut found.libc,
                Event::Raw if state.passed => &mut found.raw,
                Event::Slot if state.passed => &mut found.slots,
                Event::Listed if state.passed => &mut found.listed,
                Event::Other(reason) => {
                    wrong = Some(reason);
                    return Next::Stop;
                }
                _ => {
                    wrong = Some("the copy does something else before it looks the pointer up");
                    return Next::Stop;
                }
            };
            add(list, address);
            Next::End
        },
    )
    .map_err(|lost| match lost {
        Lost::TooLong => "there are too many ways through the copy",
        Lost::NotCode => "the copy leads to what is no code",
    })?;
    match wrong {
        Some(wrong) => Err(wrong),
        None => Ok(found),
    }
}

fn add(list: &mut Vec<VirtAddr>, address: VirtAddr) {
    if !list.contains(&address) {
        list.push(address);
    }
}

fn event(
    code: &Code<'_>,
    instruction: &Instruction,
    state: &State,
    pointers: &[Value],
    implementation: &Implementation,
) -> Event {
    if implementation.is_lookup(instruction) {
        return if pointers.contains(&state.get(instruction.op0_register())) {
            Event::Lookup
        } else {
            Event::Other("the copy looks another pointer up")
        };
    }
    match instruction.flow_control() {
        FlowControl::Next if puts_on_list(instruction, state, pointers) => Event::Listed,
        FlowControl::Call | FlowControl::UnconditionalBranch => match code.target(instruction) {
            Some(Pointer::Import("free")) if pointers.contains(&state.get(Register::RDI)) => Event::Libc,
            Some(Pointer::Address(target))
                if target == implementation.entry && pointers.contains(&state.get(Register::RSI)) =>
            {
                Event::Implementation
            }
            Some(Pointer::Address(target)) if implementation.frees_raw(target, state, pointers) => Event::Raw,
            Some(Pointer::Address(_)) if instruction.is_jmp_short_or_near() => Event::None,
            Some(Pointer::Import(TLS)) => Event::None,
            _ => Event::Other("the copy calls another function"),
        },
        FlowControl::IndirectCall | FlowControl::IndirectBranch => {
            let is_free = code.import(instruction) == Some("free");
            let register = if is_free { Register::RDI } else { Register::RSI };
            if pointers.contains(&state.get(register)) {
                Event::Slot
            } else {
                Event::Other("the copy calls another function")
            }
        }
        FlowControl::Return | FlowControl::Interrupt => Event::Other("the copy does not free the pointer"),
        _ => Event::None,
    }
}

/// Whether it writes into the block what the pool's list begins with (`*p = pool->freeblock`), or makes the block the
/// list's beginning (`pool->freeblock = p`).
fn puts_on_list(instruction: &Instruction, state: &State, pointers: &[Value]) -> bool {
    instruction.code() == Opcode::Mov_rm64_r64
        && instruction.op0_kind() == OpKind::Memory
        && (pointers
            .iter()
            .any(|pointer| state.points_to(instruction, *pointer))
            || (instruction.memory_displacement64() == FREEBLOCK
                && pointers.contains(&state.operand(instruction, 1))))
}
