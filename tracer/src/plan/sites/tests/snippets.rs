//! Copies of pymalloc's allocation as compilers might write them, and as they must not be taken.

use iced_x86::{
    Register,
    code_asm::{CodeAssembler, CodeLabel, eax, ecx, edx, esi, r8, r9, rax, rbx, rcx, rdi, rdx, rsi, rsp},
    code_asm::{dword_ptr, qword_ptr},
};

use super::made::{Made, with_elf};
use crate::plan::sites::{
    code::Code,
    guards, init,
    pool::{equality_edges, leads_to, prove},
    registers::{is_call, on_equality},
    result,
};

/// Assembles what comes before the jump; then `jump` to the slow path.
type Part = fn(&mut CodeAssembler, CodeLabel) -> Result<(), iced_x86::IcedError>;

/// A copy whose jump is assembled by `jump`; the pool is in RAX.
fn copy(jump: Part, fast: Part) -> Made {
    let mut made = Made::new();
    let a = &mut made.assembler;
    let (mut slow, mut refill) = (a.create_label(), a.create_label());
    a.mov(rax, qword_ptr(rdi + rsi * 8)).unwrap();
    jump(a, slow).unwrap();
    fast(a, slow).unwrap();
    a.set_label(&mut slow).unwrap();
    a.mov(rdi, rbx).unwrap();
    a.call(refill).unwrap();
    a.ret().unwrap();
    made.function();
    let a = &mut made.assembler;
    a.set_label(&mut refill).unwrap();
    a.xor(eax, eax).unwrap();
    a.ret().unwrap();
    made
}

/// The fast path as it is.
fn takes(a: &mut CodeAssembler, _: CodeLabel) -> Result<(), iced_x86::IcedError> {
    a.add(dword_ptr(rax), 1)?;
    a.mov(rcx, qword_ptr(rax + 8))?;
    a.mov(rdx, qword_ptr(rcx))?;
    a.mov(qword_ptr(rax + 8), rdx)?;
    a.mov(rax, rcx)?;
    a.ret()
}

/// Proves the first jump on equality in the file.
#[track_caller]
fn check(made: Made, expected: Result<Register, &str>) {
    with_elf(made, |elf, starts| {
        let code = Code::new(elf);
        let body = code.body(starts[0]).unwrap();
        let jump = body
            .instructions()
            .iter()
            .find(|at| equality_edges(at).is_some())
            .unwrap();
        let proven = prove(&code, jump);
        assert_eq!(proven.map(|jump| jump.pool), expected);
        if let Ok(jump) = proven {
            assert!(leads_to(&code, jump.slow, starts[1]));
            assert!(!leads_to(&code, starts[0], starts[1]), "the fast way returns");
        }
    });
}

const UNKNOWN: &str = "its operands are not known to be a pool and the pool's nextpool";

#[test]
fn only_jumps_that_ask_for_the_zero_flag_alone_are_on_equality() {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut to = a.create_label();
    a.set_label(&mut to).unwrap();
    a.je(to).unwrap();
    a.jne(to).unwrap();
    a.loope(to).unwrap();
    a.loopne(to).unwrap();
    a.jrcxz(to).unwrap();
    a.jb(to).unwrap();
    a.jmp(to).unwrap();
    let found: Vec<_> = a.instructions().iter().map(on_equality).collect();
    assert_eq!(found, [Some(true), Some(false), None, None, None, None, None]);
}

#[test]
fn either_order_of_the_operands_is_understood() {
    let jump: Part = |a, slow| {
        a.mov(rdx, qword_ptr(rax + 16))?;
        a.cmp(rax, rdx)?;
        a.je(slow)
    };
    check(copy(jump, takes), Ok(Register::RAX));
    let jump: Part = |a, slow| {
        a.mov(rdx, qword_ptr(rax + 16))?;
        a.cmp(rdx, rax)?;
        a.je(slow)
    };
    check(copy(jump, takes), Ok(Register::RAX));
}

