//! The jump behind the taking of a block, as compilers write it, and where it must not be taken for a site.

use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, eax, ecx, edi, edx, qword_ptr, r9, rax, rbx, rcx, rdi, rdx, rsi,
};
use tracer_ebpf::site::Operand;

use super::made::{Made, with_elf};
use crate::plan::sites::{
    code::Code,
    pool::{equality_edges, prove},
    taken,
};

const RBX: u8 = 3;
const RDI: u8 = 7;

type Result = std::result::Result<(), iced_x86::IcedError>;

/// Assembles a copy: `take` stands between the two jumps, `extend` behind the second one; the pool is in RAX.
fn check(
    take: fn(&mut CodeAssembler) -> Result,
    extend: fn(&mut CodeAssembler) -> Result,
    expected: Option<[Operand; 2]>,
) {
    let mut made = Made::new();
    let a = &mut made.assembler;
    let (mut slow, mut none_left, mut full) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rax, qword_ptr(rdi * 8 + rsi)).unwrap();
    a.mov(r9, qword_ptr(rax + 16)).unwrap();
    a.cmp(r9, rax).unwrap();
    a.je(slow).unwrap();
    take(a).unwrap();
    a.je(none_left).unwrap();
    a.mov(rax, rbx).unwrap();
    a.ret().unwrap();
    a.set_label(&mut none_left).unwrap();
    a.mov(edx, dword_ptr(rax + 40)).unwrap();
    a.cmp(dword_ptr(rax + 44), edx).unwrap();
    a.jb(full).unwrap();
    extend(a).unwrap();
    a.set_label(&mut full).unwrap();
    a.mov(rax, rbx).unwrap();
    a.ret().unwrap();
    a.set_label(&mut slow).unwrap();
    a.xor(eax, eax).unwrap();
    a.ret().unwrap();
    with_elf(made, |elf, starts| {
        let code = Code::new(elf);
        let body = code.body(starts[0]).unwrap();
        let mut jumps = body
            .instructions()
            .iter()
            .filter(|at| equality_edges(at).is_some());
        let (first, second) = (jumps.next().unwrap(), jumps.next().unwrap());
        let pool = prove(&code, first).unwrap().pool;
        let found = taken::find(&code, first, pool);
        assert_eq!(found.map(|taken| [taken.block, taken.class]), expected);
        if let Some(found) = found {
            assert_eq!(found.jump.ip(), second.ip());
        }
    });
}

fn takes(a: &mut CodeAssembler) -> Result {
    a.mov(rbx, qword_ptr(rax + 8))?;
    a.add(dword_ptr(rax), 1)?;
    a.mov(rcx, qword_ptr(rbx))?;
    a.mov(qword_ptr(rax + 8), rcx)?;
    a.test(rcx, rcx)
}

/// RDI has the index of the class.
fn extends_by_index(a: &mut CodeAssembler) -> Result {
    a.add(edi, 1)?;
    a.mov(ecx, edx)?;
    a.shl(edi, 4)?;
    a.add(rcx, rax)?;
    a.add(edi, edx)?;
    a.mov(qword_ptr(rax + 8), rcx)?;
    a.mov(dword_ptr(rax + 40), edi)
}

fn extends_by_constant(a: &mut CodeAssembler) -> Result {
    a.mov(ecx, edx)?;
    a.add(edx, 48)?;
    a.add(rcx, rax)?;
    a.mov(dword_ptr(rax + 40), edx)
}

fn plus(operand: Operand, displacement: i32) -> Operand {
    Operand {
        displacement,
        ..operand
    }
}

#[test]
fn a_class_whose_index_is_in_a_register() {
    let class = plus(Operand::register(RDI), 16);
    check(takes, extends_by_index, Some([Operand::register(RBX), class]));
}

#[test]
fn a_class_that_is_a_constant() {
    let class = plus(Operand::default(), 48);
    check(takes, extends_by_constant, Some([Operand::register(RBX), class]));
}

#[test]
fn an_address_that_is_computed() {
    let class = plus(Operand::register(RDI), 16);
    let extend = |a: &mut CodeAssembler| {
        a.shl(edi, 4)?;
        a.lea(ecx, qword_ptr(rdx + rdi + 16))?;
        a.mov(dword_ptr(rax + 40), ecx)
    };
    check(takes, extend, Some([Operand::register(RBX), class]));
}

#[test]
fn a_class_that_is_in_memory_is_not_taken() {
    let extend = |a: &mut CodeAssembler| {
        a.mov(edi, dword_ptr(rax + 36))?;
        extends_by_index(a)
    };
    check(takes, extend, None);
}

#[test]
fn an_index_that_counts_something_else_is_not_taken() {
    let extend = |a: &mut CodeAssembler| {
        a.shl(edi, 3)?;
        a.add(edi, edx)?;
        a.mov(dword_ptr(rax + 40), edi)
    };
    check(takes, extend, None);
}

#[test]
fn a_pool_that_is_not_extended_is_not_taken() {
    check(takes, |_| Ok(()), None);
}

#[test]
fn what_is_loaded_behind_the_store_is_no_block() {
    let take = |a: &mut CodeAssembler| {
        a.mov(rcx, qword_ptr(rax + 8))?;
        a.mov(rdx, qword_ptr(rcx))?;
        a.mov(qword_ptr(rax + 8), rdx)?;
        a.mov(rbx, qword_ptr(rax + 8))?;
        a.test(rdx, rdx)
    };
    check(take, extends_by_constant, None);
}

#[test]
fn a_call_between_the_two_ends_the_search() {
    let take = |a: &mut CodeAssembler| {
        takes(a)?;
        a.call(r9)?;
        a.test(rcx, rcx)
    };
    check(take, extends_by_constant, None);
}
