//! Running a program to its end; whatever an assertion says, the command and both streams are printed with it.

use std::{
    ffi::OsStr,
    io::Read,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// A program that has not ended by then hangs: far above what anything here takes.
pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

/// A finished program.
pub(crate) struct Run {
    command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// The program under test.
pub(crate) fn pyrobe_path() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_pyrobe"))
}

/// A command of the program under test.
pub(crate) fn pyrobe<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(pyrobe_path());
    command.args(args);
    command
}

/// Runs a command to its end, with nothing on its standard input unless that is set.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Run {
    let shown = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
    finish(shown, child)
}

/// Waits for a started command; what it writes from now on is collected.
#[track_caller]
pub(crate) fn finish(shown: String, mut child: Child) -> Run {
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child);
    let run = Run {
        command: shown,
        status: status.unwrap_or_default(),
        stdout: stdout.join().expect("the reader of standard output panicked"),
        stderr: String::from_utf8_lossy(&stderr.join().expect("the reader of standard error panicked"))
            .into_owned(),
    };
    assert!(status.is_some(), "it did not end within {DEADLINE:?}\n{run}");
    run
}

/// Waits for the end of a process; kills it at the deadline and returns nothing.
pub(crate) fn wait(child: &mut Child) -> Option<ExitStatus> {
    let pid = Pid::from_child(child);
    let ended = pidfd_open(pid, PidfdFlags::empty()).is_ok_and(|fd| {
        let deadline = Timespec {
            tv_sec: i64::try_from(DEADLINE.as_secs()).expect("a deadline of a few minutes"),
            tv_nsec: 0,
        };
        matches!(
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&deadline)),
            Ok(1)
        )
    });
    if !ended {
        child.kill().expect("a child can be killed by its parent");
    }
    let status = child.wait().expect("a child can be waited for by its parent");
    ended.then_some(status)
}

fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // A stream that breaks ends there; the assertions show what came.
            let _ = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}

impl Run {
    /// Standard output as text.
    pub(crate) fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The exit code, or what a shell makes of a signal.
    pub(crate) fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Fails unless the program ended with this code.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "unexpected exit code\n{self}");
        self
    }

    /// Fails unless standard error holds this text.
    #[track_caller]
    pub(crate) fn expect_stderr(self, text: &str) -> Self {
        assert!(
            self.stderr.contains(text),
            "standard error does not say {text:?}\n{self}"
        );
        self
    }

    /// Fails unless standard error is an error with a hint, as every failure has one.
    #[track_caller]
    pub(crate) fn expect_error_with_hint(self) -> Self {
        for start in ["error: ", "hint: "] {
            let said = self.stderr.lines().any(|line| line.starts_with(start));
            assert!(said, "no line of standard error starts with {start:?}\n{self}");
        }
        assert!(!self.stderr.contains("panicked"), "it panicked\n{self}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("standard output is not JSON: {error}\n{self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "command: {}\nended:   {}\n---- standard output\n{}\n---- standard error\n{}\n----",
            self.command,
            self.status,
            self.stdout_text(),
            self.stderr
        )
    }
}
