//! Whether an instruction is reached only behind certain jumps.

use iced_x86::Instruction;
use rustc_hash::FxHashSet;

use super::super::code::Code;
use crate::units::VirtAddr;

/// Instructions looked at; copies have some hundred.
const MAX_VISITED: usize = 4000;

/// One way on from a conditional jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Edge {
    /// The jump.
    pub(super) from: VirtAddr,
    /// Where it goes on.
    pub(super) to: VirtAddr,
}

/// Whether every way to `address` takes one of the edges, or begins at one of the `entries`.
pub(super) fn only_through(code: &Code<'_>, address: VirtAddr, edges: &[Edge], entries: &[VirtAddr]) -> bool {
    let edges: FxHashSet<Edge> = edges.iter().copied().collect();
    back(code, address, entries, &mut |_, edge| edges.contains(&edge))
}

/// Goes back from `address` on all ways, until `is_end` says so of an instruction and the way on from it, or one of the
/// `entries` is reached; false if a way begins elsewhere.
///
/// A way begins at the start of a function, and where nothing is known to lead to (the case of a switch).
pub(super) fn back(
    code: &Code<'_>,
    address: VirtAddr,
    entries: &[VirtAddr],
    is_end: &mut dyn FnMut(&Instruction, Edge) -> bool,
) -> bool {
    let mut seen = FxHashSet::default();
    let mut open = vec![address];
    while let Some(address) = open.pop() {
        if entries.contains(&address) || !seen.insert(address) {
            continue;
        }
        let before = code.predecessors(address.get());
        if before.is_empty() || code.begins(address.get()) || seen.len() > MAX_VISITED {
            return false;
        }
        for instruction in before {
            let from = VirtAddr(instruction.ip());
            if !is_end(&instruction, Edge { from, to: address }) {
                open.push(from);
            }
        }
    }
    true
}
