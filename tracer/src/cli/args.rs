//! What can be typed. No meaning here beyond what clap checks.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use super::which::Which;
use crate::{
    bpf::LinkKind,
    profile::{Metric, View},
    report::rows::{By, Sort},
    units::ByteCount,
};

/// Shows what every Python process of this host allocates, keeps and leaks, from outside
#[derive(Debug, Parser)]
#[command(name = "pyrobe", version, arg_required_else_help = true)]
pub(super) struct Args {
    /// Say more on standard error; twice for even more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(super) verbose: u8,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the Python processes of this host, and what can be traced of each
    Ps(Ps),
    /// Say what this host can do, and how to mend what it cannot
    Doctor(Doctor),
    /// Record the allocations of running processes, of a command, or of the whole host
    Record(Record),
    /// Show what a capture holds
    Report(ReportArgs),
    /// Write a capture in another format
    Export(ExportArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct Listing {
    /// Write JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// Say what is probed in this file, an interpreter or its libpython, and what covers each of its references to the
    /// allocator; can be given several times
    #[arg(long, value_name = "FILE")]
    pub(super) image: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) listing: Listing,
}

#[derive(Debug, clap::Args)]
pub(super) struct Ps {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) listing: Listing,
}

/// Where the help shows the options of [`Target`].
const TARGET: &str = "Which processes [default: the whole host]";

/// Which processes. Every option can be given several times: any of its values will do, but every option that is
/// given must be met.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// This process, and its children to come
    #[arg(long, value_name = "PID", help_heading = TARGET)]
    pub(super) pid: Vec<u32>,
    /// Processes whose executable has this path, or this file name if there is no slash in it; * ? [ab] ** match
    #[arg(long, value_name = "GLOB", help_heading = TARGET)]
    pub(super) exe: Vec<String>,
    /// Processes in this control group (version 2) or below it, as in /sys/fs/cgroup or /proc/PID/cgroup
    #[arg(long, value_name = "PATH", help_heading = TARGET)]
    pub(super) cgroup: Vec<String>,
    /// Processes of this container: its id, or the beginning of it
    #[arg(long, value_name = "ID", help_heading = TARGET)]
    pub(super) container: Vec<String>,
    /// Processes of this (effective) user
    #[arg(long, value_name = "NAME|UID", help_heading = TARGET)]
    pub(super) user: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Mode {
    /// Who holds the heap, at next to no cost
    Heap,
    /// Every allocation and every free
    Allocs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Record {
    #[command(flatten)]
    pub(super) target: Target,
    /// What is traced
    #[arg(long, value_enum, default_value = "heap")]
    pub(super) mode: Mode,
    /// End after this time: 90s, 10m, 1h, or seconds
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) duration: Option<Duration>,
    /// Where the capture goes; - is standard output [default: pyrobe-NAME.PID.pyrobe in this directory]
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Replace the file if there is one
    #[arg(short, long)]
    pub(super) force: bool,
    /// End when the capture has this size: 500M, 2G, or bytes
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) max_size: Option<ByteCount>,
    /// Go on in another file when that size is reached, and keep the newest N: FILE.0001, FILE.0002, ...
    #[arg(long, value_name = "N", conflicts_with = "aggregate")]
    pub(super) rotate: Option<usize>,
    /// Keep tallies only, of which the size does not grow with time
    #[arg(long)]
    pub(super) aggregate: bool,
    /// How often tallies are written, so that they outlive pyrobe [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "aggregate")]
    pub(super) save_interval: Option<Duration>,
    /// How often what is seen is checked against the interpreters' own counts; 0 for never
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = interval)]
    pub(super) audit_interval: Duration,
    /// Most of a process's processor time that probes may take, percent, 0 for no bound: what costs most is then traced a part
    /// of the time only [default: 2; with --mode allocs: 0]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(super) max_overhead: Option<f64>,
    /// Bytes of the ring between the kernel and pyrobe
    #[arg(long, value_name = "BYTES", hide = true, value_parser = ring_bytes)]
    pub(super) ring_bytes: Option<u32>,
    /// Attach programs that do nothing, to measure what a hit costs without them
    #[arg(long, hide = true, conflicts_with = "links")]
    pub(super) empty: bool,
    /// How probes are attached
    #[arg(long, hide = true, value_parser = links)]
    pub(super) links: Option<LinkKind>,
    /// The command to record, with its arguments
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["pid", "exe", "cgroup", "container", "user"])]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ReportArgs {
    #[command(subcommand)]
    pub(super) report: Report,
}

