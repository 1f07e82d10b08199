//! The windows of a frame and of a thread state that the walker reads in one go.
//!
//! Pure: turns offsets from a structure's start into a window's start and offsets in it.

use tracer_ebpf::{
    layout::{ImageLayout, NO_STUBS, flag},
    limits::{FRAME_WINDOW, STATE_WINDOW},
};

use super::WhyNot;

/// Places both.
pub(super) fn place(layout: &mut ImageLayout) -> Result<(), WhyNot> {
    place_state(layout)?;
    place_frame(layout)
}

/// Makes the thread state's offsets relative to the one window that the walker reads.
fn place_state(layout: &mut ImageLayout) -> Result<(), WhyNot> {
    let says_active = layout.flags & flag::STATE_SAYS_ACTIVE != 0;
    let mut fields = vec![&mut layout.tstate_thread_id, &mut layout.tstate_frame];
    if says_active {
        fields.push(&mut layout.tstate_status);
    }
    let start = fields.iter().map(|field| **field).min().unwrap_or(0) & !7;
    let end = fields
        .iter()
        .map(|field| **field)
        .max()
        .unwrap_or(0)
        .saturating_add(8);
    if u32::try_from(STATE_WINDOW).is_ok_and(|window| end - start > window) {
        return Err(WhyNot::LayoutImplausible {
            what: "the thread state's fields lie too far apart",
        });
    }
    for field in fields {
        *field -= start;
    }
    layout.tstate_window = start;
    Ok(())
}

/// Makes the frame's offsets relative to the one window that the walker reads.
fn place_frame(layout: &mut ImageLayout) -> Result<(), WhyNot> {
    let has_owner = layout.frame_owner_skip != NO_STUBS;
    let word_ends =
        [layout.frame_code, layout.frame_back, layout.frame_instr].map(|start| start.saturating_add(8));
    let owner_end = if has_owner {
        layout.frame_owner.saturating_add(1)
    } else {
        0
    };
    let end = word_ends.into_iter().fold(owner_end, u32::max);
    let words = [layout.frame_code, layout.frame_back, layout.frame_instr];
    let start = words
        .into_iter()
        .fold(if has_owner { layout.frame_owner } else { u32::MAX }, u32::min)
        & !7;
    let window = u32::try_from(FRAME_WINDOW).unwrap_or(u32::MAX);
    // An index at the window's end (3.9, 3.10) is only four bytes wide.
    let end = if layout.frame_instr_is_pointer == 0 && end == layout.frame_instr + 8 {
        end - 4
    } else {
        end
    };
    if end.saturating_sub(start) > window {
        return Err(WhyNot::LayoutImplausible {
            what: "the frame's fields lie too far apart",
        });
    }
    layout.frame_window = start;
    layout.frame_code -= start;
    layout.frame_back -= start;
    layout.frame_instr -= start;
    layout.frame_owner = if has_owner { layout.frame_owner - start } else { 0 };
    Ok(())
}
