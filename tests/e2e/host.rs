//! `ps` and `doctor` on this host: every interpreter is recognised, and what cannot be traced has a reason.

use std::path::Path;

use serde_json::Value;

use crate::{
    matrix::on_every_interpreter,
    support::{
        capture::list_processes,
        interpreters::{Built, Id, Interpreter, find, workloads},
        run::{pyrobe, run},
        skip,
        target::Target,
    },
};

/// The row of a process in `pyrobe ps --json`.
#[track_caller]
fn row(pid: u32) -> Value {
    let rows = list_processes();
    let row = rows.iter().find(|row| row["pid"] == pid).cloned();
    row.unwrap_or_else(|| panic!("no row for {pid}: {rows:?}"))
}

on_every_interpreter!(ps_names_the_interpreter, check_row);

pub(crate) fn check_row(interpreter: &Interpreter) {
    let target = Target::start(interpreter);
    let row = row(target.pid());
    let python = row["python"].as_str().unwrap_or_default();
    assert!(
        python.starts_with(&format!("3.{}.", interpreter.id.minor())),
        "{row}"
    );
    assert_eq!(row["allocator"], interpreter.id.allocator(), "{row}");
    assert_eq!(row["why_not"], Value::Null, "{row}");
    for key in ["exe", "image", "build_id"] {
        assert!(row[key].is_string(), "{key} of {row}");
    }
    let modes: Vec<&str> = row["modes"]
        .as_array()
        .expect("modes are a list")
        .iter()
        .filter_map(|mode| mode["mode"].as_str())
        .collect();
    let expected: &[&str] = match interpreter.id {
        Id::Built(Built::FreeThreaded) => &["allocs"],
        _ => &["heap", "allocs"],
    };
    assert_eq!(modes, expected, "{row}");
    target.finish();
}

fn allocator_with(setting: &str) -> Value {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return Value::Null;
    };
    let script = interpreter.script("on_command.py");
    let target = Target::start_with(&interpreter, script, &[("PYTHONMALLOC", setting)]);
    let allocator = row(target.pid())["allocator"].clone();
    target.finish();
    allocator
}

#[test]
fn ps_tells_the_allocators_apart() {
    if !skip::have_root() {
        return;
    }
    assert_eq!(allocator_with("malloc"), "malloc");
    assert_eq!(allocator_with("pymalloc_debug"), "pymalloc_debug");
    assert_eq!(allocator_with("malloc_debug"), "malloc_debug");
}

#[test]
fn ps_lists_a_python_that_is_too_old_with_the_reason() {
    let Some(newer) = find(Id::Pyenv(9)) else { return };
    let versions = newer
        .program
        .ancestors()
        .nth(3)
        .expect("pyenv has a directory of versions");
    let old = std::fs::read_dir(versions)
        .expect("it can be listed")
        .filter_map(|entry| Some(entry.ok()?.path()));
    let old = old.map(|version| version.join("bin/python3")).find(|program| {
        let minor = program
            .ancestors()
            .nth(2)
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        minor.is_some_and(|name| name.starts_with("3.8.") || name.starts_with("3.7.")) && program.is_file()
    });
    let Some(program) = old else {
        skip::not_applicable("no Python older than 3.9 here");
        return;
    };
    let old = Interpreter { program, ..newer };
    let script = crate::support::interpreters::Script::in_place(workloads().join("plain_target.py"));
    let target = Target::start_with(&old, script, &[]);
    let row = row(target.pid());
    assert!(
        row["why_not"].as_str().is_some_and(|why| why.contains("3.9")),
        "{row}"
    );
    target.finish();
}

#[test]
fn doctor_knows_the_kernel_and_finds_nothing_missing() {
    if !skip::have_root() {
        return;
    }
    let doctor = run(&mut pyrobe(["doctor", "--json"])).expect_code(0);
    let found = doctor.json();
    let checks = found["checks"].as_array().cloned().unwrap_or_default();
    assert!(
        !checks.is_empty() && checks.iter().all(|check| check["ok"] == true),
        "{doctor}"
    );
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let kernel = checks.iter().find(|check| check["name"] == "kernel");
    assert_eq!(
        kernel.map(|check| &check["found"]),
        Some(&Value::from(release.clone())),
        "{doctor}"
    );
    assert!(
        found["hit_cost_ns"].as_f64() > Some(0.0),
        "the cost of a hit is measured\n{doctor}"
    );
    let interpreters = found["interpreters"].as_array().cloned().unwrap_or_default();
    let traced = interpreters
        .iter()
        .filter(|interpreter| interpreter["why_not"].is_null());
    for interpreter in traced.clone() {
        let places = interpreter["placement"].as_array().cloned().unwrap_or_default();
        let said = |place: &Value| place.as_str().is_some_and(|place| !place.is_empty());
        assert!(
            !places.is_empty() && places.iter().all(said),
            "where the probes stand is said\n{interpreter}"
        );
    }
    assert!(traced.count() > 0, "Debian's Python is found\n{doctor}");
    let text = run(&mut pyrobe(["doctor"])).expect_code(0);
    assert!(text.stdout_text().contains(&release), "{text}");
}
