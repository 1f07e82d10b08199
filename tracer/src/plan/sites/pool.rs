//! The proof that a conditional jump is the one in a copy of pymalloc's allocation.
//!
//! What is looked for is the compare of `pool` with `pool->nextpool`:
//! <https://github.com/python/cpython/blob/v3.13.0/Objects/obmalloc.c#L2188-L2205>. Which register is the pool is
//! decided by where the other one comes from. Invariant: on every way that leads to the jump the compared value
//! was loaded from `pool->nextpool` and `pool->freeblock` was not written since; on the way that goes on, the block
//! is taken from `pool->freeblock`. What cannot be shown is an error, never a guess.

use iced_x86::{Code as Opcode, Instruction, Mnemonic, OpKind, Register};
use rustc_hash::FxHashSet;

use super::{
    code::Code,
    registers::{is_call, load, on_equality, register_move, store, word, writes_flags},
};

/// `offsetof(struct pool_header, freeblock)` and `nextpool`, the same since 3.4:
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_obmalloc.h#L268-L279>.
pub(super) const FREEBLOCK: i64 = 8;
const NEXTPOOL: i64 = 16;

/// Instructions looked at behind or before a jump, over all ways.
const BUDGET: usize = 400;
/// Instructions between a compare and its jump.
const MAX_BETWEEN: usize = 8;
/// How far before the load of `nextpool` stores are looked for.
const MAX_EARLIER: usize = 48;

const UNKNOWN: &str = "its operands are not known to be a pool and the pool's nextpool";

/// A jump that is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolJump {
    /// Holds the pool at the jump.
    pub(super) pool: Register,
    /// Where it leads if the pool is the only one of its class, so full or yet to be made.
    pub(super) slow: u64,
}

/// The ways of a conditional jump on equality: if equal, if not.
pub(super) fn equality_edges(jump: &Instruction) -> Option<(u64, u64)> {
    let (target, next) = (jump.near_branch_target(), jump.next_ip());
    let edges = |if_equal| if if_equal { (target, next) } else { (next, target) };
    on_equality(jump).map(edges)
}

/// Proves a jump.
pub(super) fn prove(code: &Code<'_>, jump: &Instruction) -> Result<PoolJump, &'static str> {
    let (slow, fast) = equality_edges(jump).ok_or("no jump on equality")?;
    let (compare, between) = compare_before(code, jump)?;
    let mut why = UNKNOWN;
    for (state, pool) in candidates(&compare).into_iter().flatten() {
        match Backward::new(code).prove(&compare, state) {
            Err(UNKNOWN) => {}
            Err(reason) => why = reason,
            Ok(_) if between.iter().any(|step| code.written(step).contains(pool)) => {
                why = "the pool's register is overwritten before the jump";
            }
            Ok(is_loaded) if is_loaded || takes_freeblock(code, fast, pool) => {
                return Ok(PoolJump { pool, slow });
            }
            Ok(_) => why = "the block is not taken from the pool behind the jump",
        }
    }
    Err(why)
}

/// The compare whose flags the jump looks at, and the instructions between.
fn compare_before(
    code: &Code<'_>,
    jump: &Instruction,
) -> Result<(Instruction, Vec<Instruction>), &'static str> {
    let mut between = Vec::new();
    let mut at = jump.ip();
    while between.len() <= MAX_BETWEEN {
        let [previous] = *code.predecessors(at) else {
            return Err("several ways lead to the jump behind its compare");
        };
        if writes_flags(&previous) {
            let is_compare = previous.mnemonic() == Mnemonic::Cmp;
            return is_compare
                .then_some((previous, between))
                .ok_or("not behind a compare");
        }
        at = previous.ip();
        between.push(previous);
    }
    Err("no compare near the jump")
}

/// The jump on equality that looks at the flags of a compare, and the instructions between.
pub(super) fn jump_behind(code: &Code<'_>, compare: &Instruction) -> Option<(Instruction, Vec<Instruction>)> {
    let mut between = Vec::new();
    let mut at = compare.next_ip();
    while between.len() <= MAX_BETWEEN {
        let instruction = code.at(at)?;
        if equality_edges(&instruction).is_some() {
            return Some((instruction, between));
        }
        if writes_flags(&instruction) || code.predecessors(at).len() != 1 {
            return None;
        }
        at = code.successors(&instruction).next?;
        between.push(instruction);
    }
    None
}

/// What is known backwards of a point in the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    /// Holds the pool there.
    pool: Register,
    /// What is yet to be shown.
    goal: Goal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Goal {
    /// That this register holds `pool->nextpool`.
    Next(Register),
    /// That this register holds the pool, too.
    Same(Register),
    /// Nothing: only stores are looked for, this many instructions further back.
    Done(usize),
}

/// The readings of a compare: what has to hold before it, and the register with the pool.
fn candidates(compare: &Instruction) -> [Option<(State, Register)>; 2] {
    let reading = |pool, goal| Some((State { pool, goal }, pool));
    match compare.code() {
        Opcode::Cmp_r64_rm64 | Opcode::Cmp_rm64_r64 => {}
        _ => return [None, None],
    }
    if let (OpKind::Register, OpKind::Register) = (compare.op0_kind(), compare.op1_kind()) {
        let (a, b) = (compare.op0_register(), compare.op1_register());
        return [reading(a, Goal::Next(b)), reading(b, Goal::Next(a))];
    }
    let register = match compare.op0_kind() {
        OpKind::Register => compare.op0_register(),
        _ => compare.op1_register(),
    };
    match word(compare) {
        Some(memory) if memory.displacement == NEXTPOOL && memory.base == register => {
            [reading(register, Goal::Done(MAX_EARLIER)), None]
        }
        Some(memory) if memory.displacement == NEXTPOOL => [
            reading(memory.base, Goal::Same(register)),
            reading(register, Goal::Same(memory.base)),
        ],
        _ => [None, None],
    }
}

