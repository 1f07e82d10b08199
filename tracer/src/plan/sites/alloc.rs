//! Pymalloc's allocations: every copy of the code that takes a block from a pool, and the slow path they share.
//!
//! The slow path is `allocate_from_new_pool`, which gcc leaves out of line:
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c#L2080>. So who calls it is a copy, and behind
//! the compare that decides on the call stands the site. Where a compiler inlined it, see `init`.

use iced_x86::Instruction;
use rustc_hash::FxHashSet;
use tracer_ebpf::site::{Operand, Role, flag};

use super::{
    Sites,
    code::Code,
    init::{self, Init},
    pool::{PoolJump, equality_edges, leads_to, prove},
    registers::{is_call, operand},
    result, taken, within,
};
use crate::{
    elf::Pointer,
    plan::{Covered, Half, PlannedSite, Reference, ReferenceKind},
    python::ImageFacts,
    units::VirtAddr,
};

/// What stands in a copy of the allocation.
pub(super) const COPIES: [Role; 2] = [Role::PoolAlloc, Role::PoolTaken];

/// Instructions looked at before a call of the slow path.
const BUDGET: usize = 120;
/// The same, where the slow path is inlined.
const INLINED_BUDGET: usize = 1000;
/// Instructions followed in the allocation functions.
const LIMIT: usize = 6000;
/// Calls followed from them.
const MAX_DEPTH: usize = 1;

/// Sites and references of all copies; `None` if the allocation functions have no such compare.
pub(super) fn find(code: &Code<'_>, own: &[(Instruction, PoolJump)], refill: Option<u64>) -> Option<Sites> {
    let mut finder = Finder {
        code,
        refill,
        found: Sites::default(),
    };
    if let Some(refill) = refill.map(VirtAddr) {
        let hits = code.references(&[refill]);
        finder.refills(refill, hits.of(refill));
        for instruction in hits.of(refill) {
            let covered = finder.call(instruction, refill.get());
            finder.reference(instruction, covered);
        }
        finder.found.outside(ReferenceKind::Refill, &hits);
    }
    for init in init::all(code) {
        if let Some(covered) = finder.set_up(&init) {
            finder.reference(&init.jump, covered);
        }
    }
    let mut found = finder.found;
    if !found.has(&COPIES) {
        return None;
    }
    for (jump, proven) in own {
        let site = site_of(code, jump, proven);
        if site.is_none_or(|own| found.sites.iter().all(|site| site.address != own.address)) {
            found.references.push(Reference {
                address: VirtAddr(jump.ip()),
                kind: ReferenceKind::Refill,
                covered: Covered::Unmatched("the slow path behind this compare is not known"),
            });
        }
    }
    Some(found)
}

/// The site of the copy that a proven jump is in: where it has taken the block, or at the jump itself.
fn site_of(code: &Code<'_>, jump: &Instruction, proven: &PoolJump) -> Option<PlannedSite> {
    if let Some(taken) = taken::find(code, jump, proven.pool)
        && let operands = [taken.block, taken.class]
        && let Some(site) = within(code, Role::PoolTaken, &taken.jump, 0, operands)
    {
        return Some(site);
    }
    let operands = [operand(proven.pool)?, Operand::default()];
    within(code, Role::PoolAlloc, jump, flag::IF_NOT_ZERO, operands)
}

/// The proven jumps in the allocation functions themselves, and in what they call directly.
pub(super) fn own_jumps(facts: &ImageFacts, code: &Code<'_>) -> Vec<(Instruction, PoolJump)> {
    let [malloc, calloc, realloc, _] = facts.functions.obj;
    let is_other = |target: u64| facts.functions.raw.contains(&VirtAddr(target));
    let mut seen = FxHashSet::default();
    let mut found = Vec::new();
    // Place, and how many calls deep.
    let mut ways = vec![(malloc.get(), 0), (calloc.get(), 0), (realloc.get(), 0)];
    while let Some((at, depth)) = ways.pop() {
        if seen.len() > LIMIT || is_other(at) || !seen.insert(at) {
            continue;
        }
        let Some(instruction) = code.at(at) else {
            continue;
        };
        if equality_edges(&instruction).is_some()
            && let Ok(jump) = prove(code, &instruction)
        {
            found.push((instruction, jump));
        }
        if instruction.is_call_near()
            && depth < MAX_DEPTH
            && let Some(Pointer::Address(target)) = code.target(&instruction)
        {
            ways.push((target.get(), depth + 1));
        }
        ways.extend(code.successors(&instruction).iter().map(|next| (next, depth)));
    }
    found
}

