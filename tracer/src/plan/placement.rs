//! Where in a function a probe costs least: on an instruction that the kernel emulates.
//!
//! Anything else is single-stepped out of line, about thirty times as dear on a virtual machine. The kernel
//! emulates `push reg`, one-byte `nop`, and relative `jmp`, `jcc` and `call`:
//! <https://github.com/torvalds/linux/blob/v6.12/arch/x86/kernel/uprobes.c#L833-L945>. Longer `nop`s are emulated
//! only since 6.16 and prefixes are refused, so neither is counted on. A `call` would be emulated too, but the
//! callee's return would then stand between the halves: it is left alone.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory, Register,
};
use tracer_ebpf::site::{Role, flag};

use super::Half;
use crate::{
    elf::{Elf, Pointer},
    python::flow::{Next, explore, writes},
    units::VirtAddr,
};

/// Instructions looked at from the entry on.
const LIMIT: usize = 24;
/// Instructions followed to see whether a place is jumped to.
const LOOP_LIMIT: usize = 2000;

/// How the kernel gets past the instruction under a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// It emulates the instruction, which stands this many bytes behind the entry. Cheap.
    Emulated {
        /// Bytes from the function's entry.
        skipped_bytes: u32,
    },
    /// It steps over a copy of the instruction, at the entry. Dear.
    SingleStep,
}

/// Where the arguments are that the kernel side reads. The allocator's context is not one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Argument {
    /// The pointer, the size, or the number of elements; RSI at the entry.
    First,
    /// The new size, or the size of an element; RDX at the entry.
    Second,
    /// The code object that dies; RDI at the entry.
    Object,
}

/// A place for a probe.
pub(super) struct Place {
    pub(super) address: VirtAddr,
    pub(super) placement: Placement,
    /// Which arguments were moved, as bits of [`flag`].
    pub(super) flags: u32,
}

/// The best instruction for a probe: the first that is emulated, every call passes exactly once, and finds the
/// arguments (and, for a return probe, the return address) where the kernel side looks.
pub(super) fn place(elf: &Elf<'_>, function: VirtAddr, role: Role, half: Half) -> Place {
    let cheap = emulated(elf, function, role, half);
    match cheap.filter(|place| place.address == function || !is_jumped_to(elf, function, place.address)) {
        Some(place) => place,
        None => Place {
            address: function,
            placement: Placement::SingleStep,
            flags: 0,
        },
    }
}

fn emulated(elf: &Elf<'_>, function: VirtAddr, role: Role, half: Half) -> Option<Place> {
    let bytes = elf.bytes_from(function)?;
    let mut decoder = Decoder::with_ip(64, bytes, function.get(), DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let mut instruction = Instruction::default();
    let mut held = Held::default();
    for _ in 0..LIMIT {
        if !decoder.can_decode() {
            return None;
        }
        decoder.decode_out(&mut instruction);
        if is_emulated(&instruction) {
            let skipped = instruction.ip().checked_sub(function.get())?;
            return Some(Place {
                address: VirtAddr(instruction.ip()),
                placement: Placement::Emulated {
                    skipped_bytes: u32::try_from(skipped).ok()?,
                },
                flags: held.flags(role, half)?,
            });
        }
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        let used = info.info(&instruction).used_registers();
        let mut written = used
            .iter()
            .filter(|used| writes(used.access()))
            .map(|used| used.register().full_register());
        if matches!(half, Half::EntryAndReturn | Half::ReturnOnly)
            && written.clone().any(|register| register == Register::RSP)
        {
            return None;
        }
        held.execute(&instruction, &mut written);
    }
    None
}

/// Which argument is in a register.
struct Held([(Register, Option<Argument>); 3]);

impl Default for Held {
    fn default() -> Self {
        Self([
            (Register::RDI, Some(Argument::Object)),
            (Register::RSI, Some(Argument::First)),
            (Register::RDX, Some(Argument::Second)),
        ])
    }
}

impl Held {
    fn get(&self, register: Register) -> Option<Argument> {
        self.0
            .iter()
            .find(|(place, _)| *place == register)
            .and_then(|(_, argument)| *argument)
    }

    fn execute(&mut self, instruction: &Instruction, written: &mut dyn Iterator<Item = Register>) {
        let is_copy = instruction.code() == Code::Mov_r64_rm64 || instruction.code() == Code::Mov_rm64_r64;
        let copied = if is_copy && instruction.op1_kind() == iced_x86::OpKind::Register {
            self.get(instruction.op1_register())
        } else {
            None
        };
        for register in written {
            if let Some((_, argument)) = self.0.iter_mut().find(|(place, _)| *place == register) {
                *argument = copied;
            }
        }
    }

    /// Says where the role's arguments are; `None` if one is not where the kernel side can look.
    fn flags(&self, role: Role, half: Half) -> Option<u32> {
        let in_place =
            |register, argument, flags: u32| (self.get(register) == Some(argument)).then_some(flags);
        if half == Half::ReturnOnly {
            return Some(0);
        }
        if role == Role::CodeDealloc {
            return in_place(Register::RDI, Argument::Object, 0);
        }
        let first = in_place(Register::RSI, Argument::First, 0);
        if half == Half::EntryOnly {
            return first;
        }
        let first = first.or_else(|| in_place(Register::RDI, Argument::First, flag::FIRST_IN_RDI))?;
        if matches!(role, Role::ObjMalloc | Role::RawMalloc) {
            return Some(first);
        }
        let second = in_place(Register::RDX, Argument::Second, 0)
            .or_else(|| in_place(Register::RSI, Argument::Second, flag::SECOND_IN_RSI))?;
        Some(first | second)
    }
}

/// Whether the kernel emulates it or it is a call that the kernel emulates, too: for places that do not wait for a
/// return.
pub(super) fn is_emulated_or_call(instruction: &Instruction) -> bool {
    is_emulated(instruction) || instruction.code() == Code::Call_rel32_64 && instruction.len() == 5
}

/// Whether the kernel emulates it. The length rules out prefixes, which it refuses or which change the meaning.
pub(super) fn is_emulated(instruction: &Instruction) -> bool {
    let length = instruction.len();
    match instruction.code() {
        Code::Push_r64 => {
            let is_extended = instruction.op0_register().number() >= 8;
            length == if is_extended { 2 } else { 1 }
        }
        Code::Nopd | Code::Nopq | Code::Nopw => length == 1,
        Code::Jmp_rel8_64 => length == 2,
        Code::Jmp_rel32_64 => length == 5,
        code if code.is_jcc_short() => length == 2,
        code if code.is_jcc_near() => length == 6,
        _ => false,
    }
}

/// Whether a jump within the function leads behind its entry, up to and with `address`: then a call could pass
/// `address` more than once.
fn is_jumped_to(elf: &Elf<'_>, function: VirtAddr, address: VirtAddr) -> bool {
    let mut found = false;
    explore(elf, function, LOOP_LIMIT, &mut |step| {
        if let Some(Pointer::Address(target)) = step.target
            && !step.is_call()
            && target > function
            && target <= address
        {
            found = true;
            return Next::Stop;
        }
        Next::Go
    });
    found
}

/// The text of an instruction, for `doctor` and `-v`.
pub fn instruction_at(elf: &Elf<'_>, address: VirtAddr) -> Option<String> {
    let bytes = elf.bytes_from(address)?;
    let mut decoder = Decoder::with_ip(64, bytes, address.get(), DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    let mut text = String::new();
    iced_x86::IntelFormatter::new().format(&instruction, &mut text);
    Some(text)
}
