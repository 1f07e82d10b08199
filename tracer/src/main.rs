//! The `pyrobe` program: hands the arguments to `cli` and its verdict to the shell.

use std::process::ExitCode;

fn main() -> ExitCode {
    pyrobe::cli::run()
}
