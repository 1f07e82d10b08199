//! Guards as compilers write them, and as they must not be taken.

use iced_x86::code_asm::*;
use proptest::prelude::*;

use super::{
    synthetic::{CTX, Emit, FREE, FUNCTION, RAW_FREE, REALLOC, SLOT, copy_of, elf, facts, file, frames},
    *,
};
use crate::elf::Elf;

/// What covers each reference to `_PyObject_Free` in the function, with the site's flags and operand.
fn covered(function: Emit) -> Vec<Result<(u32, Operand), &'static str>> {
    let data = file(function);
    let elf = Elf::parse(&data).unwrap();
    let found = find(facts(), &Code::new(&elf));
    let references = found
        .references
        .iter()
        .filter(|reference| reference.kind == ReferenceKind::Free && reference.address >= VirtAddr(FUNCTION));
    references.map(|reference| site_of(&found, reference)).collect()
}

#[track_caller]
fn check(function: Emit, expected: &[Result<(u32, Operand), &'static str>]) {
    assert_eq!(covered(function), expected);
}

/// The raw half of these copies calls through the table, so a large block passes the raw function's site.
const EQUAL: u32 = flag::IF_ZERO | flag::POOL_ONLY;
const RBX: Operand = Operand::register(3);
const RBP: Operand = Operand::register(5);

fn compare(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, qword_ptr(SLOT))?;
    a.cmp(rax, i32::try_from(FREE).unwrap())
}

/// The guard, a copy for RBX, and a slow side that `slow` begins; it must leave the pointer in RSI.
fn guarded(a: &mut CodeAssembler, slow: Emit) -> Result<(), IcedError> {
    let (mut done, mut other) = (a.create_label(), a.create_label());
    compare(a)?;
    a.jne(other)?;
    copy_of(a, rbx, done)?;
    a.set_label(&mut done)?;
    a.ret()?;
    a.set_label(&mut other)?;
    slow(a)?;
    a.mov(rdi, qword_ptr(CTX))?;
    a.call(rax)?;
    a.jmp(done)
}

#[test]
fn a_pointer_in_a_register() {
    check(|a| guarded(a, |a| a.mov(rsi, rbx)), &[Ok((EQUAL, RBX))]);
    check(
        |a| {
            guarded(a, |a| {
                a.mov(rcx, rbx)?;
                a.push(rcx)?;
                a.pop(rsi)
            })
        },
        &[Ok((EQUAL, RBX))],
    );
}

#[test]
fn a_pointer_on_the_stack_with_pushes_before_its_load() {
    check(
        |a| {
            let (mut done, mut other) = (a.create_label(), a.create_label());
            compare(a)?;
            a.jne(other)?;
            a.mov(rbx, qword_ptr(rsp + 0x18))?;
            copy_of(a, rbx, done)?;
            a.set_label(&mut done)?;
            a.ret()?;
            a.set_label(&mut other)?;
            a.push(rcx)?;
            a.sub(rsp, 8)?;
            a.mov(rsi, qword_ptr(rsp + 0x28))?;
            a.mov(rdi, qword_ptr(CTX))?;
            a.call(rax)?;
            a.add(rsp, 16)?;
            a.jmp(done)
        },
        &[Ok((EQUAL, Operand::memory(4, 0x18)))],
    );
}

#[test]
fn a_guard_that_jumps_to_the_copy() {
    check(
        |a| {
            let (mut done, mut copy) = (a.create_label(), a.create_label());
            compare(a)?;
            a.je(copy)?;
            a.mov(rdi, qword_ptr(CTX))?;
            a.mov(rsi, rbp)?;
            a.call(rax)?;
            a.set_label(&mut done)?;
            a.ret()?;
            a.set_label(&mut copy)?;
            copy_of(a, rbp, done)
        },
        &[Ok((EQUAL, RBP))],
    );
}

#[test]
fn a_slow_block_that_two_guards_share() {
    check(
        |a| {
            let mut labels = [(); 4].map(|()| a.create_label());
            let [done, first, second, shared] = &mut labels;
            compare(a)?;
            a.jne(*first)?;
            copy_of(a, rbx, *done)?;
            compare(a)?;
            a.jne(*second)?;
            copy_of(a, rbp, *done)?;
            a.set_label(first)?;
            a.mov(rdx, rbx)?;
            a.jmp(*shared)?;
            a.set_label(second)?;
            a.mov(rdx, rbp)?;
            a.set_label(shared)?;
            a.mov(rsi, rdx)?;
            a.mov(rdi, qword_ptr(CTX))?;
            a.call(rax)?;
            a.set_label(done)?;
            a.ret()
        },
        &[Ok((EQUAL, RBX)), Ok((EQUAL, RBP))],
    );
}

#[test]
fn an_address_in_a_register() {
    check(
        |a| {
            let (mut done, mut other) = (a.create_label(), a.create_label());
            a.lea(rdx, qword_ptr(FREE))?;
            a.mov(rax, qword_ptr(SLOT))?;
            a.cmp(rax, rdx)?;
            a.jne(other)?;
            copy_of(a, rbx, done)?;
            a.set_label(&mut done)?;
            a.ret()?;
            a.set_label(&mut other)?;
            a.mov(rsi, rbx)?;
            a.mov(rdi, qword_ptr(CTX))?;
            a.jmp(rax)
        },
        &[Ok((EQUAL, RBX))],
    );
}

