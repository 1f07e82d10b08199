//! One image's probes, in as few links as the kernel allows, and the way down again.
//!
//! Closing a multi link costs one grace period for all its points. Closing per-point links costs two each. The program's
//! is waited for by each closer for itself, so those are closed on many threads at once; the event's is waited for under
//! a mutex of the kernel, one after the other, and nothing here helps against that: 460 points take some 20 s instead
//! of 35.

use std::{
    fmt,
    os::fd::{AsFd as _, OwnedFd},
    thread,
};

use aya::{
    Ebpf,
    programs::{
        Program, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};
use serde::Serialize;

use super::{
    BpfError, KernelFacts, object,
    raw::{self, Attach},
};

/// One probe: where in the file, and the cookie that names its site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) offset: u64,
    pub(super) cookie: u64,
    pub(super) probe: Probe,
}

/// What runs at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// What needs no stack: a free, the death of a code object.
    Entry,
    /// A place within a function, where a block is in hand.
    Within,
    /// Both halves of a call.
    Call,
    /// The return of a call.
    Return,
}

/// Something that holds probes in place until it is dropped.
pub(super) enum Link {
    Multi { _fd: OwnedFd },
    Point { _link: UProbeLink },
}

/// The probe programs, loaded in the best way that this kernel has.
pub(super) enum Programs {
    Session {
        entry: OwnedFd,
        within: OwnedFd,
        session: OwnedFd,
    },
    Multi {
        entry: OwnedFd,
        within: OwnedFd,
        call: OwnedFd,
        back: OwnedFd,
    },
    PerPoint,
}

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

impl Programs {
    /// Programs that do nothing, for measuring what a hit costs without us. Never as a session: one that does not
    /// refuse the second half would have the kernel take the word on top of the stack for a return address, which
    /// within a function it is not.
    pub(super) fn empty(ebpf: &Ebpf, kernel: &KernelFacts) -> Result<Self, BpfError> {
        let nothing = || object::load_program(ebpf, kernel, "on_nothing", Attach::Multi);
        Ok(Self::Multi {
            entry: nothing()?,
            within: nothing()?,
            call: nothing()?,
            back: nothing()?,
        })
    }

    /// Loads the programs in the best way that this kernel has, found by trying and not by its version.
    pub(super) fn best(ebpf: &mut Ebpf, kernel: &KernelFacts) -> Result<Self, BpfError> {
        for (kind, attach) in [
            (LinkKind::Session, Attach::Session),
            (LinkKind::Multi, Attach::Multi),
        ] {
            if Self::offered(ebpf, kernel, attach) {
                return Self::load(ebpf, kernel, kind);
            }
            tracing::debug!("the kernel has no {kind} links");
        }
        Self::load(ebpf, kernel, LinkKind::PerPoint)
    }

    /// Whether the kernel has links of this kind, and what programs for them call.
    fn offered(ebpf: &Ebpf, kernel: &KernelFacts, attach: Attach) -> bool {
        if attach == Attach::Session && !kernel.has_session_functions() {
            return false;
        }
        // A program that does nothing is refused for one reason only.
        object::load_program(ebpf, kernel, "on_nothing", attach)
            .is_ok_and(|program| raw::offers(program.as_fd(), attach))
    }

    /// How they are attached.
    pub(super) fn kind(&self) -> LinkKind {
        match self {
            Self::Session { .. } => LinkKind::Session,
            Self::Multi { .. } => LinkKind::Multi,
            Self::PerPoint => LinkKind::PerPoint,
        }
    }

    /// Loads the programs for `kind`.
    pub(super) fn load(ebpf: &mut Ebpf, kernel: &KernelFacts, kind: LinkKind) -> Result<Self, BpfError> {
        match kind {
            LinkKind::Session => Ok(Self::Session {
                entry: object::load_program(ebpf, kernel, "on_entry", Attach::Multi)?,
                within: object::load_program(ebpf, kernel, "on_place", Attach::Multi)?,
                session: object::load_program(ebpf, kernel, "on_session", Attach::Session)?,
            }),
            LinkKind::Multi => Ok(Self::Multi {
                entry: object::load_program(ebpf, kernel, "on_entry_old", Attach::Multi)?,
                within: object::load_program(ebpf, kernel, "on_place_old", Attach::Multi)?,
                call: object::load_program(ebpf, kernel, "on_call", Attach::Multi)?,
                back: object::load_program(ebpf, kernel, "on_return", Attach::Multi)?,
            }),
            LinkKind::PerPoint => {
                for name in ["on_entry_old", "on_call", "on_return", "on_place_old"] {
                    uprobe(ebpf, name)?
                        .load()
                        .map_err(|error| BpfError::Object { source: error.into() })?;
                }
                Ok(Self::PerPoint)
            }
        }
    }

