//! What stands between a guard of an allocation and its site.

use iced_x86::{
    Mnemonic,
    code_asm::{qword_ptr, rax, rdi, rdx},
};
use tracer_ebpf::site::{Operand, Role};

use super::made::{Made, with_elf};
use crate::{
    plan::{
        Covered, ReferenceKind,
        sites::{Sites, code::Code, entries, within},
    },
    python::tests::runtimes,
    units::VirtAddr,
};

/// A guard, behind which `name` of another file is called before the site: what covers the guard.
#[track_caller]
fn check(name: &'static str, expected: Result<(), &str>) {
    let mut made = Made::new();
    let a = &mut made.assembler;
    let (mut malloc, mut slot) = (a.create_label(), a.create_label());
    let (mut other, mut slow) = (a.create_label(), a.create_label());
    a.lea(rdx, qword_ptr(malloc)).unwrap();
    a.cmp(rdx, qword_ptr(rdi)).unwrap();
    a.jne(other).unwrap();
    a.call(qword_ptr(slot)).unwrap();
    a.cmp(rax, qword_ptr(rax + 16)).unwrap();
    a.je(slow).unwrap();
    a.set_label(&mut slow).unwrap();
    a.ret().unwrap();
    a.set_label(&mut other).unwrap();
    a.jmp(qword_ptr(rdi + 8)).unwrap();
    made.function();
    made.assembler.set_label(&mut malloc).unwrap();
    made.assembler.ret().unwrap();
    made.function();
    made.assembler.set_label(&mut slot).unwrap();
    made.assembler.dq(&[0]).unwrap();
    made.imports.push((2, name));
    with_elf(made, |elf, starts| {
        let code = Code::new(elf);
        let (_, _, mut facts) = runtimes().swap_remove(0);
        let none = VirtAddr(1 << 40);
        facts.functions.obj = [VirtAddr(starts[1]), none, none, none];
        facts.functions.raw = [none; 4];
        let body = code.body(starts[0]).unwrap();
        let jump = body
            .instructions()
            .iter()
            .find(|at| at.mnemonic() == Mnemonic::Je);
        let site = within(&code, Role::PoolAlloc, jump.unwrap(), 0, [Operand::default(); 2]).unwrap();
        let mut sites = Sites::default();
        sites.add(site);
        entries::add(&facts, &code, &mut sites);
        let found: Vec<_> = sites
            .references
            .iter()
            .filter(|reference| reference.kind == ReferenceKind::Allocation)
            .map(|reference| match reference.covered {
                Covered::Site(address) => {
                    assert_eq!(address.get(), jump.unwrap().ip());
                    Ok(())
                }
                Covered::Elsewhere(reason) | Covered::Unmatched(reason) => Err(reason),
            })
            .collect();
        assert_eq!(found, [expected]);
    });
}

#[test]
fn the_address_of_the_thread_state_may_be_asked_for() {
    check("__tls_get_addr", Ok(()));
}

#[test]
fn any_other_call_ends_the_way() {
    check("getenv", Err("no site is found behind the guard"));
}