#[test]
fn a_memory_operand_is_understood() {
    let jump: Part = |a, slow| {
        a.cmp(rax, qword_ptr(rax + 16))?;
        a.je(slow)
    };
    check(copy(jump, takes), Ok(Register::RAX));
    let jump: Part = |a, slow| {
        a.mov(r9, rax)?;
        a.cmp(qword_ptr(r9 + 16), rax)?;
        a.mov(r8, rcx)?;
        a.je(slow)
    };
    let fast: Part = |a, _| {
        a.mov(rcx, qword_ptr(r9 + 8))?;
        a.ret()
    };
    check(copy(jump, fast), Ok(Register::R9));
}

#[test]
fn an_inverted_jump_and_a_far_one_are_understood() {
    let jump: Part = |a, slow| {
        let mut fast = a.create_label();
        a.mov(rdx, qword_ptr(rax + 16))?;
        a.cmp(rax, rdx)?;
        a.jne(fast)?;
        a.jmp(slow)?;
        a.set_label(&mut fast)
    };
    check(copy(jump, takes), Ok(Register::RAX));
    let jump: Part = |a, slow| {
        a.cmp(rax, qword_ptr(rax + 16))?;
        a.je(slow)
    };
    let fast: Part = |a, slow| {
        takes(a, slow)?;
        (0..200).try_for_each(|_| a.int3())
    };
    check(copy(jump, fast), Ok(Register::RAX));
}

#[test]
fn moves_between_the_load_and_the_jump_are_followed() {
    let jump: Part = |a, slow| {
        a.mov(r9, rax)?;
        a.mov(rcx, qword_ptr(r9 + 16))?;
        a.mov(rdx, rcx)?;
        a.xor(esi, esi)?;
        a.cmp(rax, rdx)?;
        a.mov(ecx, 1)?;
        a.je(slow)
    };
    check(copy(jump, takes), Ok(Register::RAX));
}

#[test]
fn what_is_not_proven_is_no_site() {
    let other_field: Part = |a, slow| {
        a.mov(rdx, qword_ptr(rax + 24))?;
        a.cmp(rax, rdx)?;
        a.je(slow)
    };
    check(copy(other_field, takes), Err(UNKNOWN));
    let other_pool: Part = |a, slow| {
        a.mov(rdx, qword_ptr(rcx + 16))?;
        a.cmp(rax, rdx)?;
        a.je(slow)
    };
    check(copy(other_pool, takes), Err(UNKNOWN));
    let overwritten_before: Part = |a, slow| {
        a.mov(rdx, qword_ptr(rax + 16))?;
        a.mov(rax, qword_ptr(rdi))?;
        a.cmp(rax, rdx)?;
        a.je(slow)
    };
    check(copy(overwritten_before, takes), Err(UNKNOWN));
    let half: Part = |a, slow| {
        a.mov(rdx, qword_ptr(rax + 16))?;
        a.cmp(eax, edx)?;
        a.je(slow)
    };
    check(copy(half, takes), Err(UNKNOWN));
}

#[test]
fn a_pool_register_that_is_overwritten_before_the_jump_is_no_site() {
    let jump: Part = |a, slow| {
        a.mov(rdx, qword_ptr(rax + 16))?;
        a.cmp(rax, rdx)?;
        a.mov(rax, rdi)?;
        a.je(slow)
    };
    let why = Err("the pool's register is overwritten before the jump");
    check(copy(jump, takes), why);
    let memory: Part = |a, slow| {
        a.cmp(rax, qword_ptr(rax + 16))?;
        a.mov(rax, rdi)?;
        a.je(slow)
    };
    check(copy(memory, takes), why);
}

#[test]
fn a_header_that_was_written_before_the_jump_is_no_site() {
    let jump: Part = |a, slow| {
        a.mov(rcx, qword_ptr(rax + 8))?;
        a.mov(rdx, qword_ptr(rax + 16))?;
        a.mov(qword_ptr(rax + 8), rcx)?;
        a.cmp(rax, rdx)?;
        a.je(slow)
    };
    check(
        copy(jump, takes),
        Err("pool->freeblock is written before the jump"),
    );
}

