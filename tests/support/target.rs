//! A running target process that does what the test tells it, line by line, and answers.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use super::{
    expected::ExpectedFrame,
    interpreters::{Interpreter, Script},
};

/// A process that says `ready` and reads its input, `tests/workloads/on_command.py`; killed when this is dropped.
pub(crate) struct Target {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    _script: Script,
}

impl Target {
    /// Starts it and waits until it runs.
    #[track_caller]
    pub(crate) fn start(interpreter: &Interpreter) -> Self {
        Self::start_with(interpreter, interpreter.script("on_command.py"), &[])
    }

    /// Starts another script, with more in its environment.
    #[track_caller]
    pub(crate) fn start_with(
        interpreter: &Interpreter,
        script: Script,
        environment: &[(&str, &str)],
    ) -> Self {
        let mut child = interpreter
            .command()
            .envs(environment.iter().copied())
            .arg(&script.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a target can be started");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let mut target = Self {
            child,
            input,
            output,
            _script: script,
        };
        assert_eq!(target.line(), "ready");
        target
    }

    /// Its process id (that of the interpreter: `chroot` becomes it).
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something and returns its answer.
    #[track_caller]
    pub(crate) fn tell(&mut self, command: &str) -> String {
        self.send(command);
        self.line()
    }

    /// The frame in which `make` makes its blocks.
    #[track_caller]
    pub(crate) fn make_frame(&mut self) -> ExpectedFrame {
        ExpectedFrame {
            function: "make".to_owned(),
            file: None,
            line: self.tell("where").parse().expect("a line number"),
        }
    }

    /// Tells it something that has no answer.
    #[track_caller]
    pub(crate) fn send(&mut self, command: &str) {
        let input = self.input.as_mut().expect("the target has not been stopped");
        input
            .write_all(format!("{command}\n").as_bytes())
            .expect("the target reads");
    }

    /// Its next line.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the target writes text");
        assert!(line.ends_with('\n'), "the target ended, having written {line:?}");
        line.trim_end().to_owned()
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child can be killed by its parent");
        self.child
            .wait()
            .expect("a child can be waited for by its parent");
    }

    /// Lets it end by itself.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.input = None;
        let status = super::run::wait(&mut self.child).expect("the target ends when its input does");
        assert!(status.success(), "the target failed: {status}");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
