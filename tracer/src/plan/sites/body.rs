//! One contiguous part of a function, decoded.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

/// The instructions of one range, by address.
#[derive(Debug)]
pub(super) struct Body {
    range: Range<u64>,
    instructions: Vec<Instruction>,
    /// Direct jumps within: target and place, by target.
    jumps: Vec<(u64, u64)>,
}

impl Body {
    /// Decodes from the start of the range to its end, or to the first bytes that are no instruction.
    pub(super) fn decode(range: &Range<u64>, bytes: &[u8]) -> Self {
        let mut decoder = Decoder::with_ip(64, bytes, range.start, DecoderOptions::NONE);
        let mut instructions = Vec::with_capacity(bytes.len() / 4);
        let mut jumps = Vec::new();
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                break;
            }
            if let Some(target) = jump_target(&instruction)
                && range.contains(&target)
            {
                jumps.push((target, instruction.ip()));
            }
            instructions.push(instruction);
        }
        jumps.sort_unstable();
        Self {
            range: range.clone(),
            instructions,
            jumps,
        }
    }

    /// The whole range, also what of it could not be decoded.
    pub(super) fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// The instruction that begins at `address`.
    pub(super) fn at(&self, address: u64) -> Option<&Instruction> {
        self.over(address)
            .filter(|instruction| instruction.ip() == address)
    }

    /// The instruction that the byte at `address` belongs to.
    pub(super) fn over(&self, address: u64) -> Option<&Instruction> {
        let after = self
            .instructions
            .partition_point(|instruction| instruction.ip() <= address);
        let instruction = self.instructions.get(after.checked_sub(1)?)?;
        (address < instruction.next_ip()).then_some(instruction)
    }

    /// The instruction that stands before the one at `address`, whether it leads there or not.
    pub(super) fn before(&self, address: u64) -> Option<&Instruction> {
        let index = self
            .instructions
            .partition_point(|instruction| instruction.ip() < address);
        self.instructions.get(index.checked_sub(1)?)
    }

    /// The places of the direct jumps within that lead to `address`.
    pub(super) fn jumps_to(&self, address: u64) -> impl Iterator<Item = u64> {
        let first = self.jumps.partition_point(|(target, _)| *target < address);
        let rest = self.jumps.get(first..).unwrap_or_default();
        rest.iter()
            .take_while(move |(target, _)| *target == address)
            .map(|(_, from)| *from)
    }

    /// All of them.
    #[cfg(test)]
    pub(super) fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }
}

/// Where a direct jump, conditional or not, leads.
pub(super) fn jump_target(instruction: &Instruction) -> Option<u64> {
    let is_jump = matches!(
        instruction.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
    );
    (is_jump && instruction.op0_kind() == OpKind::NearBranch64).then(|| instruction.near_branch_target())
}