/// What every report takes.
#[derive(Debug, clap::Args)]
pub(super) struct Input {
    /// The capture; - is standard input
    pub(super) file: PathBuf,
    /// Where it goes; - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Replace the file if there is one
    #[arg(short, long)]
    pub(super) force: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Report {
    /// Sums: allocations, bytes, peak, live blocks, processes, losses
    Stats {
        #[command(flatten)]
        input: Input,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Rows by line, function, file or process, largest first
    Table {
        #[command(flatten)]
        input: Input,
        #[command(flatten)]
        which: Which,
        /// Which blocks: allocated, in-use, peak, leaked, temporary [default: allocated; of heap mode: in-use]
        #[arg(long, value_parser = view)]
        view: Option<View>,
        /// What makes a row
        #[arg(long, value_enum, default_value = "line")]
        by: ByArg,
        /// What rows are sorted by
        #[arg(long, value_enum, default_value = "own-bytes")]
        sort: SortArg,
        /// Most rows shown [default: 50 in text, all in JSON]
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Places that hold more and more, steadily; of heap mode
    Leaks {
        #[command(flatten)]
        input: Input,
        #[command(flatten)]
        which: Which,
        /// What makes a row
        #[arg(long, value_enum, default_value = "line")]
        by: ByArg,
        /// Most rows shown [default: 50 in text, all in JSON]
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// An interactive flame graph as SVG
    Flamegraph {
        #[command(flatten)]
        input: Input,
        #[command(flatten)]
        which: Which,
        /// Which blocks: allocated, in-use, peak, leaked, temporary [default: allocated; of heap mode: in-use]
        #[arg(long, value_parser = view)]
        view: Option<View>,
        /// What the width of a frame is
        #[arg(long, default_value = "bytes", value_parser = metric)]
        metric: Metric,
        /// Roots at the top
        #[arg(long)]
        icicle: bool,
        /// Text above the picture
        #[arg(long)]
        title: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    #[command(subcommand)]
    pub(super) format: Export,
}

#[derive(Debug, Subcommand)]
pub(super) enum Export {
    /// One line a stack, root first, with a value: for flamegraph.pl, speedscope and others
    Collapsed {
        #[command(flatten)]
        input: Input,
        #[command(flatten)]
        which: Which,
        /// Which blocks: allocated, in-use, peak, leaked, temporary [default: allocated; of heap mode: in-use]
        #[arg(long, value_parser = view)]
        view: Option<View>,
        /// What the value is: bytes or count
        #[arg(long, default_value = "bytes", value_parser = metric)]
        metric: Metric,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ByArg {
    Line,
    Function,
    File,
    Process,
}

impl From<ByArg> for By {
    fn from(by: ByArg) -> Self {
        match by {
            ByArg::Line => Self::Line,
            ByArg::Function => Self::Function,
            ByArg::File => Self::File,
            ByArg::Process => Self::Process,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum SortArg {
    OwnBytes,
    TotalBytes,
    OwnCount,
    TotalCount,
    LiveBytes,
}

impl From<SortArg> for Sort {
    fn from(sort: SortArg) -> Self {
        match sort {
            SortArg::OwnBytes => Self::OwnBytes,
            SortArg::TotalBytes => Self::TotalBytes,
            SortArg::OwnCount => Self::OwnCount,
            SortArg::TotalCount => Self::TotalCount,
            SortArg::LiveBytes => Self::LiveBytes,
        }
    }
}

fn view(text: &str) -> Result<View, String> {
    text.parse()
        .map_err(|_| "one of allocated, in-use, peak, leaked, temporary is expected".to_owned())
}

fn metric(text: &str) -> Result<Metric, String> {
    text.parse().map_err(|_| "bytes or count is expected".to_owned())
}

fn links(text: &str) -> Result<LinkKind, String> {
    match text {
        "session" => Ok(LinkKind::Session),
        "multi" => Ok(LinkKind::Multi),
        "per-point" => Ok(LinkKind::PerPoint),
        _ => Err("one of session, multi, per-point is expected".to_owned()),
    }
}

/// A number with a unit; the unit's factor. The number may have a fraction.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..)?;
    let factor = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1;
    let number: f64 = digits.parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number * factor)
}

fn duration(text: &str) -> Result<Duration, String> {
    let units = [
        ("", 1.0),
        ("ms", 0.001),
        ("s", 1.0),
        ("m", 60.0),
        ("min", 60.0),
        ("h", 3600.0),
        ("d", 86400.0),
    ];
    scaled(text, &units)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "a time such as 90s, 10m or 1h is expected".to_owned())
}

/// A time, or 0.
fn interval(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    duration(text)
}

fn size(text: &str) -> Result<ByteCount, String> {
    const K: f64 = 1024.0;
    let units = [
        ("", 1.0),
        ("B", 1.0),
        ("K", K),
        ("KB", K),
        ("KiB", K),
        ("M", K * K),
        ("MB", K * K),
        ("MiB", K * K),
        ("G", K * K * K),
        ("GB", K * K * K),
        ("GiB", K * K * K),
    ];
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be in range"
    )]
    scaled(text, &units)
        .filter(|bytes| *bytes >= 1.0 && *bytes < 1e18)
        .map(|bytes| ByteCount(bytes as u64))
        .ok_or_else(|| "a size such as 500M, 2G or a number of bytes is expected".to_owned())
}

/// The kernel wants a power of two of pages.
fn ring_bytes(text: &str) -> Result<u32, String> {
    text.parse::<u32>()
        .ok()
        .filter(|bytes| bytes.is_power_of_two() && *bytes >= 4096)
        .ok_or_else(|| "a power of two of at least 4096 is expected".to_owned())
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("give a number from 0 to 100, percent".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn times_and_sizes_have_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert!(duration("0").is_err() && duration("-1s").is_err() && duration("soon").is_err());
        assert_eq!(interval("0"), Ok(Duration::ZERO));
        assert_eq!(interval("2"), Ok(Duration::from_secs(2)));
        assert!(interval("never").is_err());
        assert_eq!(size("2G"), Ok(ByteCount(2 << 30)));
        assert_eq!(size("500"), Ok(ByteCount(500)));
        assert!(size("0").is_err() && size("G").is_err() && size("1e400").is_err());
        assert_eq!(ring_bytes("4096"), Ok(4096));
        assert!(ring_bytes("5000").is_err() && ring_bytes("2048").is_err());
    }
}
