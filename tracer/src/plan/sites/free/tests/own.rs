//! An implementation of which only the end is understood (3.9 has no radix tree).

use iced_x86::code_asm::*;

use super::{
    synthetic::{Emit, FREE, facts, file_with},
    *,
};
use crate::elf::Elf;

/// Puts the block of RSI onto the list of its pool.
const IMPLEMENTATION: Emit = |a| {
    let mut done = a.create_label();
    a.push(rbx)?;
    a.mov(rcx, rsi)?;
    a.and(rcx, -0x4000)?;
    a.mov(rdx, qword_ptr(rcx + 8))?;
    a.mov(qword_ptr(rsi), rdx)?;
    a.mov(qword_ptr(rcx + 8), rsi)?;
    a.dec(dword_ptr(rcx))?;
    a.test(rdx, rdx)?;
    a.je(done)?;
    a.nop()?;
    a.set_label(&mut done)?;
    a.pop(rbx)?;
    a.ret()
};

/// Where the list is loaded.
const WITHIN: u64 = FREE + 11;

/// What covers the one end of a free beside such an implementation; it has one site in any case.
#[track_caller]
fn check(function: Emit, expected: Result<VirtAddr, &'static str>) {
    let data = file_with(IMPLEMENTATION, function);
    let elf = Elf::parse(&data).unwrap();
    let code = Code::new(&elf);
    assert!(code.at(WITHIN).is_some());
    let found = find(facts(), &code);
    let ends = found
        .references
        .iter()
        .filter(|reference| reference.kind == ReferenceKind::PoolList);
    let covered: Vec<_> = ends
        .map(|end| match end.covered {
            Covered::Site(address) => Ok(address),
            Covered::Elsewhere(reason) | Covered::Unmatched(reason) => Err(reason),
        })
        .collect();
    assert_eq!(covered, [expected]);
    let sites = found
        .sites
        .iter()
        .filter(|site| matches!(site.role, Role::ObjFree | Role::GuardedFree));
    let sites: Vec<_> = sites.map(|site| (site.role, site.address)).collect();
    assert_eq!(sites, [(Role::ObjFree, VirtAddr(FREE))]);
}

#[test]
fn its_end_has_no_second_site() {
    check(CodeAssembler::ret, Ok(VirtAddr(FREE)));
}

#[test]
fn a_jump_into_it_gives_it_no_second_site() {
    check(
        |a| {
            a.test(rsi, rsi)?;
            a.je(WITHIN)?;
            a.ret()
        },
        Err("another way leads to the end of a copy than through its guard"),
    );
}
