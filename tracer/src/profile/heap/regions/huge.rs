//! Faults that brought a huge page: one stands for 512 pages.
//!
//! A fault does not tell which of the two it was. The kernel says how much of a region is in huge pages, and there is no second fault
//! in such a page unless it was made of small ones later. So it is first what was touched once in its 2 MiB that is taken for one, as
//! far as the region has as many, and then what was touched more often. Invariant: no 2 MiB get more than 2 MiB by this.

use super::{PAGE, Touch};
use crate::ingest::Region;

/// Bytes of a huge page.
const HUGE_PAGE: u64 = 2 << 20;

/// Sets how many bytes each touch of a region stands for. The pages are those of the region, in order.
pub(super) fn widen(region: &Region, pages: &mut [(u64, Touch)]) {
    if region.huge < HUGE_PAGE {
        return;
    }
    let place = |page: u64| page / HUGE_PAGE * HUGE_PAGE;
    // A huge page lies in one mapping as a whole.
    let is_inside = |page| {
        let first = place(page);
        first >= region.start && first.saturating_add(HUGE_PAGE) <= region.end
    };
    let (mut lone, mut others): (Vec<_>, Vec<_>) = pages
        .chunk_by_mut(|(one, _), (other, _)| place(*one) == place(*other))
        .filter(|touches| touches.first().is_some_and(|&(page, _)| is_inside(page)))
        .partition(|touches| touches.len() == 1);
    let there = (region.huge / HUGE_PAGE) as f64;
    // Such a fault stands for others, each of which may have brought one.
    let wanted: u64 = lone
        .iter()
        .flat_map(|touches| touches.iter())
        .map(|(_, touch)| u64::from(touch.weight))
        .sum();
    let wanted = wanted as f64;
    for (_, touch) in lone.iter_mut().flat_map(|touches| touches.iter_mut()) {
        let pages = f64::from(touch.weight) * (there / wanted).min(1.0);
        touch.add(pages * (HUGE_PAGE - PAGE) as f64);
    }
    let share = (there - wanted).max(0.0) / others.len() as f64;
    for touches in &mut others {
        let touched: u64 = touches.iter().map(|(_, touch)| touch.bytes).sum();
        let missing = HUGE_PAGE.saturating_sub(touched) as f64 * share.min(1.0);
        for (_, touch) in touches.iter_mut() {
            touch.add(missing * touch.bytes as f64 / touched as f64);
        }
    }
}
