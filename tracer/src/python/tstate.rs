//! How the current thread state is found: from the code of the exported functions that return it.
//!
//! 3.9 to 3.11 keep it in `_PyRuntime`; since 3.12 it is the thread-local `_Py_tss_tstate`, a local symbol, so
//! that a stripped file shows it only in code:
//! <https://github.com/python/cpython/blob/v3.12.0/Python/pystate.c#L62-L70>.

use tracer_ebpf::layout::tstate;

use super::{
    WhyNot,
    flow::{Next, Place, TlsBase, explore},
};
use crate::{
    elf::{Elf, Pointer, TlsReloc},
    units::VirtAddr,
};

/// The two fields of the image layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) how: u32,
    pub(super) argument: i64,
}

/// Functions that return the current thread state; the first does nothing else.
const GETTERS: [&str; 4] = [
    "_PyThreadState_GetCurrent",
    "PyThreadState_GetUnchecked",
    "_PyThreadState_UncheckedGet",
    "PyThreadState_Get",
];
/// Instructions followed in one of them.
const LIMIT: usize = 60;

/// The offset of `tstate_current` in `_PyRuntime` (3.9 to 3.11), read from code.
pub(super) fn runtime_offset(elf: &Elf<'_>, runtime: VirtAddr, size: u64) -> Result<u64, WhyNot> {
    let mut found = None;
    for function in GETTERS.iter().filter_map(|name| elf.exported(name)) {
        explore(elf, function.address, LIMIT, &mut |step| {
            if let Some(Place::Fixed(address)) = step.memory
                && step.instruction.memory_size().size() == 8
            {
                found = address
                    .get()
                    .checked_sub(runtime.get())
                    .filter(|offset| *offset < size);
            }
            if found.is_some() { Next::Stop } else { Next::Go }
        });
        if let Some(offset) = found {
            return Ok(offset);
        }
    }
    Err(WhyNot::ThreadStateUnknown)
}

/// Access through thread-local storage (3.12+). What is not understood is searched in the interpreter's list,
/// with a note.
pub(super) fn thread_local(elf: &Elf<'_>, notes: &mut Vec<String>) -> Access {
    let place = GETTERS
        .iter()
        .filter_map(|name| elf.exported(name))
        .find_map(|function| {
            let mut found = None;
            explore(elf, function.address, LIMIT, &mut |step| {
                match step.memory {
                    // The thread control block itself: its own address, the stack protector's canary.
                    Some(Place::Tls(TlsBase::Thread, 0..)) => Next::Go,
                    Some(Place::Tls(base, offset)) if step.instruction.memory_size().size() == 8 => {
                        found = Some((base, offset));
                        Next::Stop
                    }
                    _ => Next::Go,
                }
            });
            found
        });
    let access = place.and_then(|(base, offset)| access(elf, base, offset));
    access.unwrap_or_else(|| {
        notes.push(format!(
            "the thread state's place is not understood ({place:?}): it is searched in the interpreter's list"
        ));
        Access {
            how: tstate::LIST,
            argument: 0,
        }
    })
}

fn access(elf: &Elf<'_>, base: TlsBase, offset: i64) -> Option<Access> {
    let slot = |address: VirtAddr| i64::try_from(address.get()).ok();
    let is = |address, kind| elf.pointer_at(address) == Some(Pointer::Tls(kind));
    match base {
        // musl lays out the vector of TLS blocks differently: <https://git.musl-libc.org/cgit/musl/tree/src/internal/pthread_impl.h>.
        TlsBase::Block(_) | TlsBase::Descriptor(_)
            if elf.needed().iter().any(|name| name.contains("musl")) =>
        {
            None
        }
        TlsBase::Thread => Some(Access {
            how: tstate::FS_OFFSET,
            argument: offset,
        }),
        TlsBase::Slot(got) if offset == 0 && is(got, TlsReloc::ThreadOffset) => Some(Access {
            how: tstate::GOT_OFFSET,
            argument: slot(got)?,
        }),
        TlsBase::Descriptor(got) if offset == 0 && is(got, TlsReloc::Descriptor) => Some(Access {
            how: tstate::DESCRIPTOR,
            argument: slot(got)?,
        }),
        TlsBase::Block(got) if is(got, TlsReloc::Module) && offset == 0 => Some(Access {
            how: tstate::DTV,
            argument: slot(got)?,
        }),
        TlsBase::Block(got) if is(got, TlsReloc::Module) => {
            let offset = u16::try_from(offset).ok()?;
            let packed = tstate::pack_local(got.get(), offset)?;
            Some(Access {
                how: tstate::DTV_LOCAL,
                argument: packed,
            })
        }
        _ => None,
    }
}
