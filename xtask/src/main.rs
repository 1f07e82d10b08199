//! `cargo xtask COMMAND`: everything a maintainer runs, one file per command.
//!
//! Apart from the product, so that `cargo build` of pyrobe needs none of it. A command prints what it runs,
//! leaves the tool's own output alone and fails with the reason on the last line.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a maintainer's tool talks on its standard streams"
)]

mod apt_sources;
mod archive;
mod bench;
mod ci;
mod ebpf;
mod kernels;
mod layouts;
mod process;
mod pythons;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Everything a maintainer of pyrobe runs")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install on Debian what CI and the end-to-end tests need (as root)
    Setup,
    /// Build the eBPF object and put it into tracer-ebpf/object
    Ebpf(ebpf::Args),
    /// Regenerate the table of layouts from CPython's headers
    Layouts {
        /// Regenerate and compare with the committed table; change nothing
        #[arg(long)]
        check: bool,
    },
    /// Build the interpreters of the slow test tier from Debian's sources (as root)
    Pythons(pythons::Args),
    /// Boot other kernels in qemu and run pyrobe on them (as root)
    Kernels(kernels::Args),
    /// Check the rules of the source that no compiler knows
    Tidy,
    /// Run the tests
    Test(test::Args),
    /// Measure, and compare with the goals (as root)
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Run all checks that must hold before the tests
    Ci,
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
        Command::Setup => setup::run(),
        Command::Ebpf(args) => ebpf::run(&args),
        Command::Layouts { check } => layouts::run(check).map_err(|error| anyhow!("{error}")),
        Command::Pythons(args) => pythons::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Tidy => tidy::run(),
        Command::Test(args) => test::run(&args),
        Command::Bench(bench) => bench::run(&bench),
        Command::Ci => ci::run(),
    }
}
