//! The code of an image as a graph of instructions, decoded where it is looked at.
//!
//! Functions come from the call frame information, so a file without it has no functions here and hence no sites.
//! A compiler splits functions: control flow is followed along direct jumps, whatever range they lead to, and the
//! jumps between ranges are collected in one pass over the bytes. Invariant: total on hostile input; ranges do not
//! overlap, so decoding is bounded by the size of the code.

use std::{
    cell::{OnceCell, RefCell},
    ops::Range,
    rc::Rc,
};

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind};
use rustc_hash::FxHashMap;

use super::{
    body::{Body, jump_target},
    parts::Entries,
    search::Searched,
};
use crate::{
    elf::{Elf, FunctionTable, Pointer},
    units::VirtAddr,
};

/// Bytes of one range that are decoded; the evaluation loop has some 60,000.
const MAX_RANGE: usize = 1 << 20;

/// Functions of libc that do not return.
const NO_RETURN: [&str; 7] = [
    "abort",
    "exit",
    "_exit",
    "longjmp",
    "siglongjmp",
    "__stack_chk_fail",
    "__assert_fail",
];

/// An image's code.
pub(super) struct Code<'a> {
    elf: &'a Elf<'a>,
    functions: FunctionTable,
    bodies: RefCell<FxHashMap<u64, Rc<Body>>>,
    /// The one looked at last, which is nearly always the next one, too.
    last: RefCell<Option<Rc<Body>>>,
    /// Jumps that lead from one range to another: target and place, by target. Not confirmed.
    crossings: OnceCell<Vec<(u64, u64)>>,
    entries: OnceCell<Entries>,
    pub(super) searched: OnceCell<Searched>,
    pub(super) info: RefCell<InstructionInfoFactory>,
}

/// Where an instruction leads, within the code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Successors {
    /// The next instruction, if control can get there.
    pub(super) next: Option<u64>,
    /// The target of a direct jump.
    pub(super) jump: Option<u64>,
}

impl Successors {
    pub(super) fn iter(self) -> impl Iterator<Item = u64> {
        self.next.into_iter().chain(self.jump)
    }
}

impl<'a> Code<'a> {
    pub(super) fn new(elf: &'a Elf<'a>) -> Self {
        Self {
            elf,
            functions: elf.functions(),
            bodies: RefCell::default(),
            last: RefCell::default(),
            crossings: OnceCell::new(),
            entries: OnceCell::new(),
            searched: OnceCell::new(),
            info: RefCell::new(InstructionInfoFactory::new()),
        }
    }

    pub(super) fn elf(&self) -> &'a Elf<'a> {
        self.elf
    }

    pub(super) fn functions(&self) -> &FunctionTable {
        &self.functions
    }

    pub(super) fn entries(&self) -> &Entries {
        self.entries.get_or_init(|| self.find_entries())
    }

    /// The part of a function that `address` is in.
    pub(super) fn function_at(&self, address: u64) -> Option<Range<u64>> {
        self.functions.at(VirtAddr(address))
    }

    /// Whether it is the first address of a function, or of a part of one.
    pub(super) fn is_start(&self, address: u64) -> bool {
        self.function_at(address)
            .is_some_and(|range| range.start == address)
    }

    /// That part, decoded.
    pub(super) fn body(&self, address: u64) -> Option<Rc<Body>> {
        if let Some(body) = &*self.last.borrow()
            && body.range().contains(&address)
        {
            return Some(Rc::clone(body));
        }
        let body = self.find_body(address)?;
        *self.last.borrow_mut() = Some(Rc::clone(&body));
        Some(body)
    }

    fn find_body(&self, address: u64) -> Option<Rc<Body>> {
        let range = self.function_at(address)?;
        if let Some(body) = self.bodies.borrow().get(&range.start) {
            return Some(Rc::clone(body));
        }
        let start = VirtAddr(range.start);
        if !self.elf.is_code(start) {
            return None;
        }
        let length = usize::try_from(range.end - range.start).ok()?.min(MAX_RANGE);
        let bytes = self.elf.bytes_from(start)?;
        let body = Rc::new(Body::decode(&range, bytes.get(..length).unwrap_or(bytes)));
        self.bodies.borrow_mut().insert(start.get(), Rc::clone(&body));
        Some(body)
    }

    /// The instruction that begins at `address`, seen from its function's start on.
    pub(super) fn at(&self, address: u64) -> Option<Instruction> {
        self.body(address)?.at(address).copied()
    }

    /// The instruction that the byte at `address` belongs to.
    pub(super) fn over(&self, address: u64) -> Option<Instruction> {
        self.body(address)?.over(address).copied()
    }