/// A walk against the flow of control, along all ways.
struct Backward<'c, 'a> {
    code: &'c Code<'a>,
    seen: FxHashSet<(u64, State)>,
    left: usize,
    /// Whether `pool->freeblock` was loaded on the way.
    is_loaded: bool,
}

impl<'c, 'a> Backward<'c, 'a> {
    fn new(code: &'c Code<'a>) -> Self {
        Self {
            code,
            seen: FxHashSet::default(),
            left: BUDGET,
            is_loaded: false,
        }
    }

    /// Whether `state` holds before `compare` on every way; says whether the free block was loaded on the way.
    fn prove(mut self, compare: &Instruction, state: State) -> Result<bool, &'static str> {
        let mut ways = vec![(compare.ip(), state)];
        while let Some((at, state)) = ways.pop() {
            if !self.seen.insert((at, state)) {
                continue;
            }
            self.left = self.left.checked_sub(1).ok_or("too many ways lead there")?;
            let previous = self.code.predecessors(at);
            let is_done = matches!(state.goal, Goal::Done(_));
            if previous.is_empty() && !is_done {
                return Err("the function's beginning comes before the load of nextpool");
            }
            for instruction in previous {
                if let Some(before) = self.step_back(&instruction, state)? {
                    ways.push((instruction.ip(), before));
                }
            }
        }
        Ok(self.is_loaded)
    }

    /// What must hold before an instruction for `state` to hold behind it; `None` if nothing is left to be shown.
    fn step_back(&mut self, instruction: &Instruction, state: State) -> Result<Option<State>, &'static str> {
        let State { pool, goal } = state;
        if is_freeblock_store(instruction, pool) {
            return Err("pool->freeblock is written before the jump");
        }
        if load(instruction).is_some_and(|(_, from)| from.base == pool && from.displacement == FREEBLOCK) {
            self.is_loaded = true;
        }
        if let (Goal::Next(next), Some((to, from))) = (goal, load(instruction))
            && to == next
            && to != pool
            && from.displacement == NEXTPOOL
        {
            let goal = if from.base == pool {
                Goal::Done(MAX_EARLIER)
            } else {
                Goal::Same(from.base)
            };
            return Ok(Some(State { pool, goal }));
        }
        if let Some(moved) = register_move(instruction) {
            let source = |register| {
                if register == moved.to {
                    moved.from
                } else {
                    register
                }
            };
            let pool = source(pool);
            return Ok(Some(State {
                pool,
                goal: match goal {
                    Goal::Next(register) => Goal::Next(source(register)),
                    Goal::Same(register) if source(register) == pool => Goal::Done(MAX_EARLIER),
                    Goal::Same(register) => Goal::Same(source(register)),
                    Goal::Done(left) => match left.checked_sub(1) {
                        Some(left) => Goal::Done(left),
                        None => return Ok(None),
                    },
                },
            }));
        }
        let written = self.code.written(instruction);
        match goal {
            Goal::Done(_) if written.contains(pool) => Ok(None),
            Goal::Done(left) => Ok(left.checked_sub(1).map(|left| State {
                pool,
                goal: Goal::Done(left),
            })),
            Goal::Next(other) | Goal::Same(other) if written.contains(pool) || written.contains(other) => {
                Err(UNKNOWN)
            }
            Goal::Next(_) | Goal::Same(_) => Ok(Some(state)),
        }
    }
}

/// Whether it writes `pool->freeblock`.
pub(super) fn is_freeblock_store(instruction: &Instruction, pool: Register) -> bool {
    let is_there =
        word(instruction).is_some_and(|memory| memory.base == pool && memory.displacement == FREEBLOCK);
    is_there && instruction.op0_kind() == OpKind::Memory && instruction.mnemonic() != Mnemonic::Cmp
        || store(instruction).is_some_and(|(_, to)| to.base == pool && to.displacement == FREEBLOCK)
}

/// Whether every way from `start` on loads `pool->freeblock` while `pool` still holds the pool.
pub(super) fn takes_freeblock(code: &Code<'_>, start: u64, pool: Register) -> bool {
    let mut seen = FxHashSet::default();
    let mut ways = vec![(start, pool)];
    while let Some((at, pool)) = ways.pop() {
        if !seen.insert((at, pool)) {
            continue;
        }
        if seen.len() > BUDGET {
            return false;
        }
        let Some(instruction) = code.at(at) else {
            return false;
        };
        if load(&instruction).is_some_and(|(_, from)| from.base == pool && from.displacement == FREEBLOCK) {
            continue;
        }
        if is_call(&instruction) || code.written(&instruction).contains(pool) {
            return false;
        }
        let successors = code.successors(&instruction);
        let before = ways.len();
        ways.extend(successors.iter().map(|next| (next, pool)));
        if ways.len() == before {
            return false;
        }
    }
    true
}

/// Whether every way from `start` on calls `refill`, or jumps to it, before it calls anything else or returns.
pub(super) fn leads_to(code: &Code<'_>, start: u64, refill: u64) -> bool {
    let mut seen = FxHashSet::default();
    let mut ways = vec![start];
    while let Some(at) = ways.pop() {
        if at == refill || !seen.insert(at) {
            continue;
        }
        if seen.len() > BUDGET {
            return false;
        }
        let Some(instruction) = code.at(at) else {
            return false;
        };
        if is_call(&instruction) {
            if instruction.op0_kind() == OpKind::NearBranch64 && instruction.near_branch_target() == refill {
                continue;
            }
            return false;
        }
        let before = ways.len();
        ways.extend(code.successors(&instruction).iter());
        if ways.len() == before {
            return false;
        }
    }
    true
}
