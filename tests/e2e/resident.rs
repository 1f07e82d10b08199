//! Heap mode, against what the kernel says is resident: memory that is allocated and not there is nobody's.

use std::fs;

use crate::{
    heap::{self, Holding, UNBOUNDED, holding, holding_in},
    held,
    matrix::on_interpreters,
    support::{interpreters::Interpreter, skip},
};

/// Which programs get huge pages: all, those that ask for them, or none.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

on_interpreters! { untouched_blocks, check_untouched,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_314: Id::Sid(14),
}

/// Large blocks count with what of them was touched, and the rows add up to what the kernel says.
fn check_untouched(interpreter: &Interpreter) {
    let holding = holding(interpreter, "heap_untouched.py", &UNBOUNDED, &[]);
    check_lines(&holding);
    let text = holding.capture.text("table");
    assert!(text.contains("Untouched"), "{text}");
}

/// What of its lines' memory is resident, within three points, and the sum of all rows.
#[track_caller]
fn check_lines(holding: &Holding) {
    let table = holding.capture.report("table", &["--view", "in-use"]);
    let heap = holding.heap();
    let all = heap["anonymous"].as_u64().expect("a number");
    for line in holding.lines() {
        let seen = holding.seen(&table, line.number);
        assert!(
            heap::within(seen, line.bytes, all, 3),
            "{}: {} resident, {seen} seen of {all}\n{table:#}",
            line.mark,
            line.bytes
        );
    }
    held::check_sum(holding, &table, &heap);
}

on_interpreters! { given_back_and_moved, check_given_back,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_315: Id::Sid(15),
}

on_interpreters! { given_back_and_moved_within_the_budget, check_given_back_within_the_budget,
    debian_311: Id::Debian311,
}

fn check_given_back(interpreter: &Interpreter) {
    check_given_back_with(interpreter, &UNBOUNDED);
}

fn check_given_back_within_the_budget(interpreter: &Interpreter) {
    check_given_back_with(interpreter, &[]);
}

/// What is given back to the kernel is nobody's; what no page fault brings is of who had it moved or filled.
fn check_given_back_with(interpreter: &Interpreter, options: &[&str]) {
    check_lines(&holding(interpreter, "heap_given_back.py", options, &[]));
}

on_interpreters! { memory_of_extensions_in_huge_pages, check_huge,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
}

/// A fault that brings 512 pages stands for all of them.
fn check_huge(interpreter: &Interpreter) {
    let setting = fs::read_to_string(HUGE_PAGES).unwrap_or_default();
    if setting.is_empty() || setting.contains("[never]") {
        skip::not_applicable("this kernel gives no huge pages");
        return;
    }
    // libc asks for them.
    let environment = [("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")];
    let holding = holding_in(interpreter, "heap_native.py", &UNBOUNDED, &[], &environment);
    let resident = &holding.expected.more["resident"];
    let of = |key: &str| {
        resident[key]
            .as_u64()
            .expect("the program tells what is resident")
    };
    assert!(
        of("huge") * 3 > of("anonymous"),
        "hardly any huge pages: {resident}"
    );
    // Beside a large block that came first nobody is known to have touched a huge page.
    heap::check_native_of(&holding, 15);
}
