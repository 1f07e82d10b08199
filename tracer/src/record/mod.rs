//! A recording: images are attached as they appear, records flow from the ring into a capture.
//!
//! One owner (`run`) consumes one closed enum of inputs; the ring reader, the map watcher, signals and the
//! command only send into it. Invariant: whatever ends a recording, the capture is complete up to there.

mod account;
mod aggregate;
mod attach;
mod audit;
mod chunks;
mod command;
mod content;
mod duty;
mod feeders;
mod governor;
mod judge;
mod large;
mod left_out;
mod libc_heap;
mod mapped;
mod meta;
mod output;
mod owner;
mod pages;
mod places;
mod pool_changes;
mod pool_scan;
mod pool_walk;
mod reading;
mod rotate;
mod start;
mod survey;
mod survivors;
mod types;
mod watch_records;
mod window;

use std::{path::PathBuf, time::Duration};

pub(crate) use self::attach::placement;
pub use self::{owner::Outcome, rotate::LEAST_SIZE, start::run};
use crate::{
    bpf::{LinkKind, Work},
    capture::Overwrite,
    discover::Selection,
    mode::Mode,
    units::{ByteCount, Pid},
};

/// Which processes are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every Python process of the host.
    WholeHost,
    /// These and their children.
    Processes(Vec<Pid>),
    /// Those that are so, now or later, and their children.
    Selected(Selection),
    /// A command that is started for it, and its children.
    Command(Vec<std::ffi::OsString>),
}

/// What a recording is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// One capture of all events.
    One,
    /// Captures one after the other.
    Rotated {
        /// How large each may be.
        size: ByteCount,
        /// How many of them are kept.
        keep: usize,
    },
    /// One capture of tallies.
    Aggregated {
        /// How often it is written.
        every: Duration,
    },
}

/// What the user asked for, resolved.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is looked at.
    pub mode: Mode,
    /// Who.
    pub target: Target,
    /// Where the capture goes; `-` is standard output.
    pub output: PathBuf,
    /// Whether it may replace a file.
    pub overwrite: Overwrite,
    /// How long at most.
    pub duration: Option<Duration>,
    /// How large at most, if there is one file.
    pub max_size: Option<ByteCount>,
    /// How many files, and of what.
    pub files: Files,
    /// How often the pools of a process are read at most; zero for never.
    pub audit_interval: Duration,
    /// Most percent of a process's time that probes may take; `None` for no bound.
    pub max_overhead: Option<f64>,
    /// Bytes of the ring.
    pub ring_bytes: u32,
    /// A way to attach other than the best one.
    pub links: Option<LinkKind>,
    /// What happens at a hit.
    pub work: Work,
    /// Level of the eBPF programs' own log, as a number of `log::LevelFilter`.
    pub log_level: u8,
}
