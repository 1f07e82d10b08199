//! Interpreters whose file is not what it was: removed, replaced, loaded late from where nobody looks.

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    lifecycle::{by_pid, short_run, whole_run},
    support::{
        capture::{Capture, list_processes, record_command},
        embedding::Embedding,
        interpreters::{Id, Interpreter, find},
        recording::Recording,
        run::{finish, pyrobe, run},
        target::Target,
    },
};

/// A copy of Debian's static interpreter, which finds its library wherever it stands.
fn copy_of(interpreter: &Interpreter, directory: &TempDir) -> Interpreter {
    let program = directory.path().join("python");
    let fresh = directory.path().join("fresh");
    fs::copy(&interpreter.program, &fresh).expect("an interpreter can be copied");
    // Over the old one, if there is one: what runs keeps its file.
    fs::rename(&fresh, &program).expect("a copy can be renamed");
    Interpreter {
        program,
        ..interpreter.clone()
    }
}

#[track_caller]
fn allocations(stats: &Value, pid: u32) -> u64 {
    let processes = by_pid(stats);
    let process = processes.get(&pid);
    process
        .and_then(|process| process["total_allocations"].as_u64())
        .unwrap_or_else(|| panic!("process {pid} is not in the capture: {stats}"))
}

#[track_caller]
fn record_pids(targets: &mut [&mut Target]) -> Value {
    let capture = Capture::new();
    let mut command = pyrobe(["record", "--mode", "allocs", "-o"]);
    command.arg(&capture.path);
    for target in &*targets {
        command.args(["--pid", &target.pid().to_string()]);
    }
    let recording = Recording::start(&mut command);
    for target in targets {
        // How much of it is seen depends on the build; that something is shows that the probes stand.
        target.tell("make 500 700");
    }
    recording.stop().expect_code(0);
    capture.report("stats", &[])
}

#[test]
fn an_interpreter_without_a_name_is_listed_and_traced() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let copy = copy_of(&interpreter, &directory);
    let mut target = Target::start(&copy);
    fs::remove_file(&copy.program).expect("a file can be removed");
    let rows = list_processes();
    let row = rows.iter().find(|row| row["pid"] == target.pid());
    assert!(
        row.is_some_and(|row| row["why_not"].is_null() && row["python"].is_string()),
        "{row:?}"
    );
    let stats = record_pids(&mut [&mut target]);
    assert!(allocations(&stats, target.pid()) > 0, "{stats}");
    target.finish();
}

#[test]
fn an_interpreter_that_was_replaced_is_traced_beside_the_new_one() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let copy = copy_of(&interpreter, &directory);
    let mut old = Target::start(&copy);
    let mut new = Target::start(&copy_of(&interpreter, &directory));
    let stats = record_pids(&mut [&mut old, &mut new]);
    for target in [&old, &new] {
        assert!(allocations(&stats, target.pid()) > 0, "{stats}");
    }
    let images = stats["coverage"]["images"].as_array().expect("a list of images");
    // Other tests may map others.
    let own = images
        .iter()
        .filter(|image| image["image"].as_str().map(Path::new) == Some(&copy.program));
    assert_eq!(own.count(), 2, "two files, though of one content: {stats}");
    old.finish();
    new.finish();
}

/// Links to events of the kernel's tracing are shared by images that are attached together. Copies have their points at the same
/// offsets, which takes a second event; a hit that was taken for that of the other interpreter would have no stack.
#[test]
fn images_that_share_events_keep_their_sites_apart() {
    let (Some(debian), Some(pyenv)) = (find(Id::Debian311), find(Id::Pyenv(12))) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut first = Target::start(&copy_of(&debian, &directory));
    let mut second = Target::start(&copy_of(&debian, &directory));
    let mut third = Target::start(&pyenv);
    let capture = Capture::new();
    let mut command = pyrobe(["record", "--mode", "allocs", "--links", "per-point", "-o"]);
    command.arg(&capture.path);
    for target in [&first, &second, &third] {
        command.args(["--pid", &target.pid().to_string()]);
    }
    let recording = Recording::start(&mut command);
    let made = [(&mut first, 500), (&mut second, 700), (&mut third, 900)].map(|(target, count)| {
        target.tell(&format!("make {count} 700"));
        (target.pid(), count)
    });
    recording.stop().expect_code(0);
    let table = capture.report("table", &[]);
    for (pid, count) in made {
        let rows = table["rows"].as_array().expect("a table has rows");
        let most = rows
            .iter()
            .filter(|row| row["pid"] == pid && row["file"].is_string())
            .filter_map(|row| row["live_count"].as_u64())
            .max();
        assert!(
            most.is_some_and(|most| (count..count + 20).contains(&most)),
            "{most:?} blocks of {count} of {pid} stand at one line: {table}"
        );
    }
    for target in [first, second, third] {
        target.finish();
    }
}

