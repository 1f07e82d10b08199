//! A program that loads `libpython` late, with dlopen: nothing of it is Python when it starts.

use crate::{
    matrix::on_plain_interpreters,
    support::{
        capture::Capture,
        collapsed,
        embedding::Embedding,
        expected,
        interpreters::Interpreter,
        run::{pyrobe, run},
    },
};

on_plain_interpreters!(late_library, check_late_library);

fn check_late_library(interpreter: &Interpreter) {
    let embedding = Embedding::of(interpreter);
    let script = interpreter.script("plain_calls.py");
    let capture = Capture::new();
    let mut command = pyrobe(["record", "--mode", "allocs", "-o"]);
    command.arg(&capture.path).arg("--");
    command.args([&embedding.program, &embedding.library, &script.path]);
    embedding.set_environment(&mut command);
    let run = run(&mut command).expect_code(0);

    let counts = capture.stacks("count");
    for process in expected::parse(&run.stdout_text()) {
        for stack in &process.stacks {
            let seen = collapsed::sum(&counts, process.pid, &stack.frames);
            assert!(
                seen.abs_diff(stack.count) <= 3,
                "{seen} blocks instead of {stack:?}\n{}\n{run}",
                collapsed::describe(&counts)
            );
        }
    }
}
