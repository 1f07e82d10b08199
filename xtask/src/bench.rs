//! `cargo xtask bench NAME`: figures with the goals they are held against, from real recordings.
//!
//! Never part of the tests: a machine that is busy may not fail them. Times are medians over several rounds, in
//! one run, of a release build; every figure is printed with what it was measured on.

mod attach;
mod hit;
mod ingest;
mod load;
mod running;
mod target;

use anyhow::Result;

/// Which figures.
#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    /// Time from the start of `record` to all probes in place, with 20 Python processes
    Attach,
    /// Cost of a hit: our programs with a ten-frame stack against empty ones
    Hit,
    /// Events a second that a report takes from a stored capture, on one core
    Ingest,
    /// Four processes that allocate as fast as they can, for half a minute: what is lost, what userspace takes
    Load,
}

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Attach => attach::run(),
        Bench::Hit => hit::run(),
        Bench::Ingest => ingest::run(),
        Bench::Load => load::run(),
    }
}
