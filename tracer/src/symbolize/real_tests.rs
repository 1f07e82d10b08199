//! The line decoders against real interpreters: every instruction of some thousand code objects.
//!
//! Each interpreter compiles standard library modules, prints its tables and what it says itself about each
//! instruction. An interpreter that is not installed is skipped by name; `PYROBE_REQUIRE_PYTHONS=1` makes that fail.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail by panicking, and says why it skips"
)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use super::line_of;

/// Prints one JSON object a line: table, first line, and runs of [end of run, line or null] over all instructions.
const DUMP: &str = r"
import dis, glob, json, os, sys, sysconfig
new = sys.version_info >= (3, 10)

def truth(code):
    size = len(code.co_code)
    if new:
        for start, end, line in code.co_lines():
            if end > start:
                yield [end, line]
        return
    starts = list(dis.findlinestarts(code))
    for place, (start, line) in enumerate(starts):
        yield [starts[place + 1][0] if place + 1 < len(starts) else size, line]

def walk(code):
    table = code.co_linetable if new else code.co_lnotab
    print(json.dumps({'version': sys.hexversion, 'name': code.co_name, 'first': code.co_firstlineno,
                      'table': table.hex(), 'size': len(code.co_code), 'runs': list(truth(code))}))
    for const in code.co_consts:
        if hasattr(const, 'co_code'):
            walk(const)

library = os.path.dirname(os.__file__)
for path in sorted(glob.glob(library + '/*.py') + glob.glob(library + '/asyncio/*.py'))[::10]:
    with open(path, 'rb') as file:
        walk(compile(file.read(), path, 'exec'))
# Far jumps between lines, lines that go back, a line beyond 16 bits.
walk(compile('x = 1' + '\n' * 70000 + 'y = (\n\n2 +\n' + '\n' * 300 + 'x\n)\n', 'far', 'exec'))
walk(compile('def f(a):\n  with a as b, \\\n    a as c:\n    try:\n      return [i for i in b\n        if i]\n    finally:\n      del c\n', 'odd', 'exec'))
";

#[derive(Deserialize)]
struct Dumped {
    version: u32,
    name: String,
    first: i32,
    table: String,
    size: i32,
    runs: Vec<(i32, Option<i32>)>,
}

fn check(mut command: Command, what: &str) {
    let output = command.args(["-I", "-S", "-c", DUMP]).output().unwrap();
    assert!(
        output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut instructions = 0_u32;
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let code: Dumped = serde_json::from_str(line).unwrap();
        let table = unhex(&code.table);
        let mut runs = code.runs.iter().peekable();
        for instr in (0..code.size).step_by(2) {
            while runs.next_if(|(end, _)| *end <= instr).is_some() {}
            // Before the first run of findlinestarts there is nothing; that is the first line.
            let expected = runs.peek().map_or(Some(code.first), |(_, line)| *line);
            let ours = line_of(code.version, &table, code.first, instr);
            assert_eq!(
                ours, expected,
                "{what}: {} first line {} instruction {instr}",
                code.name, code.first
            );
            instructions += 1;
        }
        assert_eq!(line_of(code.version, &table, code.first, -2), Some(code.first));
    }
    assert!(
        instructions > 15_000,
        "{what}: only {instructions} instructions were compared"
    );
}

fn unhex(text: &str) -> Vec<u8> {
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    pairs
        .iter()
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn skip(what: &str) {
    assert!(
        std::env::var_os("PYROBE_REQUIRE_PYTHONS").is_none(),
        "{what} is required and not installed"
    );
    eprintln!("skipped: {what} is not installed");
}

#[test]
fn pyenv_interpreters_agree_on_every_instruction() {
    let root = std::env::var_os("PYENV_ROOT").map_or_else(
        || std::env::home_dir().unwrap_or_default().join(".pyenv"),
        PathBuf::from,
    );
    let mut installed: Vec<PathBuf> = std::fs::read_dir(root.join("versions"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    installed.sort();
    for version in ["3.9.", "3.10.", "3.11.", "3.12.", "3.13."] {
        let python = installed.iter().find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(version))
        });
        match python {
            Some(dir) => check(Command::new(dir.join("bin/python3")), version),
            None => skip(&format!("a pyenv Python {version}")),
        }
    }
}

#[test]
fn interpreters_of_another_root_agree_on_every_instruction() {
    let root = std::env::var_os("PYROBE_SID_ROOT")
        .map_or_else(|| PathBuf::from("/var/cache/pyrobe/sid"), PathBuf::from);
    for python in ["usr/bin/python3.13", "usr/bin/python3.14", "usr/bin/python3.15"] {
        let file = root.join(python);
        if file.exists() && can_chroot(&root) {
            let mut command = Command::new("chroot");
            command.arg(&root).arg(Path::new("/").join(python));
            check(command, python);
        } else {
            skip(&format!("{}", file.display()));
        }
    }
}

fn can_chroot(root: &Path) -> bool {
    Command::new("chroot")
        .arg(root)
        .arg("/bin/true")
        .status()
        .is_ok_and(|status| status.success())
}
