//! What a probe hit costs on this host: an empty program on a function of our own, called in a loop.
//!
//! The function starts with an instruction that the kernel emulates, as the sites of a plan do.

use std::{arch::global_asm, time::Instant};

use aya::Ebpf;

use super::{BpfError, KernelFacts, LinkKind, links};

global_asm!(
    ".text",
    ".p2align 4",
    ".globl pyrobe_probed",
    ".type pyrobe_probed,@function",
    "pyrobe_probed:",
    "push rbp",
    "pop rbp",
    "ret",
    ".size pyrobe_probed, . - pyrobe_probed",
);

unsafe extern "C" {
    /// Does nothing.
    safe fn pyrobe_probed();
}

/// Where that function is, for the kernel.
const PATH: &str = "/proc/self/exe";

/// Calls that are timed.
const CALLS: u32 = 20_000;

/// Nanoseconds that a hit adds to a call, with links of this kind.
pub(super) fn measure(ebpf: &mut Ebpf, kernel: &KernelFacts, kind: LinkKind) -> Result<f64, BpfError> {
    let offset = own_offset(pyrobe_probed as *const () as usize as u64).ok_or_else(|| BpfError::Attach {
        path: PATH.to_owned(),
        points: 1,
        source: "our own function is in no mapping".into(),
    })?;
    let bare = time();
    let link = links::nothing(ebpf, kernel, kind, PATH, offset)?;
    let probed = time();
    drop(link);
    Ok((probed - bare).max(0.0))
}

/// Nanoseconds of a call, the fastest of some rounds: what disturbs a round only makes it longer.
fn time() -> f64 {
    let rounds = (0..5).map(|_| {
        let start = Instant::now();
        for _ in 0..CALLS / 5 {
            pyrobe_probed();
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS / 5)
    });
    rounds.fold(f64::INFINITY, f64::min)
}

/// File offset of one of our own addresses.
fn own_offset(address: u64) -> Option<u64> {
    let mut found = None;
    // SAFETY: the callback is called for each loaded object while the list is locked, and keeps nothing.
    unsafe {
        libc::dl_iterate_phdr(
            Some(find),
            std::ptr::from_mut(&mut (address, &raw mut found)).cast(),
        );
    }
    found
}

/// Callback of [`own_offset`]: looks for the segment that holds the address.
unsafe extern "C" fn find(info: *mut libc::dl_phdr_info, _: usize, data: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `data` is what `own_offset` passed, `info` what the dynamic linker made; both live during the call.
    unsafe {
        let (address, found) = *data.cast::<(u64, *mut Option<u64>)>();
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
            let start = info.dlpi_addr + header.p_vaddr;
            if (start..start + header.p_memsz).contains(&address) {
                *found = Some(address - start + header.p_offset);
                return 1;
            }
        }
    }
    0
}
