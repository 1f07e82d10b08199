//! What a capture says beside its events: where and how it was made, images, processes, losses, gaps, its end.
//!
//! Stored as JSON, so that a field can be added without a new format: every field has a default, and readers
//! ignore what they do not know. Strings from the target are lossy UTF-8 and hostile: escape them when shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ingest::event::Counters,
    units::{BootNs, ByteCount, ImageId, MonotonicNs, Pid},
};

/// Where and how a capture was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// Version of the program that wrote it.
    pub pyrobe_version: String,
    /// Host name.
    pub host: String,
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Machine, as `uname -m` prints it.
    pub machine: String,
    /// Online CPUs.
    pub cpus: u32,
    /// Start of the recording, nanoseconds since the Unix epoch.
    pub start_unix_ns: u64,
    /// The same moment on the clock of the events.
    pub start_monotonic: MonotonicNs,
    /// The same moment on the clock of processes' start times.
    pub start_boot: BootNs,
    /// `heap` or `allocs`.
    pub mode: String,
    /// What was to be traced, in words.
    pub target: String,
    /// The command that was started for the recording; empty if none was.
    pub command: Vec<String>,
    /// Measured cost of one probe hit on this host, nanoseconds.
    pub hit_cost_ns: Option<f64>,
    /// Other settings, by the names they have on the command line.
    pub settings: BTreeMap<String, String>,
    /// The number of this file, from 1, if the recording is in several one after the other.
    pub file: Option<u32>,
    /// Whether it holds tallies instead of events.
    pub aggregated: bool,
}

/// An ELF file that holds a Python runtime, as it was attached to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageRecord {
    /// Its number in events.
    pub id: ImageId,
    /// Path, as the first process that mapped it saw it.
    pub path: String,
    /// Version of Python, such as `3.12.1`.
    pub version: String,
    /// `PY_VERSION_HEX`.
    pub version_hex: u32,
    /// GNU build id, hexadecimal; empty if it has none.
    pub build_id: String,
    /// Device it is on, as `stat` numbers it.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// What it is: `executable` or `library`, with or without symbols.
    pub kind: String,
    /// Where its probes stand and why there, a note each.
    pub placement: Vec<String>,
    /// Copies of the allocator's functions in it that have a site.
    pub coverage_resolved: u32,
    /// All copies in it.
    pub coverage_copies: u32,
    /// Bytes of a pool of its small-block allocator; 0 if it has none, or none is known.
    pub pool_bytes: u32,
    /// When its probes were all in place.
    pub attached: MonotonicNs,
    /// How long the first process of it ran before that, nanoseconds; `None` if it was attached before any ran
    /// or processes of it were running before the recording.
    pub attach_gap_ns: Option<u64>,
}

/// What userspace read about a process, beside what its own record says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessRecord {
    /// Process id.
    pub pid: Pid,
    /// When it started; with the pid it names the process. Exact if it comes from the kernel side, else a
    /// multiple of a clock tick.
    pub start: BootNs,
    /// Parent's process id.
    pub parent: Pid,
    /// Path of its executable.
    pub exe: String,
    /// Name of its main thread.
    pub comm: String,
    /// Full command line.
    pub command_line: Vec<String>,
    /// Effective user id.
    pub uid: u32,
    /// Name of that user; empty if unknown.
    pub user: String,
    /// Path of its control group.
    pub cgroup: String,
    /// Container id, 64 hexadecimal digits; empty if it is in none.
    pub container: String,
    /// Version of Python it runs.
    pub python: String,
    /// Allocator in use: `pymalloc`, `malloc`, `debug` or `mimalloc`; empty if unknown.
    pub allocator: String,
    /// Images it maps.
    pub images: Vec<ImageId>,
    /// Whether it ran before the recording began, so that its first allocations are missing.
    pub before_recording: bool,
}

/// No process: under this pid stands what the whole host lost.
pub const HOST: Pid = Pid(0);

/// What the kernel side counted for a process so far, since this file began; a later one replaces an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessCounters {
    /// Process id.
    pub pid: Pid,
    /// When it started.
    pub start: BootNs,
    /// Allocations that happened, delivered or lost.
    pub allocs: u64,
    /// Frees that happened.
    pub frees: u64,
    /// Reallocations that happened.
    pub reallocs: u64,
    /// Page faults that were reported or lost.
    pub faults: u64,
    /// Probe hits.
    pub hits: u64,
    /// The same by `tracer_ebpf::site::group`.
    pub hits_by_group: Vec<u64>,
    /// Nanoseconds that programs ran for them, by the same.
    pub run_ns_by_group: Vec<u64>,
    /// Losses, by the number of the reason; shorter or longer if another version wrote it.
    pub losses: Vec<u64>,
}