    /// Attaches `points` of the file that `path` leads to, in every process.
    pub(super) fn attach(
        &self,
        ebpf: &mut Ebpf,
        path: &str,
        points: &[Point],
    ) -> Result<Vec<Link>, BpfError> {
        let of = |wanted: &[Probe]| -> Vec<Point> {
            let chosen = points.iter().filter(|point| wanted.contains(&point.probe));
            chosen.copied().collect()
        };
        let entries = of(&[Probe::Entry]);
        let within = of(&[Probe::Within]);
        let calls = of(&[Probe::Call]);
        let returns = of(&[Probe::Call, Probe::Return]);
        let mut links = Vec::new();
        match self {
            Self::Session {
                entry,
                within: places,
                session,
            } => {
                links.extend(multi(entry, Attach::Multi, raw::Return::No, path, &entries)?);
                links.extend(multi(places, Attach::Multi, raw::Return::No, path, &within)?);
                links.extend(multi(session, Attach::Session, raw::Return::No, path, &returns)?);
            }
            Self::Multi {
                entry,
                within: places,
                call,
                back,
            } => {
                links.extend(multi(entry, Attach::Multi, raw::Return::No, path, &entries)?);
                links.extend(multi(places, Attach::Multi, raw::Return::No, path, &within)?);
                // The second halves first: a call whose first half is seen has its second half seen too.
                links.extend(multi(back, Attach::Multi, raw::Return::Yes, path, &returns)?);
                links.extend(multi(call, Attach::Multi, raw::Return::No, path, &calls)?);
            }
            Self::PerPoint => {
                let all = [
                    ("on_entry_old", &entries),
                    ("on_place_old", &within),
                    ("on_return", &returns),
                    ("on_call", &calls),
                ];
                for (name, points) in all {
                    for point in points {
                        links.push(single(ebpf, name, path, *point)?);
                    }
                }
            }
        }
        Ok(links)
    }
}

fn multi(
    program: &OwnedFd,
    attach: Attach,
    half: raw::Return,
    path: &str,
    points: &[Point],
) -> Result<Option<Link>, BpfError> {
    if points.is_empty() {
        return Ok(None);
    }
    let offsets: Vec<u64> = points.iter().map(|point| point.offset).collect();
    let cookies: Vec<u64> = points.iter().map(|point| point.cookie).collect();
    raw::link(program.as_fd(), attach, half, path, &offsets, &cookies)
        .map(|fd| Some(Link::Multi { _fd: fd }))
        .map_err(|error| BpfError::Attach {
            path: path.to_owned(),
            points: points.len(),
            source: error.into(),
        })
}

fn uprobe<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut UProbe, BpfError> {
    match ebpf.program_mut(name) {
        Some(Program::UProbe(program)) => Ok(program),
        _ => Err(BpfError::Missing {
            what: "program",
            name,
        }),
    }
}

fn single(ebpf: &mut Ebpf, name: &'static str, path: &str, point: Point) -> Result<Link, BpfError> {
    let program = uprobe(ebpf, name)?;
    let at = UProbeAttachPoint {
        location: UProbeAttachLocation::AbsoluteOffset(point.offset),
        cookie: Some(point.cookie),
    };
    program
        .attach(at, path, UProbeScope::AllProcesses)
        .and_then(|id| program.take_link(id))
        .map(|link| Link::Point { _link: link })
        .map_err(|error| BpfError::Attach {
            path: path.to_owned(),
            points: 1,
            source: error.into(),
        })
}

/// Most threads that close links at the same time: the grace periods of the programs overlap, so more threads mean less
/// waiting.
const CLOSERS: usize = 64;

/// Takes the probes of `links` down and returns when all are.
pub(super) fn close(mut links: Vec<Link>) {
    let share = links.len().div_ceil(CLOSERS).max(1);
    thread::scope(|scope| {
        while !links.is_empty() {
            let part = links.split_off(links.len().saturating_sub(share));
            scope.spawn(move || drop(part));
        }
    });
}
