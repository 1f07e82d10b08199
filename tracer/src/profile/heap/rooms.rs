//! Who made large mappings: what comes to one without a page fault, as it is moved there or the kernel is asked to fill it, is theirs.
//!
//! Apart from `mapped`, which knows of those that can be blocks. Readings tell what is resident of a mapping, and page faults, of which
//! each stands for others, what was touched of that: the rest came by itself, if it is more than chance leaves out. Where there are huge
//! pages nothing is known, since a fault may have brought one. Invariant: a bounded number is remembered.

use rustc_hash::FxHashMap;

use super::faults::Faults;
use crate::{
    ingest::{Came, PAGE, Region, event::Fault},
    profile::live::TallyIndex,
    units::MonotonicNs,
};

/// As many as a reading can tell of, many times over.
const MOST: usize = 1 << 12;
/// What is missing is more than so many times what chance leaves out.
const SIGMAS: u64 = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    /// By the address.
    made: FxHashMap<u64, Room>,
    /// When the last reading began.
    last: MonotonicNs,
}

/// A mapping.
#[derive(Clone, Copy, Debug)]
struct Room {
    end: u64,
    tally: TallyIndex,
    time: MonotonicNs,
}

impl Rooms {
    /// One was made.
    pub(super) fn add(&mut self, event: &Fault, tally: TallyIndex) {
        let start = event.addr.0;
        if self.made.len() < MOST || self.made.contains_key(&start) {
            let room = Room {
                end: start.saturating_add(u64::from(event.weight).saturating_mul(PAGE)),
                tally,
                time: event.time,
            };
            self.made.insert(start, room);
        }
    }

    /// Tells `faults` whose those pages are that a reading found in mappings, and that nobody touched. Of a mapping that is older than the
    /// reading before the next one does not tell.
    pub(super) fn take(
        &mut self,
        began: MonotonicNs,
        regions: &[Region],
        came: &[Came],
        faults: &mut Faults,
    ) {
        let before = std::mem::replace(&mut self.last, began);
        if !self.made.is_empty() {
            self.forget_older(faults);
        }
        let (mut touched, mut coarsest) = (Vec::new(), 0);
        if !came.is_empty() {
            touched = faults.in_order();
            coarsest = faults.coarsest(before);
        }
        let mut of_tally: FxHashMap<TallyIndex, Group<'_>> = FxHashMap::default();
        for pages in came.chunk_by(|one, other| one.mapping == other.mapping) {
            let (Some(first), Some(last)) = (pages.first(), pages.last()) else {
                continue;
            };
            let Some(&room) = self.made.get(&first.mapping) else {
                continue;
            };
            let start = first.page;
            let end = last.page.saturating_add(u64::from(last.pages) * PAGE);
            let overlaps = |region: &Region| region.start < end && start < region.end;
            if regions.iter().any(|region| region.huge > 0 && overlaps(region)) {
                continue;
            }
            let from = touched.partition_point(|&(page, _)| page < start);
            let inside = touched.get(from..).unwrap_or_default().iter();
            let inside = inside.take_while(|(page, _)| *page < end);
            let group = Group {
                resident: pages.iter().map(|came| u64::from(came.pages)).sum(),
                touched: inside.map(|(_, weight)| weight).sum(),
                coarsest,
                pages: vec![(room.time, pages)],
            };
            if group.missing().is_some() {
                group.give(room.tally, faults);
            } else {
                of_tally.entry(room.tally).or_default().add(group);
            }
        }
        // Of many small ones together more can be told.
        for (tally, group) in of_tally {
            group.give(tally, faults);
        }
        self.made.retain(|_, room| room.time >= before);
    }

    /// Room for a mapping was free: what was touched there before is no more.
    fn forget_older(&self, faults: &mut Faults) {
        let touched = faults.in_order();
        for (&start, room) in &self.made {
            let from = touched.partition_point(|&(page, _)| page < start);
            let inside = touched.get(from..).unwrap_or_default().iter();
            let inside = inside.map(|&(page, _)| page);
            faults.forget(inside.take_while(|page| *page < room.end), room.time);
        }
    }
}

/// Mappings of which is told at once. In pages.
#[derive(Debug, Default)]
struct Group<'a> {
    resident: u64,
    /// What faults in them stand for.
    touched: u64,
    /// What one fault stands for at most.
    coarsest: u64,
    pages: Vec<(MonotonicNs, &'a [Came])>,
}

impl<'a> Group<'a> {
    fn add(&mut self, other: Group<'a>) {
        self.resident = self.resident.saturating_add(other.resident);
        self.touched = self.touched.saturating_add(other.touched);
        self.coarsest = other.coarsest;
        self.pages.extend(other.pages);
    }

    /// What nobody touched. Each fault tells of one page in so many as it stands for, so that the number that was seen has a deviation of its
    /// root.
    fn missing(&self) -> Option<u64> {
        let missing = self.resident.saturating_sub(self.touched);
        let chance = u128::from(self.resident) * u128::from(self.coarsest.max(1));
        let is_more = u128::from(missing).pow(2) > u128::from(SIGMAS.pow(2)) * chance;
        is_more.then_some(missing)
    }