    /// Where a direct call or jump leads, PLT stubs resolved, or an indirect one through a fixed slot of the GOT.
    pub(super) fn target(&self, instruction: &Instruction) -> Option<Pointer<'a>> {
        match instruction.op0_kind() {
            OpKind::NearBranch64 => Some(self.elf.call_target(VirtAddr(instruction.near_branch_target()))),
            OpKind::Memory
                if instruction.is_ip_rel_memory_operand()
                    && matches!(
                        instruction.flow_control(),
                        FlowControl::IndirectCall | FlowControl::IndirectBranch
                    ) =>
            {
                let slot = VirtAddr(instruction.ip_rel_memory_address());
                // What a writable word holds is no constant, unless the loader puts it there.
                match self.elf.pointer_at(slot)? {
                    pointer @ Pointer::Import(_) => Some(pointer),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The name of the other file's function that a call or jump leads to.
    pub(super) fn import(&self, instruction: &Instruction) -> Option<&'a str> {
        match self.target(instruction)? {
            Pointer::Import(name) => Some(name),
            _ => None,
        }
    }

    /// Where control goes from an instruction. A jump to another file's function leads nowhere.
    pub(super) fn successors(&self, instruction: &Instruction) -> Successors {
        let next = Some(instruction.next_ip());
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::IndirectCall => Successors { next, jump: None },
            FlowControl::Call => {
                let ends = self
                    .import(instruction)
                    .is_some_and(|name| NO_RETURN.contains(&name));
                Successors {
                    next: next.filter(|_| !ends),
                    jump: None,
                }
            }
            FlowControl::ConditionalBranch => Successors {
                next,
                jump: jump_target(instruction),
            },
            FlowControl::UnconditionalBranch => Successors {
                next: None,
                jump: jump_target(instruction),
            },
            _ => Successors::default(),
        }
    }

    /// The instructions that lead to the one at `address`, apart from indirect jumps (of switches) and calls. Padding
    /// before a place that is jumped to does not.
    pub(super) fn predecessors(&self, address: u64) -> Vec<Instruction> {
        let Some(body) = self.body(address) else {
            return Vec::new();
        };
        let leads_here = |instruction: &Instruction| {
            self.successors(instruction)
                .iter()
                .any(|successor| successor == address)
        };
        let is_padding =
            |nop: &Instruction| nop.mnemonic() == Mnemonic::Nop && self.predecessors(nop.ip()).is_empty();
        let before = body
            .before(address)
            .filter(|before| before.next_ip() == address && leads_here(before) && !is_padding(before));
        let mut found: Vec<Instruction> = before.copied().into_iter().collect();
        let mut add = |instruction: Instruction| {
            if leads_here(&instruction) && found.iter().all(|known| known.ip() != instruction.ip()) {
                found.push(instruction);
            }
        };
        body.jumps_to(address)
            .filter_map(|from| body.at(from).copied())
            .for_each(&mut add);
        self.jumps_into(address..address.saturating_add(1))
            .filter_map(|(_, from)| self.over(from))
            .for_each(&mut add);
        found
    }

    /// Jumps from other ranges into `range`: target and place. A place may turn out not to be an instruction's.
    pub(super) fn jumps_into(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
        let crossings = self.crossings.get_or_init(|| self.find_crossings());
        let first = crossings.partition_point(|(target, _)| *target < range.start);
        let rest = crossings.get(first..).unwrap_or_default();
        rest.iter()
            .copied()
            .take_while(move |(target, _)| *target < range.end)
    }

    /// The 4-byte displacements behind the opcodes of `jmp` and `jcc` that lead from one range into another. Jumps
    /// of one byte between ranges are not looked for: parts of a function are far apart.
    fn find_crossings(&self) -> Vec<(u64, u64)> {
        let ranges = self.functions.ranges();
        let mut found = Vec::new();
        for segment in self.elf.segments().iter().filter(|segment| segment.executable) {
            let Some(bytes) = self.elf.bytes_from(segment.address) else {
                continue;
            };
            let start = segment.address.get();
            let span = bytes.len() as u64;
            let mut own = ranges.partition_point(|(_, end)| *end <= start);
            for index in memchr::memchr2_iter(0xe9, 0x0f, bytes) {
                let (displacement, length) = match bytes.get(index..).and_then(<[u8]>::first_chunk::<6>) {
                    Some([0xe9, displacement @ .., _]) => (displacement, 5),
                    Some([0x0f, 0x80..=0x8f, displacement @ ..]) => (displacement, 6),
                    _ => continue,
                };
                let from = start.wrapping_add(index as u64);
                let displacement = i64::from(i32::from_le_bytes(*displacement));
                let target = from.wrapping_add(length).wrapping_add_signed(displacement);
                if target.wrapping_sub(start) >= span {
                    continue;
                }
                while ranges.get(own).is_some_and(|(_, end)| *end <= from) {
                    own += 1;
                }
                let is_own = ranges
                    .get(own)
                    .is_some_and(|(start, end)| (*start..*end).contains(&target));
                if !is_own {
                    found.push((target, from));
                }
            }
        }
        found.sort_unstable();
        found
    }
}
