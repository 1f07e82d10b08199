//! What can go wrong between us and the kernel, each with what the user can do about it.

use std::io;

/// A failure to load, attach or read.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel offers no type information.
    #[error("the kernel's type information (BTF) cannot be read from {path}")]
    NoBtf {
        /// Where it should be.
        path: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The type information lacks a field that the programs need.
    #[error("the kernel's type information has no {field}")]
    NoField {
        /// `struct.member`.
        field: &'static str,
    },
    /// The eBPF object could not be loaded by aya.
    #[error("the eBPF object cannot be loaded")]
    Object {
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The object lacks a map or a program: it was not built from this source.
    #[error("the eBPF object has no {what} named {name}")]
    Missing {
        /// `map` or `program`.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A program was refused.
    #[error("the kernel refuses the program {program}: {verdict}")]
    Refused {
        /// Name of the program.
        program: &'static str,
        /// The last lines of the verifier's log.
        verdict: String,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// A kernel without what the programs need.
    #[error("the kernel {release} is too old: 5.15 is the oldest that offers attach cookies")]
    TooOld {
        /// The kernel's release.
        release: String,
        /// What it said.
        #[source]
        source: Box<BpfError>,
    },
    /// A map could not be read or written.
    #[error("the map {name} cannot be used")]
    Map {
        /// Its name.
        name: &'static str,
        /// Why not.
        #[source]
        source: aya::maps::MapError,
    },
    /// No events can be defined in tracefs.
    #[error("probes cannot be defined in tracefs, which this kernel needs for many at once")]
    NoTracefs {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program could not be attached.
    #[error("cannot attach {points} probe(s) to {path}")]
    Attach {
        /// Where.
        path: String,
        /// How many probes.
        points: usize,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// More images or sites than the tables hold.
    #[error("the table of {what} is full ({limit})")]
    Full {
        /// `images` or `sites`.
        what: &'static str,
        /// How many it holds.
        limit: usize,
    },
}

impl BpfError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoBtf { .. } | Self::NoField { .. } => {
                "pyrobe needs a kernel built with CONFIG_DEBUG_INFO_BTF; `pyrobe doctor` says what this host has"
            }
            Self::Object { .. } | Self::Refused { .. } => {
                "run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE; `pyrobe doctor` says what is missing"
            }
            Self::TooOld { .. } => "run a newer kernel; `pyrobe doctor` says what this host has",
            Self::Missing { .. } => "rebuild the object with `cargo xtask ebpf`",
            Self::Map { .. } => "another process may have used up memory or file descriptors",
            Self::NoTracefs { .. } => {
                "run as root with CAP_SYS_ADMIN, or with a /sys/kernel/tracing that you may write to; from kernel 6.6 on it is not needed"
            }
            Self::Attach { .. } => {
                "the kernel needs CONFIG_UPROBES and CONFIG_UPROBE_EVENTS; see `pyrobe doctor`"
            }
            Self::Full { .. } => "narrow the recording with --pid or with a command",
        }
    }
}
