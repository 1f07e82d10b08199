//! One image's probes, in as few links as the kernel allows.
//!
//! Closing a link costs a grace period or two for all its points. So there is one for each program, whatever the kernel
//! offers to make it of.

use std::{
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    thread,
};

use aya::Ebpf;
use serde::Serialize;
use tracer_ebpf::site::event;

use super::{
    BpfError, KernelFacts,
    events::{Definition, Events},
    object,
    raw::{self, Attach},
};
use crate::units::ImageId;

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

/// Holds probes in place until it is dropped.
pub(super) struct Link {
    // In this order: see `events`.
    _fd: OwnedFd,
    _definition: Option<Definition>,
}

/// The probe programs, loaded for one kind of links.
pub(super) enum Programs {
    Session {
        entry: OwnedFd,
        within: OwnedFd,
        session: OwnedFd,
    },
    Halves {
        entry: OwnedFd,
        within: OwnedFd,
        call: OwnedFd,
        back: OwnedFd,
        /// For per-point links; the others are multi links.
        events: Option<Events>,
    },
}

/// How probes are attached, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// One link for many points, both halves of a call in one program (kernel 6.13).
    Session,
    /// One link for many points (kernel 6.6).
    Multi,
    /// One event of the kernel's tracing for many points, and a link to that.
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

impl LinkKind {
    /// The best kind that this kernel has, found by trying and not by its version.
    pub(super) fn best(kernel: &KernelFacts) -> Self {
        if kernel.has_session_functions() && raw::offers(Attach::Session) {
            return Self::Session;
        }
        tracing::debug!("the kernel has no session links");
        if raw::offers(Attach::Multi) {
            return Self::Multi;
        }
        tracing::debug!("the kernel has no multi links");
        Self::PerPoint
    }
}

impl Programs {
    /// Programs that do nothing, for measuring what a hit costs without us. Never as a session: one that does not
    /// refuse the second half would have the kernel take the word on top of the stack for a return address, which
    /// within a function it is not.
    pub(super) fn empty() -> Result<Self, BpfError> {
        let nothing = || {
            raw::load_nothing(Attach::Multi).map_err(|(source, verdict)| BpfError::Refused {
                program: "on_nothing",
                verdict,
                source,
            })
        };
        Ok(Self::Halves {
            entry: nothing()?,
            within: nothing()?,
            call: nothing()?,
            back: nothing()?,
            events: None,
        })
    }

    /// Loads the programs for `kind`.
    pub(super) fn load(ebpf: &Ebpf, kernel: &KernelFacts, kind: LinkKind) -> Result<Self, BpfError> {
        let (attach, events) = match kind {
            LinkKind::Session => {
                return Ok(Self::Session {
                    entry: object::load_program(ebpf, kernel, "on_entry", Attach::Multi)?,
                    within: object::load_program(ebpf, kernel, "on_place", Attach::Multi)?,
                    session: object::load_program(ebpf, kernel, "on_session", Attach::Session)?,
                });
            }
            LinkKind::Multi => (Attach::Multi, None),
            LinkKind::PerPoint => {
                kernel.check_events()?;
                (Attach::Event, Some(Events::open()?))
            }
        };
        Ok(Self::Halves {
            entry: object::load_program(ebpf, kernel, "on_entry_old", attach)?,
            within: object::load_program(ebpf, kernel, "on_place_old", attach)?,
            call: object::load_program(ebpf, kernel, "on_call", attach)?,
            back: object::load_program(ebpf, kernel, "on_return", attach)?,
            events,
        })
    }

    /// How they are attached.
    pub(super) fn kind(&self) -> LinkKind {
        match self {
            Self::Session { .. } => LinkKind::Session,
            Self::Halves { events: None, .. } => LinkKind::Multi,
            Self::Halves { events: Some(_), .. } => LinkKind::PerPoint,
        }
    }

    /// Attaches `points` of the file that `path` leads to, in every process.
    pub(super) fn attach(&self, path: &str, image: ImageId, points: &[Point]) -> Result<Vec<Link>, BpfError> {
        let of = |wanted: &[Probe]| -> Vec<Point> {
            let chosen = points.iter().filter(|point| wanted.contains(&point.probe));
            chosen.copied().collect()
        };
        let entries = of(&[Probe::Entry]);
        let places = of(&[Probe::Within]);
        let calls = of(&[Probe::Call]);
        let returns = of(&[Probe::Call, Probe::Return]);
        let (multi, session) = (Way::Multi(Attach::Multi), Way::Multi(Attach::Session));
        let parts = match self {
            Self::Session {
                entry,
                within,
                session: both,
            } => vec![
                (entry, multi, raw::Return::No, entries),
                (within, multi, raw::Return::No, places),
                (both, session, raw::Return::No, returns),
            ],
            Self::Halves {
                entry,
                within,
                call,
                back,
                events,
            } => {
                let way = events.as_ref().map_or(multi, Way::Event);
                vec![
                    (entry, way, raw::Return::No, entries),
                    (within, way, raw::Return::No, places),
                    // The second halves first: a call whose first half is seen has its second half seen too.
                    (back, way, raw::Return::Yes, returns),
                    (call, way, raw::Return::No, calls),
                ]
            }
        };
        parts
            .into_iter()
            .filter(|(_, _, _, points)| !points.is_empty())
            .map(|(program, way, half, points)| {
                link(program, way, half, path, image, &points).map_err(|error| BpfError::Attach {
                    path: path.to_owned(),
                    points: points.len(),
                    source: error.into(),
                })
            })
            .collect()
    }
}

/// What a link is made of.
#[derive(Clone, Copy)]
enum Way<'a> {
    Multi(Attach),
    Event(&'a Events),
}

fn link(
    program: &OwnedFd,
    way: Way<'_>,
    half: raw::Return,
    path: &str,
    image: ImageId,
    points: &[Point],
) -> io::Result<Link> {
    match way {
        Way::Multi(attach) => {
            let offsets: Vec<u64> = points.iter().map(|point| point.offset).collect();
            let cookies: Vec<u64> = points.iter().map(|point| point.cookie).collect();
            raw::link(program.as_fd(), attach, half, path, &offsets, &cookies).map(|fd| Link {
                _fd: fd,
                _definition: None,
            })
        }
        Way::Event(events) => events
            .attach(program.as_fd(), half, path, points, event_cookie(image))
            .map(|(fd, definition)| Link {
                _fd: fd,
                _definition: Some(definition),
            }),
    }
}

/// Cookie of all probes of an image that are of events.
pub(super) fn event_cookie(image: ImageId) -> u64 {
    event::COOKIE | u64::from(image.get())
}

/// Most threads that close links at the same time.
const CLOSERS: usize = 64;

/// Takes the probes of `links` down and returns when all are. Closing one waits for a grace period of the kernel; those of
/// several overlap.
pub(super) fn close(mut links: Vec<Link>) {
    let share = links.len().div_ceil(CLOSERS).max(1);
    thread::scope(|scope| {
        while !links.is_empty() {
            let part = links.split_off(links.len().saturating_sub(share));
            scope.spawn(move || drop(part));
        }
    });
}
