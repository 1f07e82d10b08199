//! One process whose heap is read: what is known of it, and the reading.
//!
//! Apart from `audit`, which says whose turn it is, and `pool_scan`, which finds pools in memory. Invariant: what is remembered of
//! a process is bounded.

use std::{io, time::Duration};

use rustix::time::{ClockId, clock_gettime};

use super::{
    attach::now,
    large::{Large, Origin},
    left_out::{Count, LeftOut},
    libc_heap::read_libc,
    mapped::Mapped,
    pages::{self, Pages},
    places::Places,
    pool_changes::{Grown, pool_changes},
    pool_scan::Part,
    survey::{Looks, survey},
    survivors::{Of, Survivors},
};
use crate::{
    capture::{Audit, ImageRecord},
    discover::{PageMap, anonymous_regions, process, read_each},
    ingest::{HeapAudit, PoolState, Survey, event::Process, heap_audit::KNOWN_AFTER_NS},
    mode::Mode,
    units::{BootNs, ImageId, MonotonicNs, Pid, ProcAddr},
};

/// Headers read of one process at a time: 4 GiB of pools (1 GiB up to 3.9). Of a larger heap, heap mode reads another part each time; it
/// has no audit, and a report says so.
const HEADERS_PER_PROCESS: usize = 1 << 18;
/// Pools remembered of one process (heap mode), 24 bytes each, and of all.
const POOLS_PER_PROCESS: usize = 1 << 19;
pub(super) const POOLS_IN_ALL: usize = 1 << 20;
/// A change of resident memory counts from one part in so many.
const CHANGED: u64 = 100;
/// Where a reading finds no change the next one waits twice as long, so many times in a row at most,
const QUIET: u32 = 3;
/// ... unless the process has used so much processor time since: what fills pools again acquires none, and no event tells of it.
const AT_WORK: Duration = Duration::from_millis(15);

/// What was read of one process.
pub(super) enum Reading {
    /// Sums by size class, to compare with the blocks that were seen.
    Sums(Audit),
    /// Every pool, and the rest of the memory: what heap mode rests on.
    Heap(HeapAudit),
    /// Which blocks that were seen in sampling windows are gone.
    Survey(Survey),
}

/// A process that is traced.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) start: BootNs,
    pub(super) image: ImageId,
    pub(super) first_seen: MonotonicNs,
    pub(super) last_read: Option<MonotonicNs>,
    pub(super) due: MonotonicNs,
    /// When the next reading would be due if the last ones had found changes.
    pub(super) due_at_work: MonotonicNs,
    /// When what outlived a sampling window is to be read.
    pub(super) after_window: Option<MonotonicNs>,
    /// Processor time that it had used at the first look after a reading that found no change.
    used: Option<Duration>,
    places: Places,
    /// Whether tracing began before the process had any block; not known before its first audit.
    pub(super) since_start: Option<bool>,
    /// Readings in a row that found no change (heap mode), and the resident memory that the last one found.
    pub(super) quiet: u32,
    pub(super) resident: u64,
    /// The pools as they were last told, by address (heap mode).
    pub(super) pools: Vec<PoolState>,
    /// Those that were too many.
    left_pools: Count,
    /// Blocks that were seen in sampling windows (heap mode).
    pub(super) survivors: Survivors,
    /// When they are looked at between readings.
    pub(super) looks: Looks,
    /// Blocks that were filled again since the last window.
    pub(super) refilled: u64,
    /// Large blocks (heap mode).
    pub(super) large: Large,
    /// Mappings that can be such blocks.
    pub(super) mapped: Mapped,
    /// Pages that it touched, and its large mappings.
    pub(super) pages: Pages,
    /// What was not traced for a time since the last reading.
    pub(super) gaps: Gaps,
    /// Large blocks were not traced for a time.
    pub(super) had_large_gap: bool,
    /// Its heaps were too large to be counted.
    pub(super) left_uncounted: Count,
}

/// Groups of sites that are not traced, or were not (heap mode).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gaps {
    pub(super) pools: bool,
    pub(super) large: bool,
}

