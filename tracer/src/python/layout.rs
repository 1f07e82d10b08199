//! The walker's layout of an image: from its own `_Py_DebugOffsets` (3.13+), or by minor version from the table.
//!
//! No IO. Whatever the file claims is checked against what a walk can use; what the table says is checked against
//! the file's code and data, since a vendor may have changed a structure. A mismatch is a reason not to trace.

use tracer_ebpf::layout::{ImageLayout, NO_STUBS, flag, tstate};

use super::{
    WhyNot,
    allocator::AllocatorTables,
    layout_table::{V3_9, V3_10, V3_11, V3_12, V3_13, V3_13_FREE_THREADED, V3_14, V3_15},
    members, pools,
    tstate::{self as access, Access},
    version::Version,
    windows,
};
use crate::{
    elf::{Elf, Symbol},
    units::VirtAddr,
};

/// `_Py_Debug_Cookie`, the first bytes of `_PyRuntime`:
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_runtime.h#L47>.
const COOKIE: &[u8; 8] = b"xdebugpy";
/// No field of a runtime, interpreter or thread state lies further in.
const MAX_OFFSET: u64 = 1 << 20;

/// Where fields are, by minor version (3.9 to 3.12). Bytes from the start of their structure.
pub(super) struct Offsets {
    /// `gilstate.tstate_current` (to 3.11) or `allocators.standard.raw` (3.12) in `_PyRuntime`: compared with the code.
    pub(super) runtime_check: u64,
    pub(super) runtime_interp_head: u32,
    pub(super) interp_next: u32,
    pub(super) interp_threads: u32,
    pub(super) tstate_next: u32,
    pub(super) tstate_thread_id: u32,
    pub(super) tstate_frame: u32,
    pub(super) tstate_status: u32,
    pub(super) cframe_current: u32,
    pub(super) frame_code: u32,
    pub(super) frame_back: u32,
    pub(super) frame_instr: u32,
    pub(super) frame_owner: u32,
    pub(super) frame_owner_skip: u32,
    pub(super) code_first_instr: u32,
    pub(super) code_filename: u32,
    pub(super) code_qualname: u32,
    pub(super) code_first_line: u32,
    pub(super) code_line_table: u32,
    pub(super) str_length: u32,
    pub(super) str_state: u32,
    pub(super) bytes_size: u32,
    pub(super) bytes_data: u32,
    pub(super) str_ascii_data: u32,
    pub(super) str_compact_data: u32,
    pub(super) str_ascii_bit: u32,
    pub(super) str_kind_shift: u32,
    pub(super) tp_dealloc: u64,
    pub(super) tp_members: u64,
}

/// Where `_Py_DebugOffsets` says where fields are, by minor version (3.13+), and what it does not say.
pub(super) struct DebugOffsets {
    pub(super) size: usize,
    pub(super) version: usize,
    pub(super) free_threaded: usize,
    pub(super) runtime_interp_head: usize,
    pub(super) interp_next: usize,
    pub(super) interp_threads: usize,
    pub(super) tstate_next: usize,
    pub(super) tstate_thread_id: usize,
    pub(super) tstate_frame: usize,
    pub(super) tstate_status: usize,
    pub(super) frame_code: usize,
    pub(super) frame_back: usize,
    pub(super) frame_instr: usize,
    pub(super) frame_owner: usize,
    pub(super) code_first_instr: usize,
    pub(super) code_filename: usize,
    pub(super) code_qualname: usize,
    pub(super) code_first_line: usize,
    pub(super) code_line_table: usize,
    pub(super) str_ascii_size: usize,
    pub(super) str_length: usize,
    pub(super) str_state: usize,
    pub(super) bytes_size: usize,
    pub(super) bytes_data: usize,
    pub(super) frame_owner_skip: u32,
    pub(super) str_ascii_data: u32,
    pub(super) str_compact_data: u32,
    pub(super) str_ascii_bit: u32,
    pub(super) str_kind_shift: u32,
    pub(super) tp_dealloc: u64,
    pub(super) tp_members: u64,
}

/// Whether a build has a global interpreter lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gil {
    /// It has: pymalloc.
    Held,
    /// Built with `--disable-gil`: mimalloc, and objects with a longer head.
    Disabled,
}

/// A layout, and what goes with the version.
pub(super) struct Found {
    pub(super) layout: ImageLayout,
    /// `offsetof(PyTypeObject, tp_dealloc)`.
    pub(super) tp_dealloc: u64,
}

