//! `cargo xtask bench NAME`: figures with the goals they are held against, from real recordings.
//!
//! Never part of the tests: a machine that is busy may not fail them. Times are medians over several rounds, in
//! one run, of a release build; every figure is printed with what it was measured on.

mod attach;
mod footprint;
mod hit;
mod ingest;
mod load;
mod peers;
mod running;
mod target;

use anyhow::Result;

/// Which figures.
#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    /// Time from the start of `record` to all probes in place, with 20 Python processes
    Attach,
    /// What pyrobe itself takes of processor and memory, with 50 Python processes on the host
    Footprint(footprint::Args),
    /// Cost of a hit: our programs with a ten-frame stack against empty ones
    Hit,
    /// Events a second that a report takes from a stored capture, on one core
    Ingest,
    /// Four processes that allocate as fast as they can, for half a minute: what is lost, what userspace takes
    Load,
    /// What programs cost under pyrobe and under its peers, run in pairs with runs without any
    Peers(peers::Args),
}

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Attach => attach::run(),
        Bench::Footprint(args) => footprint::run(args),
        Bench::Hit => hit::run(),
        Bench::Ingest => ingest::run(),
        Bench::Load => load::run(),
        Bench::Peers(args) => peers::run(args),
    }
}