#[test]
fn a_library_that_nobody_knows_is_attached_when_it_is_loaded() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let embedding = Embedding::of(&interpreter);
    let library = directory.path().join("libpython.so");
    fs::copy(&embedding.library, &library).expect("a library can be copied");

    let capture = Capture::new();
    let recording = Recording::start(pyrobe(["record", "--mode", "allocs", "-o"]).arg(&capture.path));
    // Long enough to be seen, however slowly the probes come.
    let code = "import os, time; end = time.monotonic() + 3\n\
                while time.monotonic() < end: kept = ['x' * (1000 + i) for i in range(100)]\n\
                print(os.getpid())";
    let mut command = Command::new(&embedding.program);
    command.arg(&library).args(["-S", "-c", code]);
    embedding.set_environment(&mut command);
    let ran = run(&mut command).expect_code(0);
    recording.stop().expect_code(0);

    let stats = capture.report("stats", &[]);
    let pid = ran.stdout_text().trim().parse().expect("a process id");
    assert!(allocations(&stats, pid) > 1000, "{stats}");
    let images = stats["coverage"]["images"].as_array().expect("a list of images");
    let late = images
        .iter()
        .find(|image| image["image"].as_str().map(Path::new) == Some(&library));
    let gap = late.and_then(|image| image["attach_gap_ns"].as_u64());
    assert!(gap > Some(0), "what was missed before is told: {stats}");
}

/// More than are looked at before a recording says that it is ready.
const INSTALLED: usize = 16;

#[test]
fn what_an_installed_interpreter_did_before_it_was_attached_is_told() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let shims = directory.path().join("shims");
    fs::create_dir(&shims).expect("a directory can be made");
    fs::write(shims.join("python"), "#!/bin/sh\n").expect("a shim can be written");
    let copies: Vec<Interpreter> = (0..INSTALLED)
        .map(|number| {
            let programs = directory.path().join(format!("versions/{number:02}/bin"));
            fs::create_dir_all(&programs).expect("a directory can be made");
            let program = programs.join("python3");
            fs::copy(&interpreter.program, &program).expect("an interpreter can be copied");
            Interpreter {
                program,
                ..interpreter.clone()
            }
        })
        .collect();
    let whole = whole_run(&copies[0]);
    let capture = Capture::new();
    let mut command = pyrobe(["record", "--mode", "allocs", "-o"]);
    let recording = Recording::start(command.arg(&capture.path).env("PATH", &shims));
    let pids: Vec<u32> = copies
        .iter()
        .map(|copy| {
            let line = short_run(copy);
            let mut command = Command::new(&line[0]);
            let child = command.args(&line[1..]).spawn().expect("python can be started");
            let pid = child.id();
            finish(format!("{command:?}"), child).expect_code(0);
            pid
        })
        .collect();
    recording.stop().expect_code(0);

    let stats = capture.report("stats", &[]);
    let processes = by_pid(&stats);
    let images = stats["coverage"]["images"].as_array().expect("a list of images");
    let notes = stats["notes"].to_string();
    for (number, (copy, pid)) in copies.iter().zip(pids).enumerate() {
        let process = processes.get(&pid);
        let seen = process.map_or(0, |process| {
            process["total_allocations"].as_u64().expect("a count")
        });
        let is_whole = seen.abs_diff(whole) <= whole / 100;
        let image = images
            .iter()
            .find(|image| image["image"].as_str().map(Path::new) == Some(&copy.program));
        let gap = image.and_then(|image| image["attach_gap_ns"].as_u64());
        let is_told = gap > Some(0) || notes.contains(&copy.program.to_string_lossy()[..]);
        assert!(
            is_whole || is_told,
            "interpreter {number} made {whole} allocations, of which {seen} were seen: {stats}"
        );
        // Those that are found first were attached before.
        assert!(
            number > 8 || is_whole,
            "interpreter {number} was not ready: {stats}"
        );
    }
}

fn count_with(setting: &str) {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let script = interpreter.script("plain_calls.py");
    let capture = Capture::new();
    let ran = run(record_command(&interpreter, &capture, &[])
        .arg(&script.path)
        .env("PYTHONMALLOC", setting))
    .expect_code(0);
    let counts = capture.stacks("count");
    for process in crate::support::expected::parse(&ran.stdout_text()) {
        for stack in &process.stacks {
            let seen = crate::support::collapsed::sum(&counts, process.pid, &stack.frames);
            assert!(
                seen.abs_diff(stack.count) <= 3,
                "{seen} blocks with PYTHONMALLOC={setting} instead of {stack:?}"
            );
        }
    }
}

#[test]
fn blocks_are_counted_once_whatever_the_allocator_is() {
    for setting in ["malloc", "pymalloc_debug", "malloc_debug"] {
        count_with(setting);
    }
}
