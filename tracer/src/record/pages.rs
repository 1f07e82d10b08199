//! Pages that a process was seen to touch, and its large mappings: which of the pages it has given back since, and what of a mapping is
//! there.
//!
//! Apart from `mapped`, which looks whether mappings are blocks of libc's malloc. A page that is given back (`madvise`) has no event,
//! and what is moved (`mremap`) or filled by the kernel (`MAP_POPULATE`) has no page fault; where pages are says the kernel. Whether
//! somebody touched what is in a mapping is judged where all events are known. Invariant: what is remembered is bounded.

use std::{io, ops::Range};

use rustc_hash::FxHashMap;

use super::pool_scan::Part;
use crate::{
    discover::PageState,
    ingest::{Came, PAGE, event::Fault},
    units::{MonotonicNs, ProcAddr},
};

/// Pages remembered of all processes, some 32 bytes each. Past its part every second one of a process is forgotten, of which it is then not
/// told that they were given back.
pub(super) const MOST_IN_ALL: usize = 1 << 18;
/// The same of one process; as many as a report remembers.
const MOST: usize = 1 << 16;
/// Mappings remembered of one process until the next reading: the largest.
const MOST_MAPPINGS: usize = 256;
/// Pages looked at in one reading because they are in a mapping: 4 GiB.
const MOST_LOOKED_AT: u64 = 1 << 20;
/// Pages told of one mapping.
const MOST_TOLD: usize = 64;
/// Pages are read at once if so many at most lie between the first and the last.
const SPAN: u64 = 512;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// When which page was touched, by its number.
    touched: FxHashMap<u64, MonotonicNs>,
    /// In the order in which they were made.
    mappings: Vec<Mapping>,
}

/// A large mapping, as it was when it was made.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    start: u64,
    pages: u64,
    time: MonotonicNs,
}

impl Mapping {
    /// By number.
    fn pages(&self) -> Range<u64> {
        let first = self.start / PAGE;
        first..first.saturating_add(self.pages)
    }
}

/// What was found.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) given_back: Vec<u64>,
    pub(super) came: Vec<Came>,
}

