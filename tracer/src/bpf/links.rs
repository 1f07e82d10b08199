//! The probes of images, in as few links as the kernel allows.
//!
//! Closing a link costs a grace period or two for all its points. So there is one for each program and image, whatever the
//! kernel offers to make it of; where the kernel closes them one after the other, one for each program and all images that
//! are attached together.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::Duration,
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
use crate::discover::own_time;

/// One probe: where in the file, and the cookie that names its site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) offset: u64,
    pub(super) cookie: u64,
    /// Where probes are those of events, the number of its event's cookie: no two points with the same have the same offset.
    pub(super) event: u32,
    pub(super) probe: Probe,
}

/// Points of one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct FilePoints<'a> {
    /// Leads to the file.
    pub(super) path: &'a str,
    pub(super) points: &'a [Point],
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

    /// Attaches points of files, in every process; all or none.
    pub(super) fn attach(&self, files: &[FilePoints<'_>]) -> Result<Vec<Link>, BpfError> {
        const CALLS: &[Probe] = &[Probe::Call];
        const RETURNS: &[Probe] = &[Probe::Call, Probe::Return];
        let (multi, session) = (Way::Multi(Attach::Multi), Way::Multi(Attach::Session));
        let (first, second) = (raw::Return::No, raw::Return::Yes);
        let parts: Vec<(&OwnedFd, Way<'_>, raw::Return, &[Probe])> = match self {
            Self::Session {
                entry,
                within,
                session: both,
            } => vec![
                (entry, multi, first, &[Probe::Entry]),
                (within, multi, first, &[Probe::Within]),
                (both, session, first, RETURNS),
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
                    (entry, way, first, &[Probe::Entry]),
                    (within, way, first, &[Probe::Within]),
                    // The second halves first: a call whose first half is seen has its second half seen too.
                    (back, way, second, RETURNS),
                    (call, way, first, CALLS),
                ]
            }
        };
        let mut links = Vec::new();
        for (program, way, half, probes) in parts {
            let made = match way {
                Way::Multi(attach) => multi_links(program, attach, half, files, probes),
                Way::Event(events) => event_links(program, events, half, files, probes),
            };
            links.extend(made.map_err(|error| BpfError::Attach {
                path: files.first().map(|file| file.path.to_owned()).unwrap_or_default(),
                points: files.iter().map(|file| file.points.len()).sum(),
                source: error.into(),
            })?);
        }
        Ok(links)
    }
}

/// What a link is made of.
#[derive(Clone, Copy)]
enum Way<'a> {
    Multi(Attach),
    Event(&'a Events),
}

/// One link for each file that has such points.
fn multi_links(
    program: &OwnedFd,
    attach: Attach,
    half: raw::Return,
    files: &[FilePoints<'_>],
    probes: &[Probe],
) -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    for file in files {
        let points = file.points.iter().filter(|point| probes.contains(&point.probe));
        let (offsets, cookies): (Vec<u64>, Vec<u64>) =
            points.map(|point| (point.offset, point.cookie)).unzip();
        if !offsets.is_empty() {
            links.push(Link {
                _fd: raw::link(program.as_fd(), attach, half, file.path, &offsets, &cookies)?,
                _definition: None,
            });
        }
    }
    Ok(links)
}

/// One link for all files, and another one only where two of them have points at the same offset.
fn event_links(
    program: &OwnedFd,
    events: &Events,
    half: raw::Return,
    files: &[FilePoints<'_>],
    probes: &[Probe],
) -> io::Result<Vec<Link>> {
    let mut places: BTreeMap<u32, Vec<(&str, u64)>> = BTreeMap::new();
    for file in files {
        for point in file.points.iter().filter(|point| probes.contains(&point.probe)) {
            places
                .entry(point.event)
                .or_default()
                .push((file.path, point.offset));
        }
    }
    places
        .into_iter()
        .map(|(event, places)| {
            let (fd, definition) = events.attach(program.as_fd(), half, &places, event_cookie(event))?;
            Ok(Link {
                _fd: fd,
                _definition: Some(definition),
            })
        })
        .collect()
}

/// Cookie of all probes of an event.
pub(super) fn event_cookie(number: u32) -> u64 {
    event::COOKIE | u64::from(number)
}

/// Most threads that close links at the same time.
const CLOSERS: usize = 64;

/// Takes the probes of `links` down and returns when all are. Closing one waits for a grace period of the kernel; those of
/// several overlap. The processor time that it took.
pub(super) fn close(mut links: Vec<Link>) -> Duration {
    let share = links.len().div_ceil(CLOSERS).max(1);
    thread::scope(|scope| {
        let mut closers = Vec::new();
        while !links.is_empty() {
            let part = links.split_off(links.len().saturating_sub(share));
            closers.push(scope.spawn(move || {
                drop(part);
                own_time()
            }));
        }
        closers.into_iter().filter_map(|closer| closer.join().ok()).sum()
    })
}
