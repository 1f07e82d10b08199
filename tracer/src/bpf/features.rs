//! What the running kernel offers, found by trying, not by its version number.

use std::fmt;

use serde::Serialize;

use super::{KernelFacts, object, raw::Attach};

/// How probes are attached, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// One link for many points, both halves of a call in one program (kernel 6.13).
    Session,
    /// One link for many points (kernel 6.6).
    Multi,
    /// One link for each point.
    PerPoint,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "session",
            Self::Multi => "multi",
            Self::PerPoint => "per-point",
        })
    }
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// The best way to attach.
    pub links: LinkKind,
}

impl Features {
    /// Tries each way to attach, best first. `ebpf` holds the maps that the programs name.
    pub(super) fn probe(ebpf: &aya::Ebpf, kernel: &KernelFacts) -> Self {
        let loads = |name, attach| object::load_program(ebpf, kernel, name, attach).is_ok();
        let links = if kernel.has_session_functions() && loads("on_session", Attach::Session) {
            LinkKind::Session
        } else if loads("on_entry", Attach::Multi) {
            LinkKind::Multi
        } else {
            LinkKind::PerPoint
        };
        Self { links }
    }
}
