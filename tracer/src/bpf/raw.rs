//! bpf(2) and `perf_event_open(2)` for what aya 0.14 does not offer: programs and links of the kinds `uprobe_multi` (kernel
//! 6.6) and `uprobe_session` (6.13), links to events of tracefs, and all entries of a map in one call. To be deleted when an aya that has them builds here.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::bpf_insn;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_PERF_EVENT: u32 = 41;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_TRACE_UPROBE_SESSION: u32 = 57;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;
const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;

/// Room for the verifier's log of a refused program.
const LOG_BYTES: usize = 1 << 26;

/// How a program can be attached; fixed when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attach {
    /// An event of tracefs.
    Event,
    /// Many points, first halves.
    Multi,
    /// Many points, both halves.
    Session,
}

impl Attach {
    const fn number(self) -> u32 {
        match self {
            // Programs for perf events have no attach type.
            Self::Event => 0,
            Self::Multi => BPF_TRACE_UPROBE_MULTI,
            Self::Session => BPF_TRACE_UPROBE_SESSION,
        }
    }
}

/// Whether a program runs when the function returns instead of when it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Return {
    /// At the call.
    No,
    /// At the return.
    Yes,
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes what is behind as zero.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE` with `uprobe_multi`.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    cnt: u32,
    multi_flags: u32,
    pid: u32,
    reserved: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE` with `perf_event`.
#[repr(C)]
struct EventLinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    cookie: u64,
}

/// `union bpf_attr` for `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The first published form of `struct perf_event_attr`; the kernel takes what is behind as zero.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/perf_event.h>
#[repr(C)]
#[derive(Default)]
struct EventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

/// The system call; `attr` is read and not kept.
fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a live `#[repr(C)]` prefix of `union bpf_attr` and its size is given; what its
    // pointers point to outlives the call, by the callers below.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    // SAFETY: the kernel has just given us this descriptor.
    unsafe { descriptor(fd) }
}

/// What a system call has returned that makes a descriptor.
///
/// # Safety
/// It must be the descriptor's only owner.
unsafe fn descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(returned).map_err(io::Error::other)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Most entries of a map that are read in one call; more than a bucket of a hash map ever holds.
const BATCH: usize = 256;

/// All entries of a hash map with keys of four bytes, in few calls. One that comes or goes meanwhile may be among them or
/// not.
pub(super) fn entries<V: aya::Pod + Default>(map: BorrowedFd<'_>) -> io::Result<Vec<(u32, V)>> {
    let mut found = Vec::new();
    let (mut keys, mut values) = ([0_u32; BATCH], vec![V::default(); BATCH]);
    let mut place = [0_u32];
    let mut is_first = true;
    loop {
        let from = place;
        let mut attr = Batch {
            from: if is_first { 0 } else { address(&from) },
            to: place.as_mut_ptr().addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: length(&keys),
            map_fd: map.as_raw_fd().unsigned_abs(),
            ..Batch::default()
        };
        // SAFETY: `attr` is a live `#[repr(C)]` prefix of `union bpf_attr`, written to as well; its pointers are to memory
        // that lives and has room for `count` keys and values, any bytes of which are values of their types.
        let done = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                &raw mut attr,
                size_of::<Batch>(),
            )
        };
        let error = (done < 0).then(io::Error::last_os_error);
        let is_end = error
            .as_ref()
            .is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT));
        if let Some(error) = error
            && !is_end
        {
            return Err(error);
        }
        let count = usize::try_from(attr.count).unwrap_or(0);
        found.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
        if is_end {
            return Ok(found);
        }
        is_first = false;
    }
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr().addr() as u64
}

fn length<T>(slice: &[T]) -> u32 {
    u32::try_from(slice.len()).unwrap_or(u32::MAX)
}