impl Pages {
    /// A page was touched. `most`: so many are remembered of each process.
    pub(super) fn touched(&mut self, fault: &Fault, most: usize) {
        self.touched.insert(fault.addr.get() / PAGE, fault.time);
        if self.touched.len() > most.min(MOST) {
            let mut keep = false;
            self.touched.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
    }

    /// A mapping was made.
    pub(super) fn mapped(&mut self, fault: &Fault) {
        let new = Mapping {
            start: fault.addr.get(),
            pages: fault.weight.into(),
            time: fault.time,
        };
        if self.mappings.len() >= MOST_MAPPINGS {
            let all = self.mappings.iter().enumerate();
            let smallest = all.min_by_key(|(_, old)| old.pages);
            let Some((at, _)) = smallest.filter(|(_, old)| old.pages < new.pages) else {
                return;
            };
            self.mappings.remove(at);
        }
        self.mappings.push(new);
    }

    /// Looks where pages are; `read` gives the states of so many from an address on. What was touched or mapped later than `settled` is
    /// looked at once more, the next time. Of parts with pools, which `has_pools` tells, nothing is looked at.
    pub(super) fn look(
        &mut self,
        settled: MonotonicNs,
        has_pools: impl Fn(Part) -> bool,
        read: impl Fn(u64, usize) -> io::Result<Vec<PageState>>,
    ) -> io::Result<Found> {
        let is_outside = |page: u64| !has_pools(Part::of(ProcAddr(page * PAGE)));
        self.touched.retain(|&page, _| is_outside(page));
        let given_back = self.given_back(settled, &read)?;
        let came = self.came(settled, is_outside, &read)?;
        Ok(Found { given_back, came })
    }

    /// Which pages are there no more. They are forgotten.
    fn given_back(
        &mut self,
        settled: MonotonicNs,
        read: impl Fn(u64, usize) -> io::Result<Vec<PageState>>,
    ) -> io::Result<Vec<u64>> {
        let known = self.touched.iter().filter(|(_, time)| **time < settled);
        let mut pages: Vec<u64> = known.map(|(&page, _)| page).collect();
        pages.sort_unstable();
        let mut gone = Vec::new();
        let mut rest = pages.as_slice();
        while let Some(&first) = rest.first() {
            let (here, later) = rest.split_at(rest.partition_point(|&page| page - first < SPAN));
            rest = later;
            let count = here.last().map_or(0, |last| last - first + 1);
            let states = read(first * PAGE, usize::try_from(count).unwrap_or(0))?;
            let state = |page: u64| states.get(usize::try_from(page - first).unwrap_or(usize::MAX));
            // Of a process that has ended there is no state.
            let is_gone = |page: u64| state(page).is_some_and(|&state| state == PageState::Absent);
            gone.extend(here.iter().copied().filter(|&page| is_gone(page)));
        }
        for page in &gone {
            self.touched.remove(page);
        }
        Ok(gone.into_iter().map(|page| page * PAGE).collect())
    }

    /// What is there of the mappings that were made since the last time.
    fn came(
        &mut self,
        settled: MonotonicNs,
        is_outside: impl Fn(u64) -> bool,
        read: impl Fn(u64, usize) -> io::Result<Vec<PageState>>,
    ) -> io::Result<Vec<Came>> {
        let mut found = Vec::new();
        let mut left = MOST_LOOKED_AT;
        for (mapping, pages) in whose(&self.mappings) {
            let mut resident = Vec::new();
            for pages in pages {
                let count = (pages.end - pages.start).min(left);
                left -= count;
                let states = read(pages.start * PAGE, usize::try_from(count).unwrap_or(0))?;
                let pages = pages.zip(states).filter(|&(page, _)| is_outside(page));
                let of_it = pages.filter(|(_, state)| *state == PageState::Resident);
                resident.extend(of_it.map(|(page, _)| page));
            }
            for pages in resident.chunks(resident.len().div_ceil(MOST_TOLD).max(1)) {
                let Some(&page) = pages.first() else { continue };
                found.push(Came {
                    mapping: mapping.start,
                    page: page * PAGE,
                    pages: u32::try_from(pages.len()).unwrap_or(u32::MAX),
                });
                self.touched.entry(page).or_insert(mapping.time);
            }
        }
        self.mappings.retain(|mapping| mapping.time >= settled);
        Ok(found)
    }
}

/// Which pages are of which mapping, the newest first. Room was free when it was found, so what is in it now is of that mapping or of a
/// newer one; the room of a newer one can lie where an older one was, or where that did not need its own (the kernel aligns large ones).
fn whose(mappings: &[Mapping]) -> Vec<(Mapping, Vec<Range<u64>>)> {
    let mut all: Vec<(Mapping, Vec<Range<u64>>)> = Vec::with_capacity(mappings.len());
    for mapping in mappings.iter().rev() {
        let mut own = vec![mapping.pages()];
        for newer in all.iter().map(|(newer, _)| newer.pages()) {
            let parts = own.into_iter().flat_map(|part| {
                let before = part.start..part.end.min(newer.start);
                let behind = part.start.max(newer.end)..part.end;
                [before, behind]
            });
            own = parts.filter(|part| !part.is_empty()).collect();
        }
        all.push((*mapping, own));
    }
    all
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::ingest::event::FaultKind;

    fn fault(page: u64, weight: u32, time: u64) -> Fault {
        Fault::of_test(FaultKind::Touch, page * PAGE + 5, weight, time)
    }

    fn mapping(page: u64, pages: u32, time: u64) -> Fault {
        Fault {
            addr: ProcAddr(page * PAGE),
            ..fault(page, pages, time)
        }
    }

    /// Looks at 10, where these pages are resident and that of 7 is swapped out, and there are pools from page 10,000 on; the numbers of
    /// pages that were given back, and of those that came: mapping, page and how many.
    #[track_caller]
    fn look(pages: &mut Pages, resident: &[Range<u64>]) -> (Vec<u64>, Vec<(u64, u64, u32)>) {
        let read = |start: u64, count: usize| {
            assert!(start.is_multiple_of(PAGE) && count > 0);
            let state = |page: u64| {
                if resident.iter().any(|range| range.contains(&page)) {
                    PageState::Resident
                } else if page == 7 {
                    PageState::Elsewhere
                } else {
                    PageState::Absent
                }
            };
            Ok((start / PAGE..).take(count).map(state).collect())
        };
        let pools = Part::of(ProcAddr(10_240 * PAGE));
        let found = pages.look(MonotonicNs(10), |part| part == pools, read).unwrap();
        let came = found.came.iter();
        (
            found.given_back.iter().map(|page| page / PAGE).collect(),
            came.map(|came| (came.mapping / PAGE, came.page / PAGE, came.pages))
                .collect(),
        )
    }

    #[test]
    fn pages_that_are_no_longer_there_are_told_once() {
        let mut pages = Pages::default();
        for (page, time) in [(1, 1), (5, 1), (7, 1), (600, 1), (900, 10), (10_250, 1)] {
            pages.touched(&fault(page, 4, time), 100);
        }
        // Whether the one of 900 is there is not settled.
        assert_eq!(look(&mut pages, &[5..6, 6..6]), (vec![1, 600], vec![]));
        assert_eq!(look(&mut pages, &[]), (vec![5], vec![]));
        // It is touched again.
        pages.touched(&fault(5, 4, 3), 100);
        pages.touched(&fault(900, 4, 3), 100);
        assert_eq!(look(&mut pages, &[5..6, 6..6]), (vec![900], vec![]));
    }

    #[test]
    fn of_a_process_that_has_ended_nothing_is_told() {
        let mut pages = Pages::default();
        pages.touched(&fault(1, 4, 1), 100);
        pages.mapped(&mapping(1000, 10, 1));
        let found = pages.look(MonotonicNs(10), |_| false, |_, _| Ok(Vec::new()));
        assert_eq!(found.unwrap(), Found::default());
    }

    #[test]
    fn what_is_there_of_a_mapping_is_told_in_a_few_pages() {
        let mut pages = Pages::default();
        pages.mapped(&mapping(1000, 10, 1));
        pages.mapped(&mapping(2000, 1000, 1));
        // Room for another is found in what that one did not need.
        pages.mapped(&mapping(4000, 100, 1));
        pages.mapped(&mapping(4050, 20, 10));
        pages.mapped(&mapping(10_240, 10, 1));
        let resident = [1002..1004, 2000..2640, 4060..4065, 4080..4081, 10_240..10_250];
        let (gone, came) = look(&mut pages, &resident);
        assert_eq!(gone, [0; 0]);
        let of = |mapping: u64| came.iter().filter(move |(of, ..)| *of == mapping);
        assert_eq!(came.len(), 2 + 64 + 1 + 5);
        assert!(of(1000).eq(&[(1000, 1002, 1), (1000, 1003, 1)]), "{came:?}");
        assert!(of(4000).eq(&[(4000, 4080, 1)]), "{came:?}");
        assert!(of(4050).eq(&[4060, 4061, 4062, 4063, 4064].map(|page| (4050, page, 1))));
        assert!(of(2000).all(|&(_, page, pages)| pages == 10 && page.is_multiple_of(10)));
        // What was made before is told of no more; but whether its pages are still there is looked at.
        let (gone, came) = look(&mut pages, &[2000..2640, 4060..4065, 4080..4081]);
        assert_eq!((gone.as_slice(), came.len()), ([1002, 1003].as_slice(), 5));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut pages = Pages::default();
        for page in 0..3 * MOST as u64 {
            pages.touched(&fault(page, 4, 1), usize::MAX);
        }
        assert!((MOST / 2..=MOST).contains(&pages.touched.len()));
        pages.touched(&fault(0, 4, 1), 1000);
        pages.touched(&fault(1, 4, 1), 1000);
        assert!(pages.touched.len() <= MOST / 2 + 1);
        for number in 0..2 * MOST_MAPPINGS as u64 {
            let count = u32::try_from(number % 300).unwrap() + 1;
            pages.mapped(&mapping(number * 1000, count, 1));
        }
        assert_eq!(pages.mappings.len(), MOST_MAPPINGS);
        let mut largest: Vec<u64> = pages.mappings.iter().map(|mapping| mapping.pages).collect();
        largest.sort_unstable();
        assert!(largest.first() > Some(&40), "{largest:?}");
    }
}
