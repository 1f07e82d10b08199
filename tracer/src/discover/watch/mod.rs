//! New executable mappings, execs and exits on the whole host, as the kernel reports them: no polling.
//!
//! One perf event per CPU that counts nothing (`PERF_COUNT_SW_DUMMY`) and only carries the side-band records
//! which perf uses to find code. It needs no tracefs and no probe, and `dlopen` is seen like `exec`. Needs
//! `CAP_PERFMON` (or `CAP_SYS_ADMIN`), or `kernel.perf_event_paranoid` below 1.

mod perf;
mod record;
mod ring;

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

pub use record::{MapEvent, Mapping};

use ring::Ring;

/// Pages of each CPU's ring, a power of two: room for about 2,000 mappings between two drains.
const RING_PAGES: usize = 64;

/// Why the host cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel refused.
    #[error("not permitted to watch the whole host with perf events")]
    NotPermitted {
        /// Its answer.
        source: io::Error,
    },
    /// The kernel cannot.
    #[error("the kernel has no usable perf events")]
    Unsupported {
        /// Its answer.
        source: io::Error,
    },
    /// Another failure.
    #[error("cannot {step}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// What came of it.
        source: io::Error,
    },
}

impl WatchError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotPermitted { .. } => "run as root, or with CAP_PERFMON",
            Self::Unsupported { .. } => "the kernel needs CONFIG_PERF_EVENTS",
            Self::Io { .. } => "new processes are then found by looking at /proc now and then",
        }
    }
}

/// Sees what is mapped from now on. Readable (as a file descriptor) when there is something to drain.
#[derive(Debug)]
pub struct MapWatcher {
    rings: Vec<Ring>,
    epoll: OwnedFd,
}

impl MapWatcher {
    /// Watches every CPU that is online now. What happens before this returns is found by a scan of /proc
    /// afterwards.
    pub fn start() -> Result<Self, WatchError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| WatchError::Io {
            step: "make an epoll instance",
            source: error.into(),
        })?;
        let online =
            fs::read_to_string("/sys/devices/system/cpu/online").map_err(|source| WatchError::Io {
                step: "read the list of online CPUs",
                source,
            })?;
        let mut rings = Vec::new();
        for cpu in parse_cpu_list(&online) {
            let fd = match perf::open(cpu) {
                Ok(fd) => fd,
                // It went offline since the list was read.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
                Err(source) => return Err(refused(source)),
            };
            epoll::add(
                &epoll,
                &fd,
                epoll::EventData::new_u64(u64::from(cpu)),
                epoll::EventFlags::IN,
            )
            .map_err(|error| WatchError::Io {
                step: "wait for perf events",
                source: error.into(),
            })?;
            rings.push(Ring::map(fd, RING_PAGES).map_err(|source| WatchError::Io {
                step: "map the ring of a perf event",
                source,
            })?);
        }
        if rings.is_empty() {
            return Err(WatchError::Unsupported {
                source: io::ErrorKind::NotFound.into(),
            });
        }
        Ok(Self { rings, epoll })
    }

    /// Appends what has happened, oldest first, and does not wait. After [`MapEvent::Lost`] only a scan of
    /// /proc tells what is mapped.
    pub fn drain(&mut self, events: &mut Vec<MapEvent>) {
        let first = events.len();
        for ring in &mut self.rings {
            ring.drain(|bytes| events.extend(record::parse(bytes)));
        }
        // Each ring is in order; a process that moves between CPUs is in several.
        if let Some(new) = events.get_mut(first..) {
            new.sort_by_key(MapEvent::time);
        }
    }

    /// Waits until there is something to drain; whether there is. A signal ends it early.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for MapWatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl AsRawFd for MapWatcher {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

fn refused(source: io::Error) -> WatchError {
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => WatchError::NotPermitted { source },
        _ => WatchError::Unsupported { source },
    }
}

/// `0-3,5` as 0, 1, 2, 3, 5.
fn parse_cpu_list(list: &str) -> impl Iterator<Item = u32> {
    list.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
}
