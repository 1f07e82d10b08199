//! bpf(2) for what aya 0.14 does not offer: programs and links of the kinds `uprobe_multi` (kernel 6.6) and
//! `uprobe_session` (6.13). To be deleted when an aya that has both builds here.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::bpf_insn;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_TRACE_UPROBE_SESSION: u32 = 57;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

/// Room for the verifier's log of a refused program.
const LOG_BYTES: usize = 1 << 26;

/// How a program can be attached; fixed when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attach {
    /// Many points, first halves.
    Multi,
    /// Many points, both halves.
    Session,
}

impl Attach {
    const fn number(self) -> u32 {
        match self {
            Self::Multi => BPF_TRACE_UPROBE_MULTI,
            Self::Session => BPF_TRACE_UPROBE_SESSION,
        }
    }
}

/// Whether a multi link's program runs when the function returns instead of when it is called.
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

/// The system call; `attr` is read and not kept.
fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a live `#[repr(C)]` prefix of `union bpf_attr` and its size is given; what its
    // pointers point to outlives the call, by the callers below.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

/// Whether the kernel has this kind of links: a program for them loads on some kernels that have not.
///
/// `program` is one that was loaded for it. A directory cannot be probed, and a kernel that gets as far as to say so
/// knows the kind; one that does not refuses the call as a whole.
pub(super) fn offers(program: BorrowedFd<'_>, attach: Attach) -> bool {
    match link(program, attach, Return::No, "/", &[0], &[0]) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::EBADF),
    }
}