#[test]
fn a_pointer_that_is_clobbered_before_the_call_is_no_proof() {
    let unknown = "what its other side frees is not known at the guard";
    check(
        |a| guarded(a, |a| a.mov(rsi, qword_ptr(rbx + rcx))),
        &[Err(unknown)],
    );
    check(
        |a| {
            guarded(a, |a| {
                a.mov(bl, 1)?;
                a.mov(rsi, rbx)
            })
        },
        &[Err(unknown)],
    );
    check(
        |a| {
            guarded(a, |a| {
                a.mov(qword_ptr(rcx), rdx)?;
                a.mov(rsi, qword_ptr(rsp + 8))
            })
        },
        &[Err(unknown)],
    );
}

#[test]
fn two_sides_that_free_different_pointers_are_no_proof() {
    check(
        |a| guarded(a, |a| a.mov(rsi, rbp)),
        &[Err("the copy looks another pointer up")],
    );
    check(
        |a| guarded(a, |a| a.mov(rsi, qword_ptr(rsp + 8))),
        &[Err("the copy looks another pointer up")],
    );
}

#[test]
fn a_slow_side_that_calls_something_else_is_no_proof() {
    check(
        |a| {
            guarded(a, |a| {
                a.mov(rsi, rbx)?;
                a.mov(rax, qword_ptr(rcx))
            })
        },
        &[Err("its other side calls something else than the slot")],
    );
    check(
        |a| {
            guarded(a, |a| {
                a.call(FUNCTION)?;
                a.mov(rsi, rbx)
            })
        },
        &[Err("its other side does something else before it calls the slot")],
    );
}

#[test]
fn a_jump_between_compare_and_jump_is_no_proof() {
    check(
        |a| {
            let (mut done, mut between) = (a.create_label(), a.create_label());
            a.test(rdx, rdx)?;
            a.je(between)?;
            compare(a)?;
            a.set_label(&mut between)?;
            a.jne(done)?;
            copy_of(a, rbx, done)?;
            a.set_label(&mut done)?;
            a.ret()
        },
        &[Err("a jump leads between the compare and its jump")],
    );
}

#[test]
fn null_and_calls_of_the_implementation_need_no_site() {
    check(
        |a| guarded(a, |a| a.xor(esi, esi)),
        &[Err("it frees no block: the pointer is NULL")],
    );
    check(
        |a| {
            let mut other = a.create_label();
            compare(a)?;
            a.jne(other)?;
            a.mov(rsi, rbx)?;
            a.call(FREE)?;
            a.ret()?;
            a.set_label(&mut other)?;
            a.mov(rsi, rbx)?;
            a.call(rax)?;
            a.ret()
        },
        &[Err(HAS_SITE), Err(HAS_SITE)],
    );
}

/// Two frees; if the first pointer is null, the second copy is entered without asking the slot again.
#[test]
fn a_way_past_the_guard_has_a_site_of_its_own() {
    let data = file(|a| {
        let mut labels = [(); 5].map(|()| a.create_label());
        let [second, copy, done, slow, slower] = &mut labels;
        compare(a)?;
        a.jne(*slow)?;
        a.test(rbx, rbx)?;
        a.je(*copy)?;
        copy_of(a, rbx, *second)?;
        a.set_label(second)?;
        compare(a)?;
        a.jne(*slower)?;
        a.set_label(copy)?;
        copy_of(a, rbp, *done)?;
        a.set_label(done)?;
        a.ret()?;
        a.set_label(slow)?;
        a.mov(rsi, rbx)?;
        a.call(rax)?;
        a.jmp(*second)?;
        a.set_label(slower)?;
        a.mov(rsi, rbp)?;
        a.call(rax)?;
        a.jmp(*done)
    });
    let elf = Elf::parse(&data).unwrap();
    let found = find(facts(), &Code::new(&elf));
    let guards = found.sites.iter().filter(|site| site.role == Role::GuardedFree);
    let operands: Vec<(u32, Operand)> = guards.map(|site| (site.flags, site.operand)).collect();
    assert_eq!(operands, [(EQUAL, RBX), (EQUAL, RBP), (EQUAL, RBP)]);
    let unmatched = |reference: &&Reference| matches!(reference.covered, Covered::Unmatched(_));
    assert_eq!(found.references.iter().find(unmatched), None);
}

#[test]
fn a_copy_without_a_guard_is_listed() {
    let data = file(|a| {
        let mut done = a.create_label();
        copy_of(a, rbx, done)?;
        a.set_label(&mut done)?;
        a.ret()
    });
    let elf = Elf::parse(&data).unwrap();
    let found = find(facts(), &Code::new(&elf));
    let covered: Vec<&Covered> = found
        .references
        .iter()
        .filter(|reference| reference.kind == ReferenceKind::ArenaTree)
        .map(|reference| &reference.covered)
        .collect();
    let [Covered::Site(implementation), Covered::Unmatched(_)] = *covered else {
        panic!("{covered:?}");
    };
    assert_eq!(implementation.get(), FREE);
}

proptest! {
    #[test]
    fn garbled_code_never_panics(flips in proptest::collection::vec((0_usize..0x400, any::<u8>()), 1..40)) {
        let mut data = file(|a| guarded(a, |a| a.mov(rsi, qword_ptr(rsp + 8))));
        for (at, value) in flips {
            if let Some(byte) = data.get_mut(0x1000 + at) {
                *byte = value;
            }
        }
        let elf = Elf::parse(&data).unwrap();
        find(facts(), &Code::new(&elf));
    }

    #[test]
    fn random_code_never_panics(text in proptest::collection::vec(any::<u8>(), 0x200..0x800)) {
        let starts = [(FREE, 0x100), (REALLOC, 0x10), (RAW_FREE, 0x10), (FUNCTION, text.len())];
        let data = elf(&text, &frames(&starts));
        find(facts(), &Code::new(&Elf::parse(&data).unwrap()));
    }
}