pub(super) fn find(
    elf: &Elf<'_>,
    version: Version,
    gil: Gil,
    runtime: Symbol,
    tables: AllocatorTables,
    notes: &mut Vec<String>,
) -> Result<Found, WhyNot> {
    let known = match version.minor {
        13 if gil == Gil::Disabled => from_file(elf, version, runtime, &V3_13_FREE_THREADED, notes)?,
        _ if gil == Gil::Disabled => return Err(WhyNot::FreeThreaded { version }),
        9 => from_table(elf, version, runtime, tables, &V3_9, notes)?,
        10 => from_table(elf, version, runtime, tables, &V3_10, notes)?,
        11 => from_table(elf, version, runtime, tables, &V3_11, notes)?,
        12 => from_table(elf, version, runtime, tables, &V3_12, notes)?,
        13 => from_file(elf, version, runtime, &V3_13, notes)?,
        14 => from_file(elf, version, runtime, &V3_14, notes)?,
        15 => from_file(elf, version, runtime, &V3_15, notes)?,
        _ => return Err(WhyNot::TooNew { version }),
    };
    let mut layout = known.layout;
    layout.runtime = runtime.address.get();
    layout.version_hex = version.hex();
    layout.pool_bytes = pools::bytes(elf, version, tables);
    windows::place(&mut layout)?;
    members::check(elf, version, known.tp_members, &layout)?;
    Ok(Found {
        layout,
        tp_dealloc: known.tp_dealloc,
    })
}

/// Whether a build has a GIL (before 3.13 all have). What cannot be read counts as having one: [`find`] will say why.
pub(super) fn gil(elf: &Elf<'_>, version: Version, runtime: Symbol) -> Gil {
    let place = match version.minor {
        13 => V3_13.free_threaded,
        14 => V3_14.free_threaded,
        15 => V3_15.free_threaded,
        _ => return Gil::Held,
    };
    let word = u64::try_from(place)
        .ok()
        .and_then(|place| elf.word(runtime.address.checked_add(place)?));
    if elf.bytes(runtime.address, COOKIE.len()) == Some(COOKIE) && word != Some(0) {
        Gil::Disabled
    } else {
        Gil::Held
    }
}

struct Known {
    layout: ImageLayout,
    tp_dealloc: u64,
    tp_members: u64,
}

fn from_table(
    elf: &Elf<'_>,
    version: Version,
    runtime: Symbol,
    tables: AllocatorTables,
    offsets: &Offsets,
    notes: &mut Vec<String>,
) -> Result<Known, WhyNot> {
    let (flags, state) = match version.minor {
        12 => {
            let raw = tables.raw.get().checked_sub(runtime.address.get());
            expect("the allocator tables in _PyRuntime", offsets.runtime_check, raw)?;
            (
                flag::FRAME_VIA_CFRAME | flag::STATE_SAYS_ACTIVE,
                access::thread_local(elf, notes),
            )
        }
        minor => {
            let offset = access::runtime_offset(elf, runtime.address, runtime.size)?;
            expect(
                "tstate_current in _PyRuntime",
                offsets.runtime_check,
                Some(offset),
            )?;
            let argument = i64::try_from(offset).map_err(|_| WhyNot::ThreadStateUnknown)?;
            let flags = if minor == 11 { flag::FRAME_VIA_CFRAME } else { 0 };
            (
                flags,
                Access {
                    how: tstate::RUNTIME,
                    argument,
                },
            )
        }
    };
    Ok(Known {
        layout: ImageLayout {
            tstate_arg: state.argument,
            tstate_access: state.how,
            flags,
            runtime_interp_head: offsets.runtime_interp_head,
            interp_next: offsets.interp_next,
            interp_threads: offsets.interp_threads,
            tstate_next: offsets.tstate_next,
            tstate_thread_id: offsets.tstate_thread_id,
            tstate_frame: offsets.tstate_frame,
            tstate_status: offsets.tstate_status,
            cframe_current: offsets.cframe_current,
            frame_code: offsets.frame_code,
            frame_back: offsets.frame_back,
            frame_instr: offsets.frame_instr,
            frame_instr_shift: u32::from(version.minor == 10),
            frame_instr_is_pointer: if version.minor >= 11 { u32::MAX } else { 0 },
            frame_owner: offsets.frame_owner,
            frame_owner_skip: if version.minor >= 12 {
                offsets.frame_owner_skip
            } else {
                NO_STUBS
            },
            code_first_instr: if version.minor >= 11 {
                offsets.code_first_instr
            } else {
                0
            },
            code_filename: offsets.code_filename,
            code_qualname: offsets.code_qualname,
            code_first_line: offsets.code_first_line,
            code_line_table: offsets.code_line_table,
            str_length: offsets.str_length,
            str_state: offsets.str_state,
            bytes_size: offsets.bytes_size,
            bytes_data: offsets.bytes_data,
            str_ascii_data: offsets.str_ascii_data,
            str_compact_data: offsets.str_compact_data,
            str_ascii_bit: offsets.str_ascii_bit,
            str_kind_shift: offsets.str_kind_shift,
            ..ImageLayout::default()
        },
        tp_dealloc: offsets.tp_dealloc,
        tp_members: offsets.tp_members,
    })
}

