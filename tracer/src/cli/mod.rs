//! Arguments to settings to stages; where errors become words and an exit code.
//!
//! `args` is what was typed; each command's file turns it into what the stages take. Only here (and in
//! `report`) anything is printed.

mod args;
mod doctor;
mod doctor_image;
mod doctor_recordings;
mod load;
mod log;
mod output;
mod ps;
#[cfg(test)]
mod readme_tests;
mod record;
mod report;
mod target;
mod which;

use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Args, Command};
use crate::error::{Exit, UserError};

/// Runs the program with the arguments of the process.
pub fn run() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() {
                Exit::Failed
            } else {
                Exit::Done
            };
            // A closed stream is the reader's choice.
            let _ = error.print();
            return ExitCode::from(code.code());
        }
    };
    log::start(args.verbose);
    let result = match args.command {
        Command::Ps(args) => ps::run(&args),
        Command::Doctor(args) if args.image.is_empty() => doctor::run(&args.listing),
        Command::Doctor(doctor) => doctor_image::run(&doctor.image, doctor.listing.json, args.verbose > 0),
        Command::Record(record) => record::run(&record, args.verbose),
        Command::Report(args) => report::run(&args.report),
        Command::Export(args) => report::export(&args.format),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            output::say(&error.to_string());
            ExitCode::from(error.exit().code())
        }
    }
}

/// What a command returns: the exit code, or an error to be shown.
type CommandResult = Result<ExitCode, UserError>;

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
