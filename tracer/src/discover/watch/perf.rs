//! `perf_event_open(2)` for one CPU: an event that counts nothing and records mappings, names, forks and exits.
//!
//! The structure and the bits are those of the kernel's `include/uapi/linux/perf_event.h`:
//! <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/perf_event.h>

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

/// `struct perf_event_attr` up to `PERF_ATTR_SIZE_VER5`.
#[derive(Default)]
#[repr(C)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_watermark: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clock: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

const _: () = assert!(size_of::<Attr>() == 112);

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_DUMMY: u64 = 9;
const PERF_SAMPLE_TID: u64 = 1 << 1;
const PERF_SAMPLE_TIME: u64 = 1 << 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

const MMAP: u64 = 1 << 8;
const COMM: u64 = 1 << 9;
const TASK: u64 = 1 << 13;
const WATERMARK: u64 = 1 << 14;
const SAMPLE_ID_ALL: u64 = 1 << 18;
const MMAP2: u64 = 1 << 23;
const COMM_EXEC: u64 = 1 << 24;
const USE_CLOCKID: u64 = 1 << 25;

/// Opens the event for every process on `cpu`. Without `mmap_data`, only executable mappings are recorded.
pub(super) fn open(cpu: u32) -> io::Result<OwnedFd> {
    let attr = Attr {
        kind: PERF_TYPE_SOFTWARE,
        size: 112,
        config: PERF_COUNT_SW_DUMMY,
        sample_type: PERF_SAMPLE_TID | PERF_SAMPLE_TIME,
        flags: MMAP | MMAP2 | COMM | COMM_EXEC | TASK | SAMPLE_ID_ALL | WATERMARK | USE_CLOCKID,
        // Every record wakes: until an image is attached to, its first process runs untraced.
        wakeup_watermark: 1,
        clock: libc::CLOCK_MONOTONIC,
        ..Attr::default()
    };
    let every_process: libc::pid_t = -1;
    let no_group: libc::c_int = -1;
    // SAFETY: `attr` is a whole `perf_event_attr` of the size it names and lives during the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            every_process,
            cpu.cast_signed(),
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
