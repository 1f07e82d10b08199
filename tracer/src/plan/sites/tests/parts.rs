//! What a function is and what only a part of one, and what that says of a call of libc.

use iced_x86::{
    FlowControl, IcedError, OpKind,
    code_asm::{CodeAssembler, CodeLabel, eax, esi, qword_ptr, rax, rdi, rsi},
};

use super::made::{Made, with_elf};
use crate::{
    plan::{
        Covered,
        sites::{
            code::Code,
            raw::{self, Libc},
        },
    },
    python::tests::runtimes,
    units::VirtAddr,
};

/// How code refers to the range.
type Refer = fn(&mut CodeAssembler, CodeLabel) -> Result<(), IcedError>;

/// Something that refers to a range far behind it: number 1.
fn referred(refer: Refer) -> Made {
    let mut made = Made::new();
    let mut range = made.assembler.create_label();
    refer(&mut made.assembler, range).unwrap();
    made.assembler.ret().unwrap();
    made.gap();
    made.function();
    let a = &mut made.assembler;
    a.set_label(&mut range).unwrap();
    a.xor(eax, eax).unwrap();
    a.ret().unwrap();
    made
}

/// Whether ways begin at number 1.
#[track_caller]
fn check(made: Made, expected: bool) {
    with_elf(made, |elf, starts| {
        let code = Code::new(elf);
        assert!(code.is_start(starts[1]));
        assert_eq!(code.begins(starts[1]), expected);
        assert!(!code.begins(starts[1] + 2), "no range starts there");
    });
}

#[test]
fn a_range_that_is_only_jumped_to_is_a_part() {
    check(referred(CodeAssembler::jmp), false);
    check(referred(CodeAssembler::jne), false);
}

#[test]
fn a_range_that_jumps_to_its_own_start_is_a_part() {
    let mut made = Made::new();
    let mut range = made.assembler.create_label();
    made.assembler.jmp(range).unwrap();
    made.gap();
    made.function();
    let a = &mut made.assembler;
    a.set_label(&mut range).unwrap();
    a.dec(rax).unwrap();
    a.jne(range).unwrap();
    a.ret().unwrap();
    check(made, false);
}

#[test]
fn a_range_that_is_called_is_a_function() {
    check(referred(CodeAssembler::call), true);
    let as_well: Refer = |a, range| {
        a.je(range)?;
        a.call(range)
    };
    check(referred(as_well), true);
}

#[test]
fn a_range_whose_address_is_taken_is_a_function() {
    let taken: Refer = |a, range| {
        a.jne(range)?;
        a.lea(rax, qword_ptr(range))
    };
    check(referred(taken), true);
    let mut in_data = referred(CodeAssembler::jne);
    in_data.in_data.push(1);
    check(in_data, true);
    let mut of_another = referred(CodeAssembler::jne);
    of_another.in_data.push(0);
    check(of_another, false);
}

/// A range that is jumped to from far away, and from the function right before or behind it with one byte.
fn beside(is_before: bool) -> Made {
    let mut made = Made::new();
    let mut range = made.assembler.create_label();
    made.assembler.jmp(range).unwrap();
    made.gap();
    made.function();
    if is_before {
        made.assembler.jmp(range).unwrap();
        made.function();
    }
    made.assembler.set_label(&mut range).unwrap();
    made.assembler.ret().unwrap();
    made.function();
    if !is_before {
        made.assembler.jne(range).unwrap();
    }
    made.assembler.ret().unwrap();
    made
}

/// The ways back do not know jumps of one byte between ranges: there they must end.
#[test]
fn a_range_that_its_neighbour_jumps_to_is_a_function() {
    for (is_before, number) in [(true, 2), (false, 1)] {
        with_elf(beside(is_before), |elf, starts| {
            let code = Code::new(elf);
            assert_eq!(code.predecessors(starts[number]).len(), 1);
            assert!(code.begins(starts[number]), "{is_before}");
        });
    }
}

/// The raw malloc is number 0, a stub of libc's the last one; number 1 is a part that jumps back into the code
/// that `tail` ends in a call of libc. It gets the labels of that part, of the way back, and of the stub.
fn with_cold(tail: fn(&mut Made, CodeLabel, &mut CodeLabel, CodeLabel), is_called: bool) -> Made {
    let mut made = Made::new();
    let a = &mut made.assembler;
    let (mut cold, mut join, mut stub) = (a.create_label(), a.create_label(), a.create_label());
    tail(&mut made, cold, &mut join, stub);
    made.gap();
    made.function();
    let a = &mut made.assembler;
    a.set_label(&mut cold).unwrap();
    a.mov(esi, 1).unwrap();
    a.jmp(join).unwrap();
    made.gap();
    made.function();
    let a = &mut made.assembler;
    if is_called {
        a.call(cold).unwrap();
    }
    a.ret().unwrap();
    made.gap();
    made.function();
    let a = &mut made.assembler;
    a.set_label(&mut stub).unwrap();
    a.ret().unwrap();
    made
}

/// What covers the last jump to the stub; `None` if nothing is found.
fn covered(made: Made) -> Option<Result<(), &'static str>> {
    let mut result = None;
    with_elf(made, |elf, starts| {
        let code = Code::new(elf);
        let (_, _, mut facts) = runtimes().swap_remove(0);
        let malloc = VirtAddr(starts[0]);
        facts.functions.raw = [malloc, malloc, malloc, VirtAddr(0)];
        let stub = *starts.last().unwrap();
        let places = [(stub, Libc::Malloc)].into_iter().collect();
        let jumps = starts.iter().flat_map(|start| {
            let body = code.body(*start).unwrap();
            let jumps = body.instructions().iter().filter(|at| {
                at.flow_control() == FlowControl::UnconditionalBranch
                    && at.op0_kind() == OpKind::NearBranch64
                    && at.near_branch_target() == stub
            });
            jumps.map(|at| VirtAddr(at.ip())).collect::<Vec<_>>()
        });
        let jump = jumps.last().unwrap();
        result = raw::find(&facts, &code, &places).map(|found| {
            let references = found.references.iter();
            let mut at = references.filter(|reference| reference.address == jump);
            match at.next().unwrap().covered {
                Covered::Site(site) => {
                    assert_eq!(site, jump);
                    assert!(found.sites.iter().any(|known| known.address == site));
                    Ok(())
                }
                Covered::Elsewhere(reason) | Covered::Unmatched(reason) => Err(reason),
            }
        });
    });
    result
}

#[test]
fn a_cold_part_of_the_raw_malloc_is_the_allocators() {
    let malloc = |made: &mut Made, cold, join: &mut CodeLabel, stub| {
        let a = &mut made.assembler;
        a.test(rsi, rsi).unwrap();
        a.je(cold).unwrap();
        a.set_label(join).unwrap();
        a.mov(rdi, rsi).unwrap();
        a.jmp(stub).unwrap();
    };
    assert_eq!(covered(with_cold(malloc, false)), Some(Ok(())));
    // Others come to the call of libc, too, so the raw malloc itself has no site.
    assert_eq!(covered(with_cold(malloc, true)), None);
}
