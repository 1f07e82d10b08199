//! What a probe hit costs on this host: an empty program on a function of our own, called in a loop.
//!
//! The function starts with an instruction that the kernel emulates, as the sites of a plan do. What a call costs without a probe is
//! measured of another one, since who else measures at this time has a probe on the first. Needs nothing of a tracer, so that it
//! can be measured beside one that records.

use std::{arch::global_asm, os::fd::AsFd as _, time::Instant};

use super::{
    BpfError,
    events::Events,
    raw::{self, Attach},
};

/// Two functions that are the same.
macro_rules! functions {
    ($($name:literal),*) => {
        global_asm!(
            ".text",
            $(
                ".p2align 4",
                concat!(".globl ", $name),
                concat!(".type ", $name, ",@function"),
                concat!($name, ":"),
                "push rbp",
                "pop rbp",
                "ret",
                concat!(".size ", $name, ", . - ", $name),
            )*
        );
    };
}

functions!("pyrobe_probed", "pyrobe_bare");

unsafe extern "C" {
    /// Does nothing.
    safe fn pyrobe_probed();
    /// The same.
    safe fn pyrobe_bare();
}

/// Rounds that are timed, and calls in each: short enough that some are not interrupted on a busy host.
const ROUNDS: u32 = 40;
const CALLS: u32 = 500;

/// Nanoseconds that a probe hit costs on this host, with an empty program on an emulated instruction. Takes some 50 ms, most of it
/// the waiting of [`raw::link`]'s undoing.
pub fn hit_cost() -> Result<f64, BpfError> {
    let attach = if raw::offers(Attach::Multi) {
        Attach::Multi
    } else {
        Attach::Event
    };
    hit_cost_of(attach)
}

/// The same for one way to attach.
fn hit_cost_of(attach: Attach) -> Result<f64, BpfError> {
    let program = raw::load_nothing(attach).map_err(|(source, verdict)| BpfError::Refused {
        program: "on_nothing",
        verdict,
        source,
    })?;
    let path = "/proc/self/exe";
    let attach_error = |source: Box<dyn std::error::Error + Send + Sync>| BpfError::Attach {
        path: path.to_owned(),
        points: 1,
        source,
    };
    let offset = own_offset(pyrobe_probed as *const () as usize as u64)
        .ok_or_else(|| attach_error("our own function is in no mapping".into()))?;
    let (program, half) = (program.as_fd(), raw::Return::No);
    let bare = time(pyrobe_bare);
    let probed = if attach == Attach::Event {
        let events = Events::open()?;
        let _event = events
            .attach(program, half, &[(path, offset)], 0)
            .map_err(|error| attach_error(error.into()))?;
        time(pyrobe_probed)
    } else {
        let _link = raw::link(program, attach, half, path, &[offset], &[0])
            .map_err(|error| attach_error(error.into()))?;
        time(pyrobe_probed)
    };
    Ok((probed - bare).max(0.0))
}

/// Nanoseconds of a call, the fastest of some rounds: what disturbs a round only makes it longer.
fn time(called: extern "C" fn()) -> f64 {
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        for _ in 0..CALLS {
            called();
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hit_costs_the_same_if_others_measure_it_too() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let costs = std::thread::scope(|scope| {
            let all = [(); 3].map(|()| scope.spawn(hit_cost));
            all.map(|one| one.join().map(Result::ok).ok().flatten())
        });
        // Each hit runs the programs of all; none counts as what a call costs without.
        assert!(
            costs.iter().all(|cost| cost.is_some_and(|cost| cost > 50.0)),
            "{costs:?}"
        );
    }

    #[test]
    fn a_hit_costs_something_however_it_is_attached() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        for attach in [Attach::Event, Attach::Multi] {
            if attach == Attach::Multi && !raw::offers(attach) {
                continue;
            }
            let cost = hit_cost_of(attach);
            assert!(cost.as_ref().is_ok_and(|&cost| cost > 0.0), "{cost:?}");
        }
    }
}
