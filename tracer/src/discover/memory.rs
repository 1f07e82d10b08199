//! Memory of another process, read in bounded pieces through `process_vm_readv`.
//!
//! Never written, never stopped: what is read may change under the reader, and its user must expect nonsense.

use std::io;

use crate::units::{Pid, ProcAddr};

/// Most bytes of one read.
pub const MAX_READ: usize = 16 << 20;
/// Most pieces of one call, `UIO_MAXIOV`.
const MAX_PIECES: usize = 1024;

/// `len` bytes at `addr`; fewer if what follows is not mapped, an error if nothing is or the process is gone.
pub fn read_memory(pid: Pid, addr: ProcAddr, len: usize) -> io::Result<Vec<u8>> {
    if len > MAX_READ {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too much memory at once",
        ));
    }
    let pid = libc::pid_t::try_from(pid.get()).map_err(|_| io::ErrorKind::NotFound)?;
    let start = usize::try_from(addr.get()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = vec![0u8; len];
    let local = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: len,
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(start),
        iov_len: len,
    };
    // SAFETY: `local` describes `bytes`, which lives and is not otherwise used during the call; the kernel
    // checks `remote`, which is never dereferenced here.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    bytes.truncate(read);
    Ok(bytes)
}

/// `N` bytes at each of the addresses, appended to `to` in their order; `None` where they cannot be read. An error if
/// nothing of the process can be read: it is gone, or not ours to read.
pub fn read_each<const N: usize>(
    pid: Pid,
    addrs: &[ProcAddr],
    to: &mut Vec<Option<[u8; N]>>,
) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid.get()).map_err(|_| io::ErrorKind::NotFound)?;
    let mut rest = addrs;
    while !rest.is_empty() {
        let read = read_some(pid, rest.get(..MAX_PIECES).unwrap_or(rest), to)?;
        rest = rest.get(read..).unwrap_or_default();
        if read == 0 {
            // The kernel stops at the first piece that is not mapped.
            to.push(None);
            rest = rest.get(1..).unwrap_or_default();
        }
    }
    Ok(())
}

/// The pieces before the first one that cannot be read, in one call; how many they are.
fn read_some<const N: usize>(
    pid: libc::pid_t,
    addrs: &[ProcAddr],
    to: &mut Vec<Option<[u8; N]>>,
) -> io::Result<usize> {
    let mut bytes = vec![[0u8; N]; addrs.len()];
    let local = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: N * bytes.len(),
    };
    let remote: Vec<libc::iovec> = addrs
        .iter()
        .map(|addr| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(usize::try_from(addr.get()).unwrap_or(usize::MAX)),
            iov_len: N,
        })
        .collect();
    let pieces = libc::c_ulong::try_from(remote.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `local` describes `bytes`, which lives and is not otherwise used during the call; the kernel
    // checks what `remote`'s pieces point to, which is never dereferenced here.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), pieces, 0) };
    match usize::try_from(read) {
        Ok(read) => {
            let whole = read / N.max(1);
            to.extend(bytes.into_iter().take(whole).map(Some));
            Ok(whole)
        }
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::process::Command;

    use super::*;
    use crate::discover::{mapped_files, test_support::Cat};

    #[test]
    fn another_process_shows_what_its_file_holds() {
        let cat = Cat::start(&mut Command::new("cat"));
        let pid = cat.pid();
        let file = mapped_files(pid).unwrap().remove(0);
        let range = file.ranges.first().unwrap();
        assert_eq!(read_memory(pid, range.start, 4).unwrap(), b"\x7fELF");
        assert!(read_memory(pid, ProcAddr(0), 8).is_err());
        assert!(read_memory(pid, ProcAddr(u64::MAX - 8), 8).is_err());
        drop(cat);
        let gone = read_memory(pid, range.start, 4).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_read_past_the_end_of_a_mapping_is_short() {
        let page = rustix::param::page_size();
        // SAFETY: a fresh private mapping of two pages, not used otherwise.
        let at = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                2 * page,
                rustix::mm::ProtFlags::READ,
                rustix::mm::MapFlags::PRIVATE,
            )
        }
        .unwrap();
        // SAFETY: the second page of that mapping. Taking the right to read it away, not the page itself, keeps
        // other threads of this test from mapping something there.
        unsafe { rustix::mm::mprotect(at.byte_add(page), page, rustix::mm::MprotectFlags::empty()) }.unwrap();
        let me = Pid(std::process::id());
        let addr = at.addr() as u64;
        assert_eq!(read_memory(me, ProcAddr(addr), 2 * page).unwrap().len(), page);
        assert!(read_memory(me, ProcAddr(addr + page as u64), 1).is_err());
        // SAFETY: the whole mapping; nothing refers to it.
        unsafe { rustix::mm::munmap(at, 2 * page) }.unwrap();
    }

    #[test]
    fn pieces_that_cannot_be_read_do_not_hide_the_others() {
        let cat = Cat::start(&mut Command::new("cat"));
        let pid = cat.pid();
        let start = mapped_files(pid).unwrap().remove(0).ranges.first().unwrap().start;
        let (nothing, magic) = (ProcAddr(0), Some(*b"\x7fELF"));
        let addrs = [nothing, start, start, ProcAddr(u64::MAX - 8), nothing, start];
        let mut found = Vec::new();
        read_each::<4>(pid, &addrs, &mut found).unwrap();
        assert_eq!(found, [None, magic, magic, None, None, magic]);
        let mut many = Vec::new();
        read_each::<4>(pid, &vec![start; 2 * MAX_PIECES + 1], &mut many).unwrap();
        assert_eq!(many, vec![magic; 2 * MAX_PIECES + 1]);
        drop(cat);
        assert!(read_each::<4>(pid, &addrs, &mut found).is_err());
    }

    #[test]
    fn a_huge_read_is_refused() {
        assert!(read_memory(Pid(std::process::id()), ProcAddr(0), MAX_READ + 1).is_err());
    }
}