#[test]
fn a_fast_path_that_takes_no_block_is_no_site() {
    let jump: Part = |a, slow| {
        a.cmp(rax, qword_ptr(rax + 16))?;
        a.je(slow)
    };
    let not_at_all: Part = |a, _| a.ret();
    let why = Err("the block is not taken from the pool behind the jump");
    check(copy(jump, not_at_all), why);
    let sometimes: Part = |a, slow| {
        let mut other = a.create_label();
        a.test(rsi, rsi)?;
        a.js(other)?;
        takes(a, slow)?;
        a.set_label(&mut other)?;
        a.ret()
    };
    check(copy(jump, sometimes), why);
    let of_another: Part = |a, _| {
        a.mov(rax, rdi)?;
        a.mov(rcx, qword_ptr(rax + 8))?;
        a.ret()
    };
    check(copy(jump, of_another), why);
}

#[test]
fn a_way_that_jumps_in_between_compare_and_jump_is_no_site() {
    let jump: Part = |a, slow| {
        let mut between = a.create_label();
        a.test(esi, esi)?;
        a.js(between)?;
        a.cmp(rax, qword_ptr(rax + 16))?;
        a.set_label(&mut between)?;
        a.je(slow)
    };
    check(
        copy(jump, takes),
        Err("several ways lead to the jump behind its compare"),
    );
}

