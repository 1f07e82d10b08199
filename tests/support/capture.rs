//! A capture file and what the reports say of it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    collapsed::{self, Stack},
    expected::{self, Expected},
    interpreters::{Interpreter, set_environment},
    run::{Run, pyrobe, run},
};

/// A capture in a directory of its own, gone when this is dropped.
pub(crate) struct Capture {
    _directory: Option<TempDir>,
    pub(crate) path: PathBuf,
}

/// A workload that was recorded from its first instruction to its end.
pub(crate) struct Recorded {
    pub(crate) capture: Capture,
    pub(crate) expected: Vec<Expected>,
    pub(crate) run: Run,
}

impl Capture {
    /// A place for a capture.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        Self {
            path: directory.path().join("test.pyrobe"),
            _directory: Some(directory),
        }
    }

    /// A capture at a path of the caller's.
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            _directory: None,
        }
    }

    /// What `report KIND --json` says.
    #[track_caller]
    pub(crate) fn report(&self, kind: &str, more: &[&str]) -> Value {
        self.run(&["report", kind], &[&["--json"], more].concat())
            .expect_code(0)
            .json()
    }

    /// The text of a report.
    #[track_caller]
    pub(crate) fn text(&self, kind: &str) -> String {
        self.run(&["report", kind], &[]).expect_code(0).stdout_text()
    }

    /// The stacks with a metric's sums over all that was allocated.
    #[track_caller]
    pub(crate) fn stacks(&self, metric: &str) -> Vec<Stack> {
        let options = ["--view", "allocated", "--metric", metric];
        let run = self.run(&["export", "collapsed"], &options).expect_code(0);
        collapsed::parse(&run.stdout_text())
    }

    /// Runs `pyrobe COMMAND FILE OPTIONS`.
    #[track_caller]
    pub(crate) fn run(&self, command: &[&str], options: &[&str]) -> Run {
        run(pyrobe(command).arg(&self.path).args(options))
    }
}

/// `pyrobe record OPTIONS -- INTERPRETER`, to which the interpreter's arguments are to be added.
pub(crate) fn record_command(interpreter: &Interpreter, capture: &Capture, options: &[&str]) -> Command {
    let mut command = pyrobe(["record", "--mode", "allocs", "-o"]);
    command.arg(&capture.path).args(options).arg("--");
    command.args(interpreter.command_line());
    set_environment(&mut command);
    command
}

/// Records a workload with `pyrobe record OPTIONS -- COMMAND`.
#[track_caller]
pub(crate) fn record(
    interpreter: &Interpreter,
    workload: &str,
    options: &[&str],
    arguments: &[&str],
) -> Recorded {
    let script = interpreter.script(workload);
    let capture = Capture::new();
    let run = run(record_command(interpreter, &capture, options)
        .arg(&script.path)
        .args(arguments))
    .expect_code(0);
    Recorded {
        capture,
        expected: expected::parse(&run.stdout_text()),
        run,
    }
}

/// The rows of `pyrobe ps --json`. A host may have processes that even root cannot look into: then it is done in part.
#[track_caller]
pub(crate) fn list_processes() -> Vec<Value> {
    let list = run(&mut pyrobe(["ps", "--json"]));
    assert!(matches!(list.code(), 0 | 3), "unexpected exit code\n{list}");
    list.json()["rows"]
        .as_array()
        .cloned()
        .unwrap_or_else(|| panic!("no rows\n{list}"))
}
