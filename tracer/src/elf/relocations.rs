//! Dynamic relocations, asked by address: which pointer will stand in this word once the loader is done?
//!
//! Answers are link-time based. `DT_RELR` needs no reading for that: such a word already holds the link-time
//! address in the file. Symbols that the file defines itself are taken from it; that a preloaded library
//! replaces one of CPython's own is not considered.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use object::{LittleEndian as Le, elf};

use super::Elf;
use crate::units::VirtAddr;

#[derive(Debug, Default)]
pub(super) struct Relocations {
    /// By address.
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    kind: u32,
    symbol: u32,
    addend: i64,
}

/// What a word will hold when the file has been loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer<'a> {
    /// A link-time address of this file, or a plain number.
    Address(VirtAddr),
    /// The address of a symbol of another file.
    Import(&'a str),
    /// Something of thread-local storage.
    Tls(TlsReloc),
    /// Decided by code at load time (`IRELATIVE`), or a relocation that is not understood.
    Unknown,
}

/// Relocations of thread-local storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsReloc {
    /// `DTPMOD64`: the module's number; the next word is an offset in its block.
    Module,
    /// `DTPOFF64`: an offset in the module's block.
    BlockOffset,
    /// `TPOFF64`: an offset from the thread pointer.
    ThreadOffset,
    /// `TLSDESC`: a resolver and its argument in the next word.
    Descriptor,
}

impl<'a> Elf<'a> {
    /// What the 64-bit word at `address` will hold.
    pub fn pointer_at(&self, address: VirtAddr) -> Option<Pointer<'a>> {
        let Some(entry) = self.relocation_at(address) else {
            return self.word(address).map(|word| Pointer::Address(VirtAddr(word)));
        };
        let symbol_plus = |addend: i64| match self.dynamic_symbol(entry.symbol) {
            Some(symbol) => Pointer::Address(VirtAddr(symbol.address.get().wrapping_add_signed(addend))),
            None => self
                .dynamic_name(entry.symbol)
                .map_or(Pointer::Unknown, Pointer::Import),
        };
        Some(match entry.kind {
            elf::R_X86_64_RELATIVE => Pointer::Address(VirtAddr(entry.addend.cast_unsigned())),
            elf::R_X86_64_64 => symbol_plus(entry.addend),
            elf::R_X86_64_GLOB_DAT | elf::R_X86_64_JUMP_SLOT => symbol_plus(0),
            elf::R_X86_64_DTPMOD64 => Pointer::Tls(TlsReloc::Module),
            elf::R_X86_64_DTPOFF64 => Pointer::Tls(TlsReloc::BlockOffset),
            elf::R_X86_64_TPOFF64 => Pointer::Tls(TlsReloc::ThreadOffset),
            elf::R_X86_64_TLSDESC => Pointer::Tls(TlsReloc::Descriptor),
            _ => Pointer::Unknown,
        })
    }

    /// Like [`Elf::pointer_at`], if it is an address of this file other than 0.
    pub fn address_at(&self, address: VirtAddr) -> Option<VirtAddr> {
        match self.pointer_at(address)? {
            Pointer::Address(target) if target.get() != 0 => Some(target),
            _ => None,
        }
    }

    /// Whether the loader copies another file's data to `address` (so the symbol there is not this file's own).
    pub fn is_copied_from_elsewhere(&self, address: VirtAddr) -> bool {
        self.relocation_at(address)
            .is_some_and(|entry| entry.kind == elf::R_X86_64_COPY)
    }

    /// Where a call or jump to `address` ends up: through a PLT stub at the symbol it stands for, otherwise there.
    pub fn call_target(&self, address: VirtAddr) -> Pointer<'a> {
        self.stub_target(address).unwrap_or(Pointer::Address(address))
    }

    /// The target of a PLT stub: `[endbr64] jmp *slot(%rip)` where the slot has a relocation.
    fn stub_target(&self, address: VirtAddr) -> Option<Pointer<'a>> {
        let bytes = self.bytes_from(address)?;
        let bytes = bytes.get(..24).unwrap_or(bytes);
        let mut decoder = Decoder::with_ip(64, bytes, address.get(), DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        for _ in 0..2 {
            if !decoder.can_decode() {
                return None;
            }
            decoder.decode_out(&mut instruction);
            match instruction.flow_control() {
                FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
                    let slot = VirtAddr(instruction.ip_rel_memory_address());
                    self.relocation_at(slot)?;
                    return self.pointer_at(slot);
                }
                FlowControl::Next if instruction.mnemonic() == iced_x86::Mnemonic::Endbr64 => {}
                _ => return None,
            }
        }
        None
    }

    /// The words that will hold the address of another file's function of that name: its slots in the GOT.
    pub fn import_slots(&self, name: &str) -> Vec<VirtAddr> {
        let relocations = self.relocations.get_or_init(|| self.read_relocations());
        let slots = relocations.entries.iter().filter(|entry| {
            matches!(entry.kind, elf::R_X86_64_GLOB_DAT | elf::R_X86_64_JUMP_SLOT)
                && self.dynamic_symbol(entry.symbol).is_none()
                && self.dynamic_name(entry.symbol) == Some(name)
        });
        slots.map(|entry| VirtAddr(entry.address)).collect()
    }

    fn relocation_at(&self, address: VirtAddr) -> Option<Entry> {
        let relocations = self.relocations.get_or_init(|| self.read_relocations());
        let index = relocations
            .entries
            .binary_search_by_key(&address.get(), |entry| entry.address)
            .ok()?;
        relocations.entries.get(index).copied()
    }

    fn read_relocations(&self) -> Relocations {
        let tables = self.dynamic.rela.iter().chain(self.dynamic.jump_slots);
        let mut entries: Vec<Entry> = tables
            .map(|entry| Entry {
                address: entry.r_offset.get(Le),
                kind: entry.r_type(Le, false),
                symbol: entry.r_sym(Le, false),
                addend: entry.r_addend.get(Le),
            })
            .collect();
        entries.sort_by_key(|entry| entry.address);
        Relocations { entries }
    }
}
