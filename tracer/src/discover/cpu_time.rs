//! The processor time of another process, exact and in one system call, and that of this thread.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::units::Pid;

/// `CPUCLOCK_SCHED`: all that its threads have run so far, those that are gone too.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/posix-timers_types.h>
const CLOCK_OF_PROCESS: libc::clockid_t = 2;

/// What a process has used so far; `None` if it is gone.
pub fn cpu_time(pid: Pid) -> Option<Duration> {
    let pid = libc::pid_t::try_from(pid.get()).ok()?;
    let clock = !pid << 3 | CLOCK_OF_PROCESS;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel checks the clock, and writes to `time`, which lives.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(
        u64::try_from(time.tv_sec).ok()?,
        u32::try_from(time.tv_nsec).ok()?,
    ))
}

/// What this thread has used so far.
pub fn own_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    let nanos = u32::try_from(spent.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(spent.tv_sec).unwrap_or(0), nanos)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::process::Command;

    use super::*;
    use crate::discover::test_support::Cat;

    #[test]
    fn what_a_process_has_used_is_known_until_it_is_gone() {
        let cat = Cat::start(&mut Command::new("cat"));
        let pid = cat.pid();
        let used = cpu_time(pid).unwrap();
        assert!(
            used > Duration::ZERO && used < Duration::from_secs(10),
            "{used:?}"
        );
        drop(cat);
        assert_eq!(cpu_time(pid), None);
        assert_eq!(cpu_time(Pid(u32::MAX)), None);
    }
}
