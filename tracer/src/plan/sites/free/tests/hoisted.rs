//! Guards whose address was put into a register long before, as compilers write them, and as they must not be taken.

use iced_x86::code_asm::*;

use super::{
    synthetic::{CTX, Emit, FREE, FUNCTION, SLOT, copy_of, facts, file},
    *,
};
use crate::elf::Elf;

/// What covers the references to `_PyObject_Free` in the function, and the operands of the guards' sites.
#[track_caller]
fn check(function: Emit, expected: &[Result<(), &'static str>], operands: &[Operand]) {
    let data = file(function);
    let elf = Elf::parse(&data).unwrap();
    let found = find(facts(), &Code::new(&elf));
    let guards = found.sites.iter().filter(|site| site.role == Role::GuardedFree);
    let sites: Vec<Operand> = guards
        .map(|site| {
            assert_eq!(site.flags, flag::IF_ZERO | flag::POOL_ONLY);
            site.operand
        })
        .collect();
    let references = found
        .references
        .iter()
        .filter(|reference| reference.kind == ReferenceKind::Free && reference.address >= VirtAddr(FUNCTION));
    let covered: Vec<_> = references
        .map(|reference| match reference.covered {
            Covered::Site(_) => Ok(()),
            Covered::Elsewhere(reason) | Covered::Unmatched(reason) => Err(reason),
        })
        .collect();
    assert_eq!(covered, expected);
    assert_eq!(sites, operands);
}

const RBX: Operand = Operand::register(3);
const RBP: Operand = Operand::register(5);
const NOT_ALWAYS: &str = "other ways lead to the compare, too";

fn load(a: &mut CodeAssembler, register: AsmRegister64) -> Result<(), IcedError> {
    a.lea(register, qword_ptr(FREE))
}

/// Asks the slot, compares with the register, and frees `pointer` on either way; goes on behind.
fn guarded(a: &mut CodeAssembler, address: AsmRegister64, pointer: AsmRegister64) -> Result<(), IcedError> {
    let (mut other, mut done) = (a.create_label(), a.create_label());
    a.mov(rax, qword_ptr(SLOT))?;
    a.cmp(rax, address)?;
    a.jne(other)?;
    copy_of(a, pointer, done)?;
    a.set_label(&mut other)?;
    a.mov(rsi, pointer)?;
    a.mov(rdi, qword_ptr(CTX))?;
    a.call(rax)?;
    a.set_label(&mut done)?;
    a.nop()
}

/// A loop with the guard in it; `ahead` stands before it, `at_end` before it is run again.
fn looped(a: &mut CodeAssembler, ahead: Emit, at_end: Emit) -> Result<(), IcedError> {
    let mut head = a.create_label();
    ahead(a)?;
    a.set_label(&mut head)?;
    guarded(a, r12, rbx)?;
    at_end(a)?;
    a.dec(r13)?;
    a.jne(head)?;
    a.ret()
}

/// A guard behind a loop, which the register must outlast.
fn behind_loop(a: &mut CodeAssembler, address: AsmRegister64, within: Emit) -> Result<(), IcedError> {
    let mut head = a.create_label();
    load(a, address)?;
    a.set_label(&mut head)?;
    within(a)?;
    a.dec(r13)?;
    a.jne(head)?;
    guarded(a, address, rbx)?;
    a.ret()
}

#[test]
fn an_address_that_is_loaded_ahead_of_the_loop() {
    check(|a| looped(a, |a| load(a, r12), |_| Ok(())), &[Ok(())], &[RBX]);
}

#[test]
fn an_address_that_two_guards_share() {
    check(
        |a| {
            load(a, r12)?;
            guarded(a, r12, rbx)?;
            guarded(a, r12, rbp)?;
            a.ret()
        },
        &[Ok(())],
        &[RBX, RBP],
    );
}

#[test]
fn a_guard_that_shares_its_address_with_one_of_no_proof() {
    check(
        |a| {
            let mut other = a.create_label();
            load(a, r12)?;
            guarded(a, r12, rbx)?;
            a.mov(rax, qword_ptr(SLOT))?;
            a.cmp(rax, r12)?;
            a.jne(other)?;
            a.set_label(&mut other)?;
            a.nop()?;
            a.ret()
        },
        &[Err(
            "its jump is not for equality, or the kernel does not emulate it",
        )],
        &[],
    );
    check(
        |a| {
            let mut done = a.create_label();
            load(a, r12)?;
            guarded(a, r12, rbx)?;
            a.mov(rax, qword_ptr(SLOT))?;
            a.cmp(rax, r12)?;
            a.jne(done)?;
            copy_of(a, rbp, done)?;
            a.set_label(&mut done)?;
            a.ret()
        },
        &[Err("its other side does something else before it calls the slot")],
        &[RBX],
    );
}

#[test]
fn an_address_that_is_loaded_on_each_of_two_ways_is_one_guard() {
    check(
        |a| {
            let (mut second, mut join) = (a.create_label(), a.create_label());
            a.test(rsi, rsi)?;
            a.je(second)?;
            load(a, r12)?;
            a.jmp(join)?;
            a.set_label(&mut second)?;
            load(a, r12)?;
            a.set_label(&mut join)?;
            guarded(a, r12, rbx)?;
            a.ret()
        },
        &[Ok(()), Ok(())],
        &[RBX],
    );
}

#[test]
fn another_way_into_the_loop_with_something_else() {
    const WRITTEN: Emit = |a| {
        let (mut head, mut fits) = (a.create_label(), a.create_label());
        a.test(rsi, rsi)?;
        a.je(fits)?;
        a.mov(r12, rdi)?;
        a.jmp(head)?;
        a.set_label(&mut fits)?;
        load(a, r12)?;
        a.set_label(&mut head)?;
        a.nop()
    };
    const AS_IT_WAS: Emit = |a| {
        let mut head = a.create_label();
        a.test(rsi, rsi)?;
        a.je(head)?;
        load(a, r12)?;
        a.set_label(&mut head)?;
        a.nop()
    };
    check(|a| looped(a, WRITTEN, |_| Ok(())), &[Err(NOT_ALWAYS)], &[]);
    check(|a| looped(a, AS_IT_WAS, |_| Ok(())), &[Err(NOT_ALWAYS)], &[]);
}

#[test]
fn a_register_that_is_overwritten_in_the_loop() {
    let check_end = |function| check(function, &[Err(NOT_ALWAYS)], &[]);
    check_end(|a| looped(a, |a| load(a, r12), |a| a.mov(r12, qword_ptr(rbp))));
    check_end(|a| looped(a, |a| load(a, r12), |a| a.mov(r12b, 1)));
    check_end(|a| looped(a, |a| load(a, r12), |a| a.pop(r12)));
    let before_it = |function| check(function, &[Err(ADDRESS_ONLY)], &[]);
    before_it(|a| behind_loop(a, r12, |a| a.xor(r12d, r12d)));
}

#[test]
fn a_register_that_is_loaded_again_in_the_loop() {
    check(
        |a| looped(a, |a| load(a, r12), |a| load(a, r12)),
        &[Ok(()), Ok(())],
        &[RBX],
    );
}

#[test]
fn a_call_in_the_loop() {
    check(|a| behind_loop(a, r12, |_| Ok(())), &[Ok(())], &[RBX]);
    check(|a| behind_loop(a, r8, |_| Ok(())), &[Ok(())], &[RBX]);
    check(|a| behind_loop(a, r12, |a| a.call(rsi)), &[Ok(())], &[RBX]);
    check(|a| behind_loop(a, r8, |a| a.call(rsi)), &[Err(ADDRESS_ONLY)], &[]);
}
