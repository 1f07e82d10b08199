//! A program that loads `libpython` late, with dlopen: nothing of it is Python when it starts.

use std::process::Command;

use crate::{
    matrix::on_plain_interpreters,
    support::{
        capture::Capture,
        collapsed, expected,
        interpreters::{Interpreter, set_environment, workloads},
        run::{pyrobe, run},
    },
};

on_plain_interpreters!(late_library, check_late_library);

fn check_late_library(interpreter: &Interpreter) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let program = directory.path().join("embed");
    let mut compiler = Command::new("cc");
    compiler
        .arg("-o")
        .arg(&program)
        .arg(workloads().join("embed.c"))
        .arg("-ldl");
    run(&mut compiler).expect_code(0);

    let home = interpreter
        .program
        .ancestors()
        .nth(2)
        .expect("a pyenv-style build has a directory");
    let library = home.join(format!("lib/libpython3.{}.so.1.0", interpreter.id.minor()));
    let script = interpreter.script("plain_calls.py");
    let capture = Capture::new();
    let mut command = pyrobe(["record", "--mode", "allocs", "-o"]);
    command
        .arg(&capture.path)
        .arg("--")
        .arg(&program)
        .arg(library)
        .arg(&script.path);
    set_environment(&mut command);
    command.env("PYTHONHOME", home);
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