/// Loads a program. On refusal, the error comes with the verifier's log.
pub(super) fn load(
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
    attach: Attach,
) -> Result<OwnedFd, (io::Error, String)> {
    let mut attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: length(instructions),
        insns: address(instructions),
        license: license.as_ptr().addr() as u64,
        expected_attach_type: attach.number(),
        ..ProgLoad::default()
    };
    // The last byte stays 0; the kernel wants the name terminated.
    for (to, from) in attr.prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bpf(BPF_PROG_LOAD, &attr).map_err(|error| {
        // Before 6.4 the log keeps its beginning, and what is said last is what matters. It is only memory.
        let mut log = vec![0_u8; LOG_BYTES];
        attr.log_level = 1;
        attr.log_size = length(&log);
        attr.log_buf = log.as_mut_ptr().addr() as u64;
        // The first error counts: a log that overflows is an error of its own.
        let _ = bpf(BPF_PROG_LOAD, &attr);
        let text = CStr::from_bytes_until_nul(&log).map(|text| text.to_string_lossy().into_owned());
        (error, text.unwrap_or_default())
    })
}

/// Attaches a program to points of one file, for all processes. `offsets` are file offsets; a hit at
/// `offsets[i]` has the cookie `cookies[i]`.
pub(super) fn link(
    program: BorrowedFd<'_>,
    attach: Attach,
    half: Return,
    path: &str,
    offsets: &[u64],
    cookies: &[u64],
) -> io::Result<OwnedFd> {
    if offsets.len() != cookies.len() {
        return Err(io::Error::other("every point needs a cookie"));
    }
    let path = CString::new(path).map_err(io::Error::other)?;
    let attr = LinkCreate {
        prog_fd: program.as_raw_fd().unsigned_abs(),
        attach_type: attach.number(),
        path: path.as_ptr().addr() as u64,
        offsets: address(offsets),
        cookies: address(cookies),
        cnt: length(offsets),
        multi_flags: if half == Return::Yes {
            BPF_F_UPROBE_MULTI_RETURN
        } else {
            0
        },
        ..LinkCreate::default()
    };
    bpf(BPF_LINK_CREATE, &attr)
}

/// Attaches a program to an event of tracefs, in all processes and on all processors. Hits have the cookie.
pub(super) fn event_link(program: BorrowedFd<'_>, event: u64, cookie: u64) -> io::Result<OwnedFd> {
    let attr = EventAttr {
        kind: PERF_TYPE_TRACEPOINT,
        size: u32::try_from(size_of::<EventAttr>()).map_err(io::Error::other)?,
        config: event,
        ..EventAttr::default()
    };
    // The program runs wherever the event happens; the processor only says where it would be counted.
    let (all, first, no_group) = (-1, 0, -1);
    // SAFETY: `attr` is a live `perf_event_attr` of the size that it names, read and not kept.
    let event = unsafe {
        descriptor(libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            all,
            first,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        ))
    }?;
    // The link holds the event.
    bpf(
        BPF_LINK_CREATE,
        &EventLinkCreate {
            prog_fd: program.as_raw_fd().unsigned_abs(),
            target_fd: event.as_raw_fd().unsigned_abs(),
            attach_type: BPF_PERF_EVENT,
            flags: 0,
            cookie,
        },
    )
}

/// Loads a program that does nothing.
pub(super) fn load_nothing(attach: Attach) -> Result<OwnedFd, (io::Error, String)> {
    // `r0 = 0`, `exit`
    load(
        "on_nothing",
        &[instruction(0xb7), instruction(0x95)],
        c"GPL",
        attach,
    )
}

/// An instruction without operands other than register 0 and 0.
fn instruction(code: u8) -> bpf_insn {
    bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: 0,
    }
}

/// Whether the kernel has this kind of multi links: a program for them loads on some kernels that have not.
///
/// A directory cannot be probed, and a kernel that gets as far as to say so knows the kind; one that does not refuses the
/// call as a whole.
pub(super) fn offers(attach: Attach) -> bool {
    // A program that does nothing is refused for one reason only.
    let Ok(program) = load_nothing(attach) else {
        return false;
    };
    match link(program.as_fd(), attach, Return::No, "/", &[0], &[0]) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::EBADF),
    }
}