/// `allocate_from_new_pool`: the one function that is called behind the proven jumps.
pub(super) fn refill(code: &Code<'_>, jumps: &[(Instruction, PoolJump)]) -> Option<u64> {
    let mut called: Vec<u64> = jumps
        .iter()
        .filter_map(|(_, jump)| called_from(code, jump.slow))
        .collect();
    called.sort_unstable();
    called.dedup();
    match *called {
        [refill] => Some(refill),
        _ => None,
    }
}

/// The function that is called first, on the straight way from `at` on.
fn called_from(code: &Code<'_>, mut at: u64) -> Option<u64> {
    for _ in 0..BUDGET {
        let instruction = code.at(at)?;
        if is_call(&instruction) {
            return match code.target(&instruction)? {
                Pointer::Address(target) => Some(target.get()),
                _ => None,
            };
        }
        let successors = code.successors(&instruction);
        match (successors.next, successors.jump) {
            (Some(next), None) => at = next,
            (None, Some(target)) if code.is_start(target) => return Some(target),
            (None, Some(target)) => at = target,
            _ => return None,
        }
    }
    None
}

struct Finder<'c, 'a> {
    code: &'c Code<'a>,
    refill: Option<u64>,
    found: Sites,
}

/// What a walk back from the slow path ends at.
enum Origin {
    /// Proven jumps only.
    Jumps(Vec<(Instruction, PoolJump)>),
    /// The beginning of `allocate_from_new_pool`.
    Refill,
    Unknown(&'static str),
}

impl Finder<'_, '_> {
    fn reference(&mut self, instruction: &Instruction, covered: Covered) {
        self.found.references.push(Reference {
            address: VirtAddr(instruction.ip()),
            kind: ReferenceKind::Refill,
            covered,
        });
    }

    /// The acquisitions of pools: where the callers of the slow path look at its result, if all of them can. That is one trap;
    /// a probe on its return is two, or more where no instruction at its beginning is emulated.
    fn refills<'h>(&mut self, refill: VirtAddr, callers: impl Iterator<Item = &'h Instruction>) {
        if let Some(sites) = self.behind_calls(callers) {
            for site in sites {
                self.found.add(site);
            }
            return;
        }
        match PlannedSite::on_function(self.code.elf(), Role::PoolRefill, refill, Half::ReturnOnly, 0) {
            Ok(site) => self.found.add(site),
            Err(note) => self.found.notes.push(note),
        }
    }

