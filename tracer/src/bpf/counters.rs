//! What the kernel side counts, from its maps: for the recorder that made them, and for whoever asks what runs on this host.

use std::{io, os::fd::BorrowedFd};

use tracer_ebpf::{process::ProcessState, site::group::GROUPS};

use super::{raw, tracer::Plain};
use crate::{
    ingest::event::Counters,
    units::{BootNs, Pid},
};

/// Name of the map of the processes that are recorded.
pub(super) const PROCESSES: &str = "PROCESSES";
/// Name of the map of those that are not and run what is probed.
pub(super) const BYSTANDERS: &str = "BYSTANDERS";

/// For how long the program runs at a hit of a process that is not recorded: nobody times that. With it such a hit counts as
/// two traps, which is about what a trap costs a program at work.
const LOOKED_UP_NS: u64 = 250;

/// Counters of a process that still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveCounters {
    /// The process.
    pub pid: Pid,
    /// Its start time.
    pub start: BootNs,
    /// The counters.
    pub counters: Counters,
}

/// What is in [`PROCESSES`].
pub(super) fn of_processes(map: BorrowedFd<'_>) -> io::Result<Vec<LiveCounters>> {
    let of = |(pid, Plain(state)): (u32, Plain<ProcessState>)| LiveCounters {
        pid: Pid(pid),
        start: BootNs(state.start_ns),
        counters: Counters {
            allocs: state.allocs,
            frees: state.frees,
            reallocs: state.reallocs,
            faults: state.faults,
            hits_by_group: state.hits,
            run_ns_by_group: state.run_ns,
            losses: state.losses,
        },
    };
    Ok(raw::entries(map)?.into_iter().map(of).collect())
}

/// What is in [`BYSTANDERS`].
pub(super) fn of_bystanders(map: BorrowedFd<'_>) -> io::Result<Vec<LiveCounters>> {
    let of = |(pid, hits_by_group): (u32, [u64; GROUPS])| LiveCounters {
        pid: Pid(pid),
        // No recorded process started then.
        start: BootNs(0),
        counters: Counters {
            hits_by_group,
            run_ns_by_group: hits_by_group.map(|hits| hits.saturating_mul(LOOKED_UP_NS)),
            ..Counters::default()
        },
    };
    Ok(raw::entries(map)?.into_iter().map(of).collect())
}
