//! Memory of another process, read in bounded pieces through `process_vm_readv`.
//!
//! Never written, never stopped: what is read may change under the reader, and its user must expect nonsense.

use std::io;

use crate::units::{Pid, ProcAddr};

/// Most bytes of one read.
pub const MAX_READ: usize = 16 << 20;

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
    fn a_huge_read_is_refused() {
        assert!(read_memory(Pid(std::process::id()), ProcAddr(0), MAX_READ + 1).is_err());
    }
}
