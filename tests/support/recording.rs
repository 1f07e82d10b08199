//! A recording of processes that run already: started, waited for until it is attached, and stopped.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStderr, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::run::{self, Run};

/// What `record` writes to standard error once every probe is in place.
const READY: &str = "recording";

/// A running `pyrobe record`; killed when this is dropped.
pub(crate) struct Recording {
    child: Option<Child>,
    stderr: Option<BufReader<ChildStderr>>,
    said: String,
    shown: String,
}

impl Recording {
    /// Starts it and waits until it is attached.
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("pyrobe can be started");
        let mut stderr = BufReader::new(child.stderr.take().expect("its standard error is a pipe"));
        let mut said = String::new();
        loop {
            let before = said.len();
            stderr.read_line(&mut said).expect("pyrobe writes text");
            let line = said.get(before..).unwrap_or_default();
            assert!(
                !line.is_empty(),
                "{shown} ended before it was attached, having written\n{said}"
            );
            if line.starts_with(READY) {
                break;
            }
        }
        Self {
            child: Some(child),
            stderr: Some(stderr),
            said,
            shown,
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child
            .as_ref()
            .expect("a recording runs until it is stopped")
            .id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a recording runs until it is stopped");
        kill_process(Pid::from_child(child), signal).expect("a child can be sent signals by its parent");
    }

    /// Stops it as Ctrl-C does and waits for its end.
    #[track_caller]
    pub(crate) fn stop(self) -> Run {
        self.signal(Signal::INT);
        self.wait()
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Run {
        let child = self.child.take().expect("a recording runs until it is stopped");
        let mut stderr = self.stderr.take().expect("its standard error is a pipe");
        let rest = std::thread::spawn(move || {
            let mut rest = String::new();
            // What is not text is not ours; the assertions show what came.
            let _ = stderr.read_to_string(&mut rest);
            rest
        });
        let mut run = run::finish(self.shown.clone(), child);
        run.stderr = format!(
            "{}{}",
            self.said,
            rest.join().expect("the reader of standard error panicked")
        );
        run
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may be gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