impl Known {
    /// Nothing is known yet. `gaps`: what is not traced now.
    pub(super) fn new(process: &Process<'_>, due: MonotonicNs, gaps: Gaps) -> Self {
        Self {
            start: process.start,
            image: process.image,
            first_seen: process.time,
            last_read: None,
            due,
            due_at_work: due,
            after_window: None,
            used: None,
            places: Places::default(),
            since_start: None,
            quiet: 0,
            resident: 0,
            pools: Vec::new(),
            left_pools: Count::default(),
            survivors: Survivors::default(),
            looks: Looks::default(),
            refilled: 0,
            large: Large::default(),
            mapped: Mapped::default(),
            pages: Pages::default(),
            gaps,
            had_large_gap: false,
            left_uncounted: Count::default(),
        }
    }

    /// It has a block there.
    pub(super) fn block(&mut self, part: Part, time: MonotonicNs) {
        self.places.block(part, time);
    }

    /// It has a large block; there is room for so many more of all processes.
    pub(super) fn large_block(&mut self, addr: ProcAddr, bytes: u64, time: MonotonicNs, room: &mut usize) {
        self.mapped.forget(addr);
        self.large.add(addr, bytes, time, Origin::Site, room);
    }

    /// It has freed one.
    pub(super) fn large_gone(&mut self, addr: ProcAddr, room: &mut usize) {
        self.mapped.forget(addr);
        self.large.remove(addr, room);
    }

    /// It touched memory while acquisitions of pools are not traced.
    pub(super) fn touched(&mut self, part: Part) {
        self.places.touched(part);
    }

    /// It does something: no need to wait for longer than this.
    pub(super) fn wake(&mut self, latest: MonotonicNs) {
        self.quiet = 0;
        self.due = self.due.min(latest);
    }

    /// A look at what processor time it has used, now and then: one that works is not left alone for long, though nothing changed. It may
    /// work little for a long time, so it is what it did since the last reading that counts.
    pub(super) fn look(&mut self, used: impl FnOnce() -> Option<Duration>) {
        if self.quiet == 0 {
            self.used = None;
            return;
        }
        let Some(now) = used() else {
            return;
        };
        let before = *self.used.get_or_insert(now);
        if now.saturating_sub(before) >= AT_WORK {
            self.wake(self.due_at_work);
        }
    }

    /// What limits left out of what is known of it.
    pub(super) fn left_out(&self) -> LeftOut {
        let mut other_mallocs = Count::default();
        if let Some(since) = self.large.blind() {
            other_mallocs.add(1, since);
        }
        LeftOut {
            large: self.large.left_out(),
            pools: self.left_pools,
            parts: self.places.left_out(),
            samples: self.survivors.left_out(),
            uncounted: self.left_uncounted,
            other_mallocs,
            ..LeftOut::default()
        }
    }
}

/// A reading, and what it took.
pub(super) struct Made {
    pub(super) reading: Reading,
    /// Of the blocks that were seen in sampling windows, if there was one.
    pub(super) survey: Option<Survey>,
    /// Headers read.
    pub(super) headers: usize,
    pub(super) grown: Grown,
}

