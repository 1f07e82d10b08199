//! Heap mode, against what the kernel says is resident: memory that is allocated and not there is nobody's.

use crate::{
    heap::{self, UNBOUNDED, holding},
    matrix::on_interpreters,
    support::interpreters::Interpreter,
};

on_interpreters! { untouched_blocks, check_untouched,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_314: Id::Sid(14),
}

/// Large blocks count with what of them was touched, and the rows add up to what the kernel says.
fn check_untouched(interpreter: &Interpreter) {
    let holding = holding(interpreter, "heap_untouched.py", &UNBOUNDED, &[]);
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
    heap::check_sum(&holding, &table, &heap);
    let text = holding.capture.text("table");
    assert!(text.contains("Untouched"), "{text}");
}
