//! A name for a process that no other has had or will have for as long as the machine runs, and whether its bearer is gone.
//!
//! For what a process leaves in the kernel if it is killed: whoever finds it may take it away only if the owner cannot
//! be using it. A pid means something in its pid namespace only, a start time in its time namespace; names from others are
//! of processes that may live.

use std::{fmt, fs, io, os::unix::fs::MetadataExt as _, str::FromStr};

use rustix::{
    io::Errno,
    process::{self as signals, Pid as RawPid},
};

use super::process;
use crate::units::{BootNs, Pid};

/// A process, by a name that is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation {
    pid_namespace: u64,
    time_namespace: u64,
    pid: Pid,
    start: BootNs,
}

impl Incarnation {
    /// This process.
    pub fn own() -> io::Result<Self> {
        let pid = Pid(std::process::id());
        // A kernel without such namespaces has one of each.
        let namespace =
            |kind: &str| fs::metadata(format!("/proc/self/ns/{kind}")).map_or(0, |namespace| namespace.ino());
        Ok(Self {
            pid_namespace: namespace("pid"),
            time_namespace: namespace("time"),
            pid,
            start: process(pid)?.start,
        })
    }

    /// Whether the process is gone, as `own` can tell. `false` where it cannot.
    pub fn is_gone(&self, own: &Self) -> bool {
        if (self.pid_namespace, self.time_namespace) != (own.pid_namespace, own.time_namespace) {
            return false;
        }
        let Some(pid) = i32::try_from(self.pid.get()).ok().and_then(RawPid::from_raw) else {
            return false;
        };
        // A process that may not be looked at is there all the same.
        signals::test_kill_process(pid) == Err(Errno::SRCH)
            || process(self.pid).is_ok_and(|found| found.start != self.start)
    }
}

/// Letters, digits and `_`.
impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}_{}_{}_{}",
            self.pid_namespace, self.time_namespace, self.pid, self.start
        )
    }
}

impl FromStr for Incarnation {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut numbers = text.splitn(4, '_');
        let mut number = || numbers.next().unwrap_or_default().parse::<u64>();
        Ok(Self {
            pid_namespace: number()?,
            time_namespace: number()?,
            pid: Pid(u32::try_from(number()?).unwrap_or(u32::MAX)),
            start: BootNs(number()?),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::process::Command;

    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let own = Incarnation::own().unwrap();
        assert_eq!(own.to_string().parse(), Ok(own));
        assert!("1_2_3".parse::<Incarnation>().is_err());
        assert!("1_2_3_4_5".parse::<Incarnation>().is_err());
    }

    #[test]
    fn a_process_is_gone_when_it_has_been_waited_for() {
        let own = Incarnation::own().unwrap();
        assert!(!own.is_gone(&own));
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid(child.id());
        let start = process(pid).unwrap().start;
        let child_name = Incarnation { pid, start, ..own };
        assert!(!child_name.is_gone(&own));
        child.wait().unwrap();
        assert!(child_name.is_gone(&own));
    }

    #[test]
    fn a_pid_that_another_process_has_now_is_not_its_first_owner() {
        let own = Incarnation::own().unwrap();
        let before = Incarnation {
            start: BootNs(own.start.get() - 1),
            ..own
        };
        assert!(before.is_gone(&own));
    }

    #[test]
    fn of_another_namespace_nothing_is_known() {
        let own = Incarnation::own().unwrap();
        let elsewhere = Incarnation {
            pid_namespace: own.pid_namespace + 1,
            start: BootNs(1),
            ..own
        };
        assert!(!elsewhere.is_gone(&own));
    }
}