impl ProcessCounters {
    /// The counters of a process.
    pub fn new(pid: Pid, start: BootNs, counters: &Counters) -> Self {
        Self {
            pid,
            start,
            allocs: counters.allocs,
            frees: counters.frees,
            reallocs: counters.reallocs,
            faults: counters.faults,
            hits: counters.hits().count,
            hits_by_group: counters.hits_by_group.to_vec(),
            run_ns_by_group: counters.run_ns_by_group.to_vec(),
            losses: counters.losses.to_vec(),
        }
    }

    /// As ingest has them. Reasons that this version does not know are left out.
    pub fn counters(&self) -> Counters {
        Counters {
            allocs: self.allocs,
            frees: self.frees,
            reallocs: self.reallocs,
            faults: self.faults,
            hits_by_group: known(&self.hits_by_group),
            run_ns_by_group: known(&self.run_ns_by_group),
            losses: known(&self.losses),
        }
    }
}

/// A table of which another version may have more or less.
fn known<const N: usize>(table: &[u64]) -> [u64; N] {
    let mut known = [0; N];
    for (to, from) in known.iter_mut().zip(table) {
        *to = *from;
    }
    known
}

/// What the pools of a process held at one time, as the interpreter itself counts. It stands in the capture before any
/// event that is later than `began`, and behind every earlier one that is not still in the ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Audit {
    /// Process id.
    pub pid: Pid,
    /// When it started; with the pid it names the process.
    pub start: BootNs,
    /// When reading its pools began, on the clock of the events. It ran on meanwhile.
    pub began: MonotonicNs,
    /// When reading them ended.
    pub ended: MonotonicNs,
    /// Whether it was traced before it had any block: otherwise its pools hold blocks of which no event tells.
    pub since_start: bool,
    /// Whether all pools that could be found were read.
    pub complete: bool,
    /// Pools in use.
    pub pools: u64,
    /// Blocks in use by size class: of 16 bytes, of 32, ... of 512.
    pub used: Vec<u64>,
}

/// A time in which something was not traced, on purpose or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gap {
    /// When it began.
    pub from: MonotonicNs,
    /// When it ended; 0 if it has only begun, and another record of it follows.
    pub to: MonotonicNs,
    /// The image concerned; `None` for all.
    pub image: Option<ImageId>,
    /// The process concerned; `None` for all.
    pub pid: Option<Pid>,
    /// The group of sites concerned (`tracer_ebpf::site::group`); `None` for all.
    pub group: Option<u32>,
    /// Why, in words.
    pub reason: String,
}

/// A time in which heap mode looked at every allocation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Window {
    /// When all probes were in place.
    pub from: MonotonicNs,
    /// When they began to be taken off.
    pub to: MonotonicNs,
    /// One block in so many was told of, whoever had it.
    pub one_in: u32,
    /// What the processes did in it that were hit; since 1.4.
    pub at_work: Vec<AtWork>,
}

/// Processor time of a process around a sampling window, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AtWork {
    /// The process.
    pub pid: Pid,
    /// Its start time.
    pub start: BootNs,
    /// What it had used when the window opened.
    pub before: u64,
    /// What it used in it,
    pub used: u64,
    /// ... and how much of that its hits took, by what they are estimated to cost.
    pub hits: u64,
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The user ended it, or a signal did.
    #[default]
    Interrupted,
    /// Its time was over.
    Duration,
    /// The command or the last target exited.
    TargetExited,
    /// The capture reached its greatest size.
    Full,
    /// The capture reached its greatest size, and the recording goes on in the next file.
    Rotated,
    /// It could not go on; [`End::message`] says why.
    Failed,
    /// A reason of a newer version.
    #[serde(other)]
    Other,
}

/// The last block: a capture without it was cut.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// Why it ended.
    pub reason: EndReason,
    /// More about that; empty if there is nothing to say.
    pub message: String,
    /// When, on the clock of the events.
    pub end_monotonic: MonotonicNs,
    /// The same moment, nanoseconds since the Unix epoch.
    pub end_unix_ns: u64,
    /// Exit code of the command that was started for the recording.
    pub exit_code: Option<i32>,
    /// Records that userspace could not decode.
    pub undecoded: u64,
    /// Bytes of events that were delivered but are not in the file, because it was full or a write failed.
    /// The writer fills this in.
    pub unwritten: ByteCount,
}