/// Reads one process. Nothing for a build without pools. `room` and `large_room`: so many more pools and large blocks are remembered,
/// of all processes.
pub(super) fn read(
    pid: Pid,
    known: &mut Known,
    image: &ImageRecord,
    mode: Mode,
    room: usize,
    large_room: &mut usize,
) -> io::Result<Option<Made>> {
    if image.pool_bytes == 0 {
        return Ok(None);
    }
    let is_first = known.since_start.is_none();
    let since_start = if let Some(since_start) = known.since_start {
        since_start
    } else {
        let since_start = is_since_start(pid, known.start, image)?;
        if mode == Mode::Heap && !since_start {
            known.places.search_all();
        }
        *known.since_start.insert(since_start)
    };
    let began = now();
    let settled = settled(began);
    let mut regions = Vec::new();
    if mode == Mode::Heap {
        regions = anonymous_regions(pid)?;
    }
    let was_searching = known.places.is_searching();
    let scan = known.places.scan(
        image.pool_bytes,
        HEADERS_PER_PROCESS,
        &regions,
        began,
        |places, headers| read_each(pid, places, headers),
    )?;
    let ended = now();
    let (mut grown, mut found) = (Grown::default(), None);
    let headers = scan.read;
    let reading = match mode {
        Mode::Allocs => Reading::Sums(Audit {
            pid,
            start: known.start,
            began,
            ended,
            since_start,
            complete: known.places.are_read(),
            pools: scan.pools.len() as u64,
            used: scan.used.to_vec(),
        }),
        Mode::Heap => {
            let had_pools = !known.pools.is_empty();
            let unseen = known.gaps.pools && had_pools;
            let room = room.min(POOLS_PER_PROCESS.saturating_sub(known.pools.len()));
            let was_read = |addr: ProcAddr| scan.seen.contains(&Part::of(addr));
            let changes = pool_changes(&mut known.pools, scan.pools, was_read, room, unseen);
            known.left_pools.at_least(changes.refused, began);
            // What is told anew, or was there before, has not grown.
            if had_pools && !was_searching || is_first && since_start {
                grown = changes.grown;
            }
            let resident: u64 = regions.iter().map(|region| region.anonymous).sum();
            let changed = resident.abs_diff(std::mem::replace(&mut known.resident, resident));
            let is_quiet = changes.pools.is_empty() && changed < resident / CHANGED;
            let complete = known.places.are_known(&known.pools);
            known.used = None;
            known.quiet = if is_quiet && complete {
                (known.quiet + 1).min(QUIET)
            } else {
                0
            };
            found = survey(pid, known, Of::AllWindows, image.pool_bytes)?;
            let libc = read_libc(pid, known, &regions, began, large_room)?;
            let pages = read_pages(pid, known, settled)?;
            Reading::Heap(HeapAudit {
                pid,
                start: known.start,
                began: settled,
                ended,
                since_start,
                complete,
                is_partial: !known.places.are_read(),
                pool_bytes: image.pool_bytes,
                changed: changes.pools,
                regions,
                gone: libc.gone,
                mapped: libc.mapped,
                chunks: libc.counted.chunks,
                big: libc.counted.big,
                given_back: pages.given_back,
                came: pages.came,
            })
        }
    };
    Ok(Some(Made {
        reading,
        survey: found,
        headers,
        grown,
    }))
}

/// Looks where pages are that an event told of.
fn read_pages(pid: Pid, known: &mut Known, settled: MonotonicNs) -> io::Result<pages::Found> {
    let of = |pool: &PoolState| Part::of(ProcAddr(pool.address));
    let pools = &known.pools;
    let has_pools = |part: Part| pools.binary_search_by_key(&part, of).is_ok();
    let map = PageMap::open(pid)?;
    let read = |start, count| map.read(start, count);
    known.pages.look(settled, has_pools, read)
}

/// What an event tells of that is older than this is known at `now`.
pub(super) fn settled(now: MonotonicNs) -> MonotonicNs {
    MonotonicNs(now.get().saturating_sub(KNOWN_AFTER_NS))
}

/// Whether a process has no block from before it was traced: it began after its image was attached, and is no fork
/// that began with its parent's blocks.
fn is_since_start(pid: Pid, start: BootNs, image: &ImageRecord) -> io::Result<bool> {
    // The two clocks differ by the time that the machine slept.
    let boot = clock_gettime(ClockId::Boottime);
    let boot =
        u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(boot.tv_nsec).unwrap_or(0);
    let slept = boot.saturating_sub(now().get());
    let attached = BootNs(image.attached.get().saturating_add(slept));
    Ok(start >= attached && !process(pid)?.forked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_works_is_not_left_alone_for_long() {
        let process = Process {
            pid: Pid(7),
            time: MonotonicNs(0),
            start: BootNs(1),
            parent: Pid(1),
            image: ImageId(0),
            bias: 0,
            uid: 0,
            cgroup: 0,
            comm: b"python3",
            command_line: b"",
        };
        let (soon, late) = (MonotonicNs(1), MonotonicNs(8));
        let ms = |ms| Some(Duration::from_millis(ms));
        let mut known = Known::new(&process, soon, Gaps::default());
        known.due = late;
        // Readings find changes: nothing is looked at.
        known.look(|| unreachable!("of one that is read as often as can be"));
        known.quiet = 2;
        // The first look compares nothing; those after it do with that one.
        for used in [None, ms(1000), ms(1007), None, ms(1014)] {
            known.look(|| used);
            assert_eq!((known.quiet, known.due), (2, late), "{used:?}");
        }
        known.look(|| ms(1015));
        assert_eq!((known.quiet, known.due), (0, soon));
    }
}
