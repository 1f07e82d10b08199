//! The command that is recorded: started with our own standard streams, waited for, its exit code passed on.

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitStatus},
};

use tokio::sync::mpsc::Sender;

use super::feeders::Input;
use crate::units::Pid;

/// Starts it; its process id. Its exit arrives as [`Input::CommandExited`].
pub(super) fn start(command: &[OsString], to: Sender<Input>) -> std::io::Result<Pid> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(std::io::Error::other("no command"));
    };
    let mut child = Command::new(program).args(arguments).spawn()?;
    let pid = Pid(child.id());
    std::thread::Builder::new()
        .name("command".to_owned())
        .spawn(move || {
            let code = match child.wait() {
                Ok(status) => exit_code(status),
                Err(error) => {
                    tracing::warn!("waiting for the command: {error}");
                    1
                }
            };
            // Fails only if the owner is gone.
            let _ = to.blocking_send(Input::CommandExited(code));
        })?;
    Ok(pid)
}

/// As a shell gives it: 128 and the signal's number for one that was killed.
fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1)
}
