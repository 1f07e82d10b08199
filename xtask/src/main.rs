//! `cargo xtask COMMAND`: everything a maintainer runs, one file per command.
//!
//! Apart from the product, so that `cargo build` of pyrobe needs none of it. A command prints what it runs,
//! leaves the tool's own output alone and fails with the reason on the last line.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a maintainer's tool talks on its standard streams"
)]

mod ebpf;
mod process;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Everything a maintainer of pyrobe runs")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the eBPF object and put it into tracer-ebpf/object
    Ebpf(ebpf::Args),
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Ebpf(args) => ebpf::run(&args),
    }
}
