//! Small executables with one function to look at beside a `_PyObject_Free`, for tests.

use std::sync::OnceLock;

use iced_x86::code_asm::*;

use crate::{
    python::{AllocatorFunctions, AllocatorTables, ImageFacts, tests::runtimes},
    units::VirtAddr,
};

const FRAMES: u64 = 0x40_0200;
pub(super) const TEXT: u64 = 0x40_1000;
/// `_PyObject_Free`.
pub(super) const FREE: u64 = TEXT;
pub(super) const REALLOC: u64 = TEXT + 0x100;
pub(super) const RAW_FREE: u64 = TEXT + 0x110;
/// The function that is looked at.
pub(super) const FUNCTION: u64 = TEXT + 0x200;
const TABLE: u64 = 0x50_0000;
pub(super) const CTX: u64 = TABLE;
pub(super) const SLOT: u64 = TABLE + 32;
const RAW_TABLE: u64 = 0x50_0100;
const RAW_CTX: u64 = RAW_TABLE;
const RAW_SLOT: u64 = RAW_TABLE + 32;
const TREE: u64 = 0x60_0000;

pub(super) type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What a copy of `_PyObject_Free` does with a pointer; goes on at `done`.
pub(super) fn copy_of(
    a: &mut CodeAssembler,
    pointer: AsmRegister64,
    done: CodeLabel,
) -> Result<(), IcedError> {
    let mut raw = a.create_label();
    a.test(pointer, pointer)?;
    a.je(done)?;
    a.mov(rax, pointer)?;
    a.shr(rax, 49_u32)?;
    a.mov(rax, qword_ptr(rax * 8 + TREE))?;
    a.test(rax, rax)?;
    a.je(raw)?;
    a.mov(rcx, pointer)?;
    a.and(rcx, -0x4000)?;
    a.mov(rdx, qword_ptr(rcx + 8))?;
    a.mov(qword_ptr(pointer), rdx)?;
    a.mov(qword_ptr(rcx + 8), pointer)?;
    a.jmp(done)?;
    a.set_label(&mut raw)?;
    a.mov(rsi, pointer)?;
    a.mov(rdi, qword_ptr(RAW_CTX))?;
    a.call(qword_ptr(RAW_SLOT))?;
    a.jmp(done)
}

fn assemble(at: u64, emit: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    emit(&mut a).unwrap();
    a.assemble(at).unwrap()
}

/// An executable with the functions and call frame information for them.
pub(super) fn file(function: Emit) -> Vec<u8> {
    let implementation: Emit = |a| {
        let mut done = a.create_label();
        copy_of(a, rsi, done)?;
        a.set_label(&mut done)?;
        a.ret()
    };
    file_with(implementation, function)
}

/// The same with another `_PyObject_Free`.
pub(super) fn file_with(implementation: Emit, function: Emit) -> Vec<u8> {
    let mut text = Vec::new();
    let mut starts = Vec::new();
    let mut add = |start: u64, code: Vec<u8>| {
        text.resize(usize::try_from(start - TEXT).unwrap(), 0xcc);
        starts.push((start, code.len()));
        text.extend(code);
    };
    add(FREE, assemble(FREE, &|a| implementation(a)));
    add(REALLOC, assemble(REALLOC, &|a| a.ret()));
    add(RAW_FREE, assemble(RAW_FREE, &|a| a.ret()));
    add(FUNCTION, assemble(FUNCTION, &|a| function(a)));
    elf(&text, &frames(&starts))
}

fn relative(to: u64, from: u64) -> [u8; 4] {
    i32::try_from(to.cast_signed() - from.cast_signed())
        .unwrap()
        .to_le_bytes()
}

/// `.eh_frame_hdr` and `.eh_frame` behind it, at [`FRAMES`].
pub(super) fn frames(starts: &[(u64, usize)]) -> Vec<u8> {
    let frames_at = FRAMES + 12 + 8 * starts.len() as u64;
    // Version, augmentation "zR", alignments, return address, one byte of augmentation: pcrel, sdata4; padding.
    let mut frames = vec![
        20, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut table = Vec::new();
    for (start, length) in starts {
        let at = frames_at + frames.len() as u64;
        table.extend(relative(*start, FRAMES));
        table.extend(relative(at, FRAMES));
        frames.extend(16_u32.to_le_bytes());
        frames.extend(u32::try_from(at + 4 - frames_at).unwrap().to_le_bytes());
        frames.extend(relative(*start, at + 8));
        frames.extend(u32::try_from(*length).unwrap().to_le_bytes());
        frames.extend([0; 4]);
    }
    let mut all = vec![1, 0x1b, 0x03, 0x3b];
    all.extend(relative(frames_at, FRAMES + 4));
    all.extend(u32::try_from(starts.len()).unwrap().to_le_bytes());
    all.extend(table);
    all.extend(frames);
    all.extend([0; 4]);
    all
}

pub(super) fn elf(text: &[u8], frames: &[u8]) -> Vec<u8> {
    const LOAD: u32 = 1;
    const EH_FRAME: u32 = 0x6474_e550;
    let mut data = b"\x7fELF\x02\x01\x01".to_vec();
    data.resize(16, 0);
    data.extend(2_u16.to_le_bytes());
    data.extend(62_u16.to_le_bytes());
    data.extend(1_u32.to_le_bytes());
    for word in [FUNCTION, 64, 0] {
        data.extend(word.to_le_bytes());
    }
    data.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 3, 64, 0, 0] {
        data.extend(half.to_le_bytes());
    }
    let segments = [
        (LOAD, 4_u32, 0x200_u64, FRAMES, frames.len()),
        (LOAD, 5, 0x1000, TEXT, text.len()),
        (EH_FRAME, 4, 0x200, FRAMES, frames.len()),
    ];
    for (kind, flags, offset, address, length) in segments {
        data.extend(kind.to_le_bytes());
        data.extend(flags.to_le_bytes());
        for word in [offset, address, address, length as u64, length as u64, 0x1000] {
            data.extend(word.to_le_bytes());
        }
    }
    data.resize(0x200, 0);
    data.extend(frames);
    data.resize(0x1000, 0);
    data.extend(text);
    data
}

/// Facts that fit the file.
pub(super) fn facts() -> &'static ImageFacts {
    static FACTS: OnceLock<ImageFacts> = OnceLock::new();
    FACTS.get_or_init(|| {
        let mut facts = runtimes().into_iter().map(|(_, _, facts)| facts).next().unwrap();
        let other = VirtAddr(0);
        facts.version.minor = 13;
        facts.functions = AllocatorFunctions {
            raw: [other, other, other, VirtAddr(RAW_FREE)],
            obj: [other, other, VirtAddr(REALLOC), VirtAddr(FREE)],
            mem: [other, other, VirtAddr(REALLOC), VirtAddr(FREE)],
        };
        facts.tables = AllocatorTables {
            raw: VirtAddr(RAW_TABLE),
            mem: VirtAddr(TABLE + 0x80),
            obj: VirtAddr(TABLE),
        };
        facts
    })
}
