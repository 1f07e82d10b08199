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
use tracer_ebpf::site::Role;

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

/// The registers whose values at entry the kernel side reads, by role. System V calling convention; the first
/// argument is the allocator's context, which it does not need.
fn arguments(role: Role) -> &'static [Register] {
    match role {
        Role::ObjMalloc | Role::RawMalloc | Role::ObjFree | Role::RawFree => &[Register::RSI],
        Role::ObjCalloc | Role::RawCalloc | Role::ObjRealloc | Role::RawRealloc => {
            &[Register::RSI, Register::RDX]
        }
        Role::CodeDealloc => &[Register::RDI],
    }
}

/// The best instruction for a probe: the first that is emulated, every call passes exactly once, and finds the
/// arguments (and, for a return probe, the return address) where the entry had them.
pub(super) fn place(elf: &Elf<'_>, function: VirtAddr, role: Role, half: Half) -> (VirtAddr, Placement) {
    let single_step = (function, Placement::SingleStep);
    let Some((address, skipped_bytes)) = emulated(elf, function, role, half) else {
        return single_step;
    };
    if skipped_bytes > 0 && is_jumped_to(elf, function, address) {
        return single_step;
    }
    (address, Placement::Emulated { skipped_bytes })
}

fn emulated(elf: &Elf<'_>, function: VirtAddr, role: Role, half: Half) -> Option<(VirtAddr, u32)> {
    let bytes = elf.bytes_from(function)?;
    let mut decoder = Decoder::with_ip(64, bytes, function.get(), DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let mut instruction = Instruction::default();
    for _ in 0..LIMIT {
        if !decoder.can_decode() {
            return None;
        }
        decoder.decode_out(&mut instruction);
        if is_emulated(&instruction) {
            let skipped = instruction.ip().checked_sub(function.get())?;
            return Some((VirtAddr(instruction.ip()), u32::try_from(skipped).ok()?));
        }
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        let is_needed = |register: Register| {
            let full = register.full_register();
            arguments(role).contains(&full) || (half == Half::EntryAndReturn && full == Register::RSP)
        };
        let used = info.info(&instruction).used_registers();
        if used
            .iter()
            .any(|used| writes(used.access()) && is_needed(used.register()))
        {
            return None;
        }
    }
    None
}

/// Whether the kernel emulates it. The length rules out prefixes, which it refuses or which change the meaning.
fn is_emulated(instruction: &Instruction) -> bool {
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
