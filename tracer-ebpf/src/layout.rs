//! What the walker must know of one CPython build: where things are, as byte offsets.
//!
//! 3.13 and newer say it themselves (`_Py_DebugOffsets`); for older versions userspace has a table.
//! Source of the structures: CPython's `Include/internal/pycore_runtime.h`, `pycore_frame.h`, `pycore_interp.h`.

/// How the current thread state is found; the meaning of [`ImageLayout::tstate_arg`] hangs on it.
pub mod tstate {
    /// Only through the interpreter's thread list.
    pub const LIST: u32 = 0;
    /// 3.9 to 3.11: the pointer at `runtime + tstate_arg`, valid if its thread id is ours.
    pub const RUNTIME: u32 = 1;
    /// 3.12+, executable: the pointer at `fs_base + tstate_arg` (a negative offset).
    pub const FS_OFFSET: u32 = 2;
    /// 3.12+, shared library, general dynamic TLS: `tstate_arg` is the link-time address of the GOT pair
    /// (module id, offset in the module's block).
    pub const DTV: u32 = 3;
    /// 3.12+, shared library, TLS descriptor: `tstate_arg` is the link-time address of the GOT pair
    /// (resolver, argument). The argument is an FS offset for the static case.
    pub const DESCRIPTOR: u32 = 4;
    /// 3.12+, shared library, initial exec TLS: `tstate_arg` is the link-time address of the GOT slot that
    /// holds the FS offset.
    pub const GOT_OFFSET: u32 = 5;
    /// 3.12+, shared library, local dynamic TLS: as [`DTV`], and the variable stands some bytes into the block;
    /// `tstate_arg` is both, see [`pack_local`].
    pub const DTV_LOCAL: u32 = 6;

    /// Address of the GOT pair in the low 48 bits, distance from the block's start above them.
    pub const fn pack_local(got: u64, distance: u16) -> Option<i64> {
        if got >> 48 != 0 || distance >> 15 != 0 {
            return None;
        }
        Some((got | (distance as u64) << 48).cast_signed())
    }

    /// The GOT pair's link-time address and the distance that [`pack_local`] put together.
    pub const fn unpack_local(argument: i64) -> (u64, u64) {
        let bits = argument.cast_unsigned();
        (bits & ((1 << 48) - 1), bits >> 48)
    }
}

/// Bits of [`ImageLayout::flags`].
pub mod flag {
    /// The thread state points to a `_PyCFrame` whose word at `cframe_current` is the frame (3.11, 3.12).
    pub const FRAME_VIA_CFRAME: u32 = 1;
    /// The thread state says whether it is the current one of its thread (3.12 and newer).
    pub const STATE_SAYS_ACTIVE: u32 = 2;
}

/// An owner that no byte reaches.
pub const NO_STUBS: u32 = 256;

/// Offsets of one image. Frame offsets are relative to `frame_window`, so that one read of
/// [`crate::limits::FRAME_WINDOW`] bytes at `frame + frame_window` holds all four fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ImageLayout {
    /// Link-time address of `_PyRuntime`.
    pub runtime: u64,
    /// See [`tstate`].
    pub tstate_arg: i64,
    /// One of [`tstate`]'s constants.
    pub tstate_access: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// `_PyRuntimeState.interpreters.head`, from `runtime`.
    pub runtime_interp_head: u32,
    /// `PyInterpreterState.next`.
    pub interp_next: u32,
    /// `PyInterpreterState.tstate_head` (`threads.head` from 3.11 on).
    pub interp_threads: u32,
    /// `PyThreadState.next`.
    pub tstate_next: u32,
    /// First byte of the window of [`crate::limits::STATE_WINDOW`] bytes in `PyThreadState` that has the next three.
    pub tstate_window: u32,
    /// `PyThreadState.thread_id` (the FS base of the thread on x86-64 glibc and musl), in the window.
    pub tstate_thread_id: u32,
    /// `PyThreadState.frame`, `.cframe` or `.current_frame`, in the window.
    pub tstate_frame: u32,
    /// `PyThreadState._status`, in the window, if [`flag::STATE_SAYS_ACTIVE`].
    pub tstate_status: u32,
    /// `_PyCFrame.current_frame`, if [`flag::FRAME_VIA_CFRAME`].
    pub cframe_current: u32,
    /// First byte of the window in the frame.
    pub frame_window: u32,
    /// Code object, in the window.
    pub frame_code: u32,
    /// Previous frame, in the window.
    pub frame_back: u32,
    /// Instruction pointer or index, in the window.
    pub frame_instr: u32,
    /// Bits to shift that left by to have bytes: 1 for an index that counts code units (3.10), otherwise 0.
    pub frame_instr_shift: u32,
    /// `u32::MAX` if it is a pointer, 0 if it is an index (`int f_lasti`, 3.9 and 3.10).
    pub frame_instr_is_pointer: u32,
    /// Owner byte, in the window; 0 if frames have none.
    pub frame_owner: u32,
    /// Owner values from here on are C stubs (3.12+); [`NO_STUBS`] if there are none.
    pub frame_owner_skip: u32,
    /// First instruction in a code object (`co_code_adaptive`); 0 if frames hold an index.
    pub code_first_instr: u32,
    /// `co_filename`.
    pub code_filename: u32,
    /// `co_qualname` (3.11+) or `co_name`.
    pub code_qualname: u32,
    /// `co_firstlineno`.
    pub code_first_line: u32,
    /// `co_linetable` (3.10+) or `co_lnotab`.
    pub code_line_table: u32,
    /// First character of a compact ASCII `str`.
    pub str_ascii_data: u32,
    /// First character of a compact `str` that is not ASCII.
    pub str_compact_data: u32,
    /// Bit of `PyASCIIObject.state` that says ASCII.
    pub str_ascii_bit: u32,
    /// First of the three bits of `PyASCIIObject.state` that say the width of a character.
    pub str_kind_shift: u32,
    /// Bytes in a pool (4 KiB up to 3.9, 16 KiB with the radix tree).
    pub pool_bytes: u32,
    /// `PY_VERSION_HEX`.
    pub version_hex: u32,
    /// `PyASCIIObject.length`.
    pub str_length: u32,
    /// `PyASCIIObject.state`.
    pub str_state: u32,
    /// `PyVarObject.ob_size`, of a `bytes` object.
    pub bytes_size: u32,
    /// First byte of a `bytes` object's contents.
    pub bytes_data: u32,
}

const _: () = assert!(size_of::<ImageLayout>() == 16 + 4 * 34);