    fn give(&self, tally: TallyIndex, faults: &mut Faults) {
        let Some(missing) = self.missing() else {
            return;
        };
        // In 128 bits: a capture can say anything.
        let share = |pages: u64| u128::from(pages) * u128::from(missing) / u128::from(self.resident);
        // Added up, so that no rounding is lost.
        let mut sum = 0;
        for &(time, pages) in &self.pages {
            for came in pages {
                let next = sum + u64::from(came.pages);
                let own = u32::try_from(share(next) - share(sum)).unwrap_or(u32::MAX);
                sum = next;
                if own > 0 {
                    faults.came(came.page, own, tally, time);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::event::FaultKind;

    const START: u64 = 0x7f00_0000_0000;
    /// Pages of the mapping.
    const PAGES: u32 = 400;
    const MAPPER: TallyIndex = 7;

    fn room(addr: u64, time: u64) -> Fault {
        Fault::of_test(FaultKind::Room, addr, PAGES, time)
    }

    /// What stands under the mapper in pages if a mapping was made at 5, and faults at 6, each with the page and what it stands for, were
    /// seen; `resident` pages of it are resident, of which a reading tells every tenth.
    fn came(touches: &[(u64, u32)], resident: u64) -> u64 {
        came_of(1, touches, resident, 0)
    }

    /// The same of so many mappings, side by side; so many bytes there are in huge pages.
    fn came_of(count: u64, touches: &[(u64, u32)], resident: u64, huge: u64) -> u64 {
        let (mut rooms, mut faults) = (Rooms::default(), Faults::default());
        let starts = (0..count).map(|number| START + number * u64::from(PAGES) * PAGE);
        for start in starts.clone() {
            rooms.add(&room(start, 5), MAPPER);
        }
        for &(page, weight) in touches {
            faults.touched(START + page * PAGE, weight, 8, MonotonicNs(6));
        }
        let pages = |mapping| {
            (0..resident).step_by(10).map(move |page| Came {
                mapping,
                page: mapping + page * PAGE,
                pages: 10,
            })
        };
        let told: Vec<Came> = starts.flat_map(pages).collect();
        let regions = [(START - 1, 0), (START + 5 * PAGE, huge)].map(|(start, huge)| Region {
            start,
            end: start + PAGE,
            anonymous: PAGE,
            huge,
        });
        rooms.take(MonotonicNs(7), &regions, &told, &mut faults);
        let all = faults.all();
        let of_mapper = all.iter().filter(|touch| touch.tally == MAPPER);
        of_mapper.map(|touch| u64::from(touch.pages)).sum()
    }

    #[test]
    fn what_nobody_touched_is_of_who_made_the_mapping() {
        assert_eq!(came(&[], 400), 400);
        assert_eq!(came(&[], 200), 200);
        // A page that was touched stays whose it is, and what it stands for, too.
        assert_eq!(came(&[(0, 20)], 400), 400 - 20 - 9);
        let quarter: Vec<(u64, u32)> = (0..25).map(|number| (number * 4, 4)).collect();
        assert_eq!(came(&quarter, 400), 300 - 5 * 7, "five of forty were touched");
        assert_eq!(came(&[(1, 4)], 400), 400 - 4, "no rounding is lost");
        // Outside of it.
        assert_eq!(came(&[(400, 20)], 400), 400);
    }

    #[test]
    fn what_chance_can_leave_out_is_nobodys() {
        let most: Vec<(u64, u32)> = (0..70).map(|number| (number * 4, 4)).collect();
        assert_eq!(came(&most, 400), 0);
        assert_eq!(came(&[(0, 40)], 400), 0);
        assert_eq!(came(&[(1200, 20)], 310), 0);
        assert_eq!(came_of(3, &[(1200, 20)], 310, 0), 930, "three of them tell more");
    }

    #[test]
    fn what_was_touched_where_there_was_another_mapping_is_no_more() {
        let (mut rooms, mut faults) = (Rooms::default(), Faults::default());
        for (page, time) in [(0, 4), (1, 5), (2, 6), (399, 4), (400, 4)] {
            faults.touched(START + page * PAGE, 4, 8, MonotonicNs(time));
        }
        rooms.add(&room(START, 5), MAPPER);
        rooms.take(MonotonicNs(7), &[], &[], &mut faults);
        let left: Vec<u64> = faults
            .in_order()
            .iter()
            .map(|(page, _)| (page - START) / PAGE)
            .collect();
        assert_eq!(left, [1, 2, 400]);
    }

    #[test]
    fn of_huge_pages_faults_do_not_tell() {
        assert_eq!(came_of(1, &[], 400, 2 << 20), 0);
    }

    #[test]
    fn readings_tell_of_what_is_newer_than_the_one_before() {
        let (mut rooms, mut faults) = (Rooms::default(), Faults::default());
        for number in 0..2 * MOST as u64 {
            rooms.add(&room(number << 20, 1), MAPPER);
        }
        assert_eq!(rooms.made.len(), MOST);
        rooms.take(MonotonicNs(2), &[], &[], &mut faults);
        rooms.take(MonotonicNs(3), &[], &[], &mut faults);
        assert!(rooms.made.is_empty());
    }
}