fn from_file(
    elf: &Elf<'_>,
    version: Version,
    runtime: Symbol,
    fields: &DebugOffsets,
    notes: &mut Vec<String>,
) -> Result<Known, WhyNot> {
    let missing = WhyNot::DebugOffsetsMissing { version };
    let bytes = elf
        .bytes(runtime.address, fields.size)
        .ok_or_else(|| missing.clone())?;
    if !bytes.starts_with(COOKIE) {
        return Err(missing);
    }
    let word = |at: usize| {
        bytes
            .get(at..)?
            .first_chunk()
            .map(|chunk| u64::from_le_bytes(*chunk))
    };
    expect(
        "the version in _Py_DebugOffsets",
        u64::from(version.hex()),
        word(fields.version),
    )?;
    let offset = |what: &'static str, at: usize| {
        let value = word(at).filter(|value| *value < MAX_OFFSET);
        value
            .and_then(|value| u32::try_from(value).ok())
            .ok_or(WhyNot::LayoutImplausible { what })
    };
    let str_ascii_data = offset("the size of a string's head", fields.str_ascii_size)?;
    expect(
        "the size of a string's head",
        u64::from(fields.str_ascii_data),
        Some(u64::from(str_ascii_data)),
    )?;
    let state = access::thread_local(elf, notes);
    Ok(Known {
        layout: ImageLayout {
            tstate_arg: state.argument,
            tstate_access: state.how,
            flags: flag::STATE_SAYS_ACTIVE,
            runtime_interp_head: offset("interpreters.head", fields.runtime_interp_head)?,
            interp_next: offset("the next interpreter", fields.interp_next)?,
            interp_threads: offset("threads.head", fields.interp_threads)?,
            tstate_next: offset("the next thread state", fields.tstate_next)?,
            tstate_thread_id: offset("thread_id", fields.tstate_thread_id)?,
            tstate_frame: offset("current_frame", fields.tstate_frame)?,
            tstate_status: offset("_status", fields.tstate_status)?,
            cframe_current: 0,
            frame_code: offset("f_executable", fields.frame_code)?,
            frame_back: offset("previous", fields.frame_back)?,
            frame_instr: offset("instr_ptr", fields.frame_instr)?,
            frame_instr_is_pointer: u32::MAX,
            frame_owner: offset("owner", fields.frame_owner)?,
            frame_owner_skip: fields.frame_owner_skip,
            code_first_instr: offset("co_code_adaptive", fields.code_first_instr)?,
            code_filename: offset("co_filename", fields.code_filename)?,
            code_qualname: offset("co_qualname", fields.code_qualname)?,
            code_first_line: offset("co_firstlineno", fields.code_first_line)?,
            code_line_table: offset("co_linetable", fields.code_line_table)?,
            str_length: offset("a string's length", fields.str_length)?,
            str_state: offset("a string's state", fields.str_state)?,
            bytes_size: offset("the size of bytes", fields.bytes_size)?,
            bytes_data: offset("the contents of bytes", fields.bytes_data)?,
            str_ascii_data,
            str_compact_data: fields.str_compact_data,
            str_ascii_bit: fields.str_ascii_bit,
            str_kind_shift: fields.str_kind_shift,
            ..ImageLayout::default()
        },
        tp_dealloc: fields.tp_dealloc,
        tp_members: fields.tp_members,
    })
}

/// What the table says against what the file shows.
fn expect(what: &'static str, expected: u64, found: Option<u64>) -> Result<(), WhyNot> {
    if found == Some(expected) {
        Ok(())
    } else {
        Err(WhyNot::LayoutMismatch {
            what,
            expected,
            found,
        })
    }
}

/// Bytes from a type object's start to its `tp_dealloc`, read as the pointer that will be there.
pub(super) fn type_dealloc(elf: &Elf<'_>, type_object: VirtAddr, tp_dealloc: u64) -> Option<VirtAddr> {
    let function = elf.address_at(type_object.checked_add(tp_dealloc)?)?;
    elf.is_code(function).then_some(function)
}
