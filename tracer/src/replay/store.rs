//! A snapshot to the parts that an aggregated capture holds.
//!
//! Invariant: what is a sum in a snapshot is not stored, and everything else is, but for what the capture's other blocks
//! say. The patterns name every field, so that a new one is not forgotten here.

use crate::{
    capture::{
        Tallies,
        tallies::{GrowthPart, PART, ProcessPart, State},
    },
    profile::{ProcessSummary, Snapshot, Totals},
    units::MonotonicNs,
};

/// Hands out the parts of `snapshot`, in their order.
pub(super) fn store<E>(
    snapshot: &Snapshot,
    at: MonotonicNs,
    mut put: impl FnMut(&Tallies) -> Result<(), E>,
) -> Result<(), E> {
    let Snapshot {
        context: _,
        frames,
        stacks,
        processes,
        totals,
        losses: _,
        host_losses,
        decode_problems,
        truncated: _,
        notes,
    } = snapshot;
    in_parts(frames.strings().map(ToOwned::to_owned), Tallies::Names, &mut put)?;
    let symbols = frames.ids().filter_map(|id| frames.symbol(id));
    let rows = symbols.map(|symbol| {
        (
            place(symbol.function.index()),
            place(symbol.file.index()),
            symbol.line,
        )
    });
    in_parts(rows, Tallies::Frames, &mut put)?;
    let nodes = stacks
        .nodes()
        .map(|(parent, frame)| (parent.map(|parent| place(parent.index())), place(frame.index())));
    in_parts(nodes, Tallies::Stacks, &mut put)?;
    for process in processes {
        let ProcessSummary {
            info,
            python,
            coverage,
            losses,
            hits,
            audits,
            heap,
            is_partial,
            growth,
            total: _,
            stacks,
        } = process;
        put(&Tallies::Process(Box::new(ProcessPart {
            info: info.clone(),
            python: python.clone(),
            coverage: *coverage,
            losses: losses.clone(),
            hits: *hits,
            audits: audits.clone(),
            heap: *heap,
            partial: *is_partial,
            growth: growth.as_ref().map(|growth| GrowthPart {
                times: growth.times.clone(),
                stacks: growth
                    .stacks
                    .iter()
                    .map(|(stack, series)| (place(stack.index()), series.clone()))
                    .collect(),
            }),
        })))?;
        let rows = stacks.iter().map(|(stack, tally)| (place(stack.index()), *tally));
        in_parts(rows, Tallies::Counted, &mut put)?;
    }
    let Totals {
        tally: _,
        peak_bytes,
        hits: _,
        duration_ns,
    } = totals;
    put(&Tallies::State(Box::new(State {
        at,
        seen_ns: *duration_ns,
        peak_bytes: *peak_bytes,
        host_losses: host_losses.to_vec(),
        decode_problems: *decode_problems,
        notes: notes.clone(),
    })))
}

/// Places in tables that have fewer than 2^32 entries.
fn place(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn in_parts<T, E>(
    rows: impl Iterator<Item = T>,
    part: fn(Vec<T>) -> Tallies,
    put: &mut impl FnMut(&Tallies) -> Result<(), E>,
) -> Result<(), E> {
    let mut rows = rows.peekable();
    while rows.peek().is_some() {
        put(&part(rows.by_ref().take(PART).collect()))?;
    }
    Ok(())
}