/// A call, what stands behind it, and a way that joins it there.
fn results(behind: Part) -> Made {
    let mut made = Made::new();
    let a = &mut made.assembler;
    let (mut callee, mut join, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.push(rbx).unwrap();
    a.test(esi, esi).unwrap();
    a.js(join).unwrap();
    a.mov(rdi, rbx).unwrap();
    a.call(callee).unwrap();
    behind(a, end).unwrap();
    a.set_label(&mut end).unwrap();
    a.pop(rbx).unwrap();
    a.ret().unwrap();
    a.set_label(&mut join).unwrap();
    a.mov(rax, rdi).unwrap();
    a.jmp(end).unwrap();
    made.function();
    let a = &mut made.assembler;
    a.set_label(&mut callee).unwrap();
    a.ret().unwrap();
    made
}

/// Looks for the place behind the first call: distance, register, whether it is behind a join, and the size's register.
#[track_caller]
fn check_place(made: Made, expected: Result<(u64, u8, u16, u8), &str>) {
    with_elf(made, |elf, starts| {
        let code = Code::new(elf);
        let body = code.body(starts[0]).unwrap();
        let call = body.instructions().iter().find(|at| is_call(at)).unwrap();
        let found = result::place(&code, call).map(|place| {
            let distance = place.instruction.ip() - call.next_ip();
            let size = result::requested(&code, call, &place);
            (
                distance,
                place.operand.register,
                place.operand.behind,
                size.register,
            )
        });
        assert_eq!(found, expected);
    });
}

#[test]
fn a_result_is_looked_at_where_the_kernel_emulates() {
    let tested: Part = |a, end| {
        a.mov(rcx, rax)?;
        a.xor(eax, eax)?;
        a.test(rcx, rcx)?;
        a.je(end)?;
        a.nop()
    };
    check_place(results(tested), Ok((8, 1, 0, 3)));
    let size_lost: Part = |a, end| {
        a.mov(rbx, rax)?;
        a.jmp(end)
    };
    check_place(results(size_lost), Ok((3, 0, 0, 0)));
}

#[test]
fn a_place_that_other_ways_lead_to_is_told_apart_or_not_taken() {
    // `end` is joined; `pop` is not emulated and moves the stack pointer.
    let joined: Part = |a, _| a.mov(rcx, rax);
    check_place(results(joined), Ok((0, 0, 0, 3)));
    let at_once: Part = |_, _| Ok(());
    check_place(
        results(at_once),
        Err("other ways lead to the instruction behind the call"),
    );
    let lost: Part = |a, end| {
        a.mov(eax, edx)?;
        a.je(end)?;
        a.nop()
    };
    check_place(results(lost), Ok((0, 0, 0, 3)));
    let mut made = Made::new();
    let a = &mut made.assembler;
    let (mut join, mut callee, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.test(esi, esi).unwrap();
    a.js(join).unwrap();
    a.call(callee).unwrap();
    a.mov(rcx, rax).unwrap();
    a.set_label(&mut join).unwrap();
    a.test(rcx, rcx).unwrap();
    a.je(end).unwrap();
    a.set_label(&mut end).unwrap();
    a.ret().unwrap();
    made.function();
    made.assembler.set_label(&mut callee).unwrap();
    made.assembler.ret().unwrap();
    check_place(made, Ok((6, 0, 6, 0)));
}

#[test]
fn guards_are_found_with_immediates_and_with_registers() {
    let mut made = Made::new();
    let a = &mut made.assembler;
    let (mut other, mut function) = (a.create_label(), a.create_label());
    a.cmp(qword_ptr(rdi), 0x1234).unwrap();
    a.jne(other).unwrap();
    a.lea(rdx, qword_ptr(function)).unwrap();
    a.mov(rcx, qword_ptr(rdi)).unwrap();
    a.cmp(rcx, rdx).unwrap();
    a.mov(qword_ptr(rsp + 8), rdi).unwrap();
    a.je(other).unwrap();
    a.lea(rdx, qword_ptr(function)).unwrap();
    a.mov(qword_ptr(rdi), rdx).unwrap();
    a.set_label(&mut other).unwrap();
    a.ret().unwrap();
    made.function();
    made.assembler.set_label(&mut function).unwrap();
    made.assembler.ret().unwrap();
    with_elf(made, |elf, starts| {
        let code = Code::new(elf);
        let body = code.body(starts[0]).unwrap();
        let instructions = body.instructions();
        let end = instructions.last().unwrap().ip();
        let immediate = guards::all(&code, &instructions[0], 0x1234)[0];
        assert_eq!(immediate.jump, instructions[1].ip());
        assert_eq!(
            (immediate.equal, immediate.different),
            (instructions[2].ip(), end)
        );
        let hits = code.references(&[crate::units::VirtAddr(starts[1])]).hits;
        let found: Vec<_> = hits
            .iter()
            .map(|hit| guards::all(&code, &hit.instruction, starts[1]))
            .collect();
        let [[register], []] = [found[0].as_slice(), found[1].as_slice()] else {
            panic!("{found:?}")
        };
        assert_eq!(found.len(), 2);
        assert_eq!((register.equal, register.different), (end, instructions[7].ip()));
    });
}

#[test]
fn a_set_up_of_a_pool_is_found_and_proven() {
    let build = |class_is_stored: bool| {
        let mut made = Made::new();
        let a = &mut made.assembler;
        let mut first = a.create_label();
        a.mov(dword_ptr(rcx), 1).unwrap();
        a.cmp(dword_ptr(rcx + 0x24), esi).unwrap();
        a.jne(first).unwrap();
        a.mov(rax, qword_ptr(rcx + 8)).unwrap();
        a.ret().unwrap();
        a.set_label(&mut first).unwrap();
        if class_is_stored {
            a.mov(dword_ptr(rcx + 0x24), esi).unwrap();
        }
        a.lea(rax, qword_ptr(rcx + 0x30)).unwrap();
        a.ret().unwrap();
        made
    };
    with_elf(build(true), |elf, _| {
        let found = init::all(&Code::new(elf));
        let [init] = *found else { panic!("{found:?}") };
        assert_eq!((init.pool, init.class), (Register::RCX, Register::RSI));
    });
    with_elf(build(false), |elf, _| {
        assert!(init::all(&Code::new(elf)).is_empty());
    });
}
