//! Looks at the blocks of one process that were seen in sampling windows: when, and the looking.
//!
//! Apart from `reading`, which reads whole heaps, and more seldom: how long a block stays is known as well as it is looked for.
//! Invariant: looks become rarer with the age of the window, and end.

use std::{io, time::Duration};

use super::{
    attach::now,
    audit::later,
    content::Words,
    pool_walk::Memory,
    reading::{Known, settled},
    survivors::Of,
};
use crate::{
    discover::{cpu_time, read_each, read_memory},
    ingest::{PoolState, Survey},
    python::{POOL_HEADER_BYTES, pool_in_use},
    units::{MonotonicNs, Pid, ProcAddr},
};

/// From the end of a sampling window to the first look: one is dated early, and is to be later than the window.
pub(super) const AFTER_WINDOW: Duration = Duration::from_millis(300);
/// Each look is later than the one before by one part in so many of its age,
const AGES: u32 = 4;
/// ... and a window of this age is not looked at any more, but when the heap is read.
const OLDEST: Duration = Duration::from_secs(8);

/// When the blocks of the newest window are looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Looks {
    /// The window's end, and when the next look is due.
    next: Option<(MonotonicNs, MonotonicNs)>,
}

impl Looks {
    /// A window is over.
    pub(super) fn begin(&mut self, over: MonotonicNs) {
        // The first one is a reading.
        let next = later(over, AFTER_WINDOW * (AGES + 1) / AGES);
        self.next = Some((over, next));
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Option<MonotonicNs> {
        self.next.map(|(_, due)| due)
    }

    /// One was made, or could not be.
    pub(super) fn done(&mut self, now: MonotonicNs) {
        self.next = self.next.take().and_then(|(over, _)| {
            let age = Duration::from_nanos(now.get().saturating_sub(over.get()));
            let next = later(now, (age / AGES).max(AFTER_WINDOW / AGES));
            (age < OLDEST).then_some((over, next))
        });
    }
}

/// Looks at sampled blocks. Nothing if there was no window.
pub(super) fn survey(pid: Pid, known: &mut Known, of: Of, pool_bytes: u32) -> io::Result<Option<Survey>> {
    let time = now();
    let Some((first, last)) = known.survivors.due(of, settled(time)) else {
        return Ok(None);
    };
    let used = cpu_time(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let places = known.survivors.pools(first, last, pool_bytes);
    let pools = read_pools(pid, &places, pool_bytes)?;
    let memory = Pools(pid, pool_bytes);
    let found = known.survivors.check(first, last, pool_bytes, &pools, memory)?;
    Ok(Some(Survey {
        pid,
        start: known.start,
        first: MonotonicNs(first),
        last: MonotonicNs(last),
        time,
        used: nanos(used),
        gone: found.gone,
        left: found.left,
        refused: found.refused,
    }))
}

/// In nanoseconds.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Those of the pools at these places that are in use, in the same order.
fn read_pools(pid: Pid, places: &[ProcAddr], pool_bytes: u32) -> io::Result<Vec<PoolState>> {
    let mut headers: Vec<Option<[u8; POOL_HEADER_BYTES]>> = Vec::with_capacity(places.len());
    read_each(pid, places, &mut headers)?;
    let pools = headers.iter().zip(places).filter_map(|(header, &place)| {
        let pool = pool_in_use(header.as_ref()?, place, pool_bytes)?;
        Some(PoolState::new(place, pool))
    });
    Ok(pools.collect())
}

/// The pools of a process, of so many bytes, to be read.
struct Pools(Pid, u32);

impl Memory for Pools {
    fn pool(&mut self, at: ProcAddr) -> io::Result<Option<Vec<u8>>> {
        match read_memory(self.0, at, usize::try_from(self.1).unwrap_or(0)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn words(&mut self, places: &[ProcAddr]) -> io::Result<Vec<Option<Words>>> {
        let mut words = Vec::with_capacity(places.len());
        read_each(self.0, places, &mut words)?;
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_become_rarer_and_end() {
        let mut looks = Looks::default();
        looks.done(MonotonicNs(7));
        assert_eq!(looks.due(), None);
        let over = MonotonicNs(1_000_000_000);
        looks.begin(over);
        let mut ages = Vec::new();
        while let Some(due) = looks.due() {
            ages.push((due.get() - over.get()) / 1_000_000);
            looks.done(due);
        }
        let expected = [
            375, 468, 585, 732, 915, 1144, 1430, 1788, 2235, 2793, 3492, 4365, 5456, 6821, 8526,
        ];
        assert_eq!(ages, expected);
    }
}
