//! Ends of frees as compilers write them, without a guard before, and as they must not be taken.

use iced_x86::code_asm::*;

use super::{
    synthetic::{Emit, FUNCTION, facts, file},
    *,
};
use crate::elf::Elf;

/// What covers each end of a free in the function, with the site's flags and operand.
#[track_caller]
fn check(function: Emit, expected: &[Result<(u32, Operand), &'static str>]) {
    let data = file(function);
    let elf = Elf::parse(&data).unwrap();
    let found = find(facts(), &Code::new(&elf));
    let ends = found.references.iter().filter(|reference| {
        reference.kind == ReferenceKind::PoolList && reference.address >= VirtAddr(FUNCTION)
    });
    let covered: Vec<_> = ends.map(|end| site_of(&found, end)).collect();
    assert_eq!(covered, expected);
}

const POOL_ONLY: u32 = flag::POOL_ONLY;
const RBX: Operand = Operand::register(3);
const UNKNOWN: &str = "no jump behind it knows the block";

/// Puts RBX onto the list of the pool; `between` stands before the jump.
fn push(a: &mut CodeAssembler, pool: AsmRegister64, between: Emit) -> Result<(), IcedError> {
    let mut done = a.create_label();
    a.mov(rdx, qword_ptr(pool + 8))?;
    a.mov(qword_ptr(rbx), rdx)?;
    a.mov(eax, dword_ptr(pool))?;
    a.mov(qword_ptr(pool + 8), rbx)?;
    a.sub(eax, 1)?;
    a.mov(dword_ptr(pool), eax)?;
    between(a)?;
    a.test(rdx, rdx)?;
    a.je(done)?;
    a.test(eax, eax)?;
    a.set_label(&mut done)?;
    a.ret()
}

#[test]
fn the_jump_behind_the_end_is_the_site() {
    check(|a| push(a, rcx, |_| Ok(())), &[Ok((POOL_ONLY, RBX))]);
    check(|a| push(a, r13, |_| Ok(())), &[Ok((POOL_ONLY, RBX))]);
    // Its encoding is one byte longer.
    check(|a| push(a, r12, |_| Ok(())), &[Ok((POOL_ONLY, RBX))]);
}

#[test]
fn a_count_before_the_list() {
    check(
        |a| {
            let mut done = a.create_label();
            a.sub(dword_ptr(rcx), 1)?;
            a.mov(rdx, qword_ptr(rcx + 8))?;
            a.mov(qword_ptr(rbx), rdx)?;
            a.mov(qword_ptr(rcx + 8), rbx)?;
            a.test(rdx, rdx)?;
            a.je(done)?;
            a.set_label(&mut done)?;
            a.ret()
        },
        &[Ok((POOL_ONLY, RBX))],
    );
}

#[test]
fn a_block_that_the_jump_does_not_know() {
    check(|a| push(a, rcx, |a| a.mov(rbx, rsi)), &[Err(UNKNOWN)]);
    check(|a| push(a, rcx, |a| a.call(rsi)), &[Err(UNKNOWN)]);
}

#[test]
fn a_jump_that_other_ways_lead_to() {
    check(
        |a| {
            let mut join = a.create_label();
            a.test(rsi, rsi)?;
            a.je(join)?;
            a.mov(rdx, qword_ptr(rcx + 8))?;
            a.mov(qword_ptr(rbx), rdx)?;
            a.mov(qword_ptr(rcx + 8), rbx)?;
            a.dec(dword_ptr(rcx))?;
            a.set_label(&mut join)?;
            a.test(rdx, rdx)?;
            a.je(join)?;
            a.ret()
        },
        &[Err(UNKNOWN)],
    );
}

#[test]
fn lists_of_another_kind() {
    // No count.
    check(
        |a| {
            let mut done = a.create_label();
            a.mov(rdx, qword_ptr(rcx + 8))?;
            a.mov(qword_ptr(rbx), rdx)?;
            a.mov(qword_ptr(rcx + 8), rbx)?;
            a.test(rdx, rdx)?;
            a.je(done)?;
            a.set_label(&mut done)?;
            a.ret()
        },
        &[],
    );
    // What becomes the first is not what the former first was linked to.
    check(
        |a| {
            a.mov(rdx, qword_ptr(rcx + 8))?;
            a.mov(qword_ptr(rbx), rdx)?;
            a.mov(qword_ptr(rcx + 8), rbp)?;
            a.dec(dword_ptr(rcx))?;
            a.ret()
        },
        &[],
    );
    // Another list's first.
    check(
        |a| {
            a.mov(rdx, qword_ptr(rcx + 8))?;
            a.mov(rcx, rsi)?;
            a.mov(qword_ptr(rbx), rdx)?;
            a.mov(qword_ptr(rcx + 8), rbx)?;
            a.dec(dword_ptr(rcx))?;
            a.ret()
        },
        &[],
    );
}
