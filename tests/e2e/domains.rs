//! Heap mode: what extensions tell of their own memory (`PyTraceMalloc_Track`), as numpy does, is under the line that took it.
//!
//! Apart from `heap`, whose programs it is like. The program calls these functions itself, so no extension has to be installed.

use crate::{
    heap::{UNBOUNDED, holding, within},
    matrix::on_interpreters,
    support::interpreters::Interpreter,
};

on_interpreters! { tracked_domains, check,
    debian_311: Id::Debian311,
    pyenv_312: Id::Pyenv(12),
    sid_314: Id::Sid(14),
}

/// Each line within three points, after a part of it was given back; and none is with the lines that wrote to it first.
fn check(interpreter: &Interpreter) {
    let holding = holding(interpreter, "heap_domains.py", &UNBOUNDED, &[]);
    let table = holding.capture.report("table", &["--view", "in-use"]);
    let anonymous = holding.heap()["anonymous"].as_u64();
    let all = anonymous.expect("a reading tells what is resident");
    for line in holding.lines() {
        let seen = holding.seen(&table, line.number);
        assert!(
            within(seen, line.bytes, all, 3),
            "{}: {} held, {seen} seen\n{table:#}",
            line.mark,
            line.bytes
        );
    }
}
