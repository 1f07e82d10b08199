//! Arguments to settings to stages; where errors become words and an exit code.

use std::process::ExitCode;

/// Runs the program with the arguments of the process.
pub fn run() -> ExitCode {
    ExitCode::from(crate::error::Exit::Failed.code())
}