    /// A place behind each call where its result is looked at; `None` if one has no place of its own. A jump in the place of a
    /// call is probed as if a function began there: the return address is on top of the stack.
    fn behind_calls<'h>(&self, callers: impl Iterator<Item = &'h Instruction>) -> Option<Vec<PlannedSite>> {
        let mut sites: Vec<PlannedSite> = Vec::new();
        for call in callers {
            let site = if call.is_jmp_short_or_near() {
                let at = VirtAddr(call.ip());
                PlannedSite::on_function(self.code.elf(), Role::PoolRefill, at, Half::ReturnOnly, 0)
                    .ok()
                    .filter(|site| site.address == at)?
            } else {
                let place = result::place(self.code, call).ok().filter(|_| is_call(call))?;
                let operands = [place.operand, Operand::default()];
                within(self.code, Role::PoolRefill, &place.instruction, 0, operands)?
            };
            let is_taken = sites.iter().any(|known| known.address == site.address);
            if is_taken {
                return None;
            }
            sites.push(site);
        }
        Some(sites)
    }

    /// One call of the slow path: every way that leads to it must come through a proven jump.
    fn call(&mut self, call: &Instruction, refill: u64) -> Covered {
        let is_branch = is_call(call) || call.is_jmp_short_or_near() || call.is_jcc_short_or_near();
        if !is_branch {
            return Covered::Unmatched("the address of allocate_from_new_pool is used otherwise");
        }
        let start = if call.is_jcc_short_or_near() {
            vec![(*call, refill)]
        } else {
            self.predecessors(call.ip())
        };
        match self.origin(start, false) {
            Origin::Jumps(jumps)
                if jumps
                    .iter()
                    .all(|(_, jump)| leads_to(self.code, jump.slow, refill)) =>
            {
                self.add(&jumps)
            }
            Origin::Jumps(_) => {
                Covered::Unmatched("the slow way does not always call allocate_from_new_pool")
            }
            Origin::Refill => Covered::Unmatched("allocate_from_new_pool calls itself"),
            Origin::Unknown(why) => Covered::Unmatched(why),
        }
    }

    /// One set-up of a pool; `None` if it is the one in `allocate_from_new_pool`.
    fn set_up(&mut self, init: &Init) -> Option<Covered> {
        let jumps = match self.origin(vec![(init.jump, init.jump.next_ip())], true) {
            Origin::Jumps(jumps) => jumps,
            Origin::Refill => return None,
            Origin::Unknown(why) => return Some(Covered::Unmatched(why)),
        };
        let place = operand(init.pool).zip(operand(init.class));
        let site =
            place.and_then(|(pool, class)| within(self.code, Role::PoolInit, &init.jump, 0, [pool, class]));
        let Some(site) = site else {
            return Some(Covered::Unmatched("the jump is not in the file"));
        };
        if let Covered::Unmatched(why) = self.add(&jumps) {
            return Some(Covered::Unmatched(why));
        }
        let address = site.address;
        self.found.add(site);
        Some(Covered::Site(address))
    }

    /// Walks back from `ways`, each an instruction and the one that it leads to. Where the slow path is inlined, calls
    /// are part of it.
    fn origin(&self, mut ways: Vec<(Instruction, u64)>, through_calls: bool) -> Origin {
        let mut jumps = Vec::new();
        let mut why = "a way to the slow path comes from where no compare is known";
        let mut seen = FxHashSet::default();
        let budget = if through_calls { INLINED_BUDGET } else { BUDGET };
        if ways.is_empty() {
            return Origin::Unknown("nothing is known to lead to the slow path");
        }
        while let Some((instruction, leads_to_here)) = ways.pop() {
            if !seen.insert((instruction.ip(), leads_to_here)) {
                continue;
            }
            if seen.len() > budget {
                return Origin::Unknown("the compare of the pools is too far from the slow path");
            }
            if is_call(&instruction) && !through_calls {
                return Origin::Unknown("another call comes before the compare of the pools");
            }
            if let Some((equal, other)) = equality_edges(&instruction)
                && equal == leads_to_here
                && equal != other
            {
                match prove(self.code, &instruction) {
                    Ok(jump) => {
                        jumps.push((instruction, jump));
                        continue;
                    }
                    Err(reason) if !through_calls => why = reason,
                    Err(_) => {}
                }
            }
            if Some(instruction.ip()) == self.refill {
                return Origin::Refill;
            }
            let before = self.predecessors(instruction.ip());
            if before.is_empty() {
                return Origin::Unknown(why);
            }
            ways.extend(before);
        }
        Origin::Jumps(jumps)
    }

    /// Sets the sites of jumps; the first of them covers what they lead to.
    fn add(&mut self, jumps: &[(Instruction, PoolJump)]) -> Covered {
        let mut first = None;
        for (instruction, jump) in jumps {
            let Some(site) = site_of(self.code, instruction, jump) else {
                return Covered::Unmatched("the jump is not in the file");
            };
            first = first.or(Some(site.address));
            self.found.add(site);
        }
        first.map_or(
            Covered::Unmatched("nothing is known to lead to the slow path"),
            Covered::Site,
        )
    }

    fn predecessors(&self, address: u64) -> Vec<(Instruction, u64)> {
        let before = self.code.predecessors(address).into_iter();
        before.map(|instruction| (instruction, address)).collect()
    }
}
