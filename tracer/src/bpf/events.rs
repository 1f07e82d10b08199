//! Probes as events of tracefs: many points under one name, which one perf event switches on and off at once.
//!
//! For kernels without multi links. A perf event for each point would be the other way there, and each of those waits,
//! when it is closed, for a grace period of its own under a mutex of the kernel: seconds for one image.
//!
//! Definitions outlive who made them, so a name says whose it is. Invariant: a definition is removed only when nothing
//! uses it, after its link is closed or when its owner is gone: of an event with several probes the kernel does not ask,
//! and frees what is in use.
//! <https://github.com/torvalds/linux/blob/v6.1/kernel/trace/trace_uprobe.c> (`unregister_trace_uprobe`)

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::{
    fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

use super::{BpfError, raw};
use crate::discover::Incarnation;

/// Where tracefs is, if it is mounted.
const MOUNTED: &str = "/sys/kernel/tracing";
/// The file that probes are defined and listed in.
const DEFINITIONS: &str = "uprobe_events";
/// What groups of ours begin with.
const PREFIX: &str = "pyrobe_";
/// Events made by this process so far: their names differ whoever made them.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Where events are defined.
pub(super) struct Events {
    tracefs: Arc<OwnedFd>,
    group: String,
}

impl Events {
    /// Finds tracefs, and removes what a pyrobe that was killed has left there.
    pub(super) fn open() -> Result<Self, BpfError> {
        Self::open_all().map_err(|source| BpfError::NoTracefs { source })
    }

    fn open_all() -> io::Result<Self> {
        let own = Incarnation::own()?;
        let tracefs = tracefs()?;
        let mut list = String::new();
        File::from(openat(
            &tracefs,
            DEFINITIONS,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
        .read_to_string(&mut list)?;
        for name in left_over(&list, |owner| owner.is_gone(&own)) {
            match define(&tracefs, &format!("-:{name}\n")) {
                Ok(()) => tracing::debug!("removed the definition {name} of a pyrobe that was killed"),
                // Another pyrobe may have been faster.
                Err(error) => tracing::debug!("cannot remove the definition {name}: {error}"),
            }
        }
        Ok(Self {
            tracefs: Arc::new(tracefs),
            group: format!("{PREFIX}{own}"),
        })
    }

    /// Attaches a program to places, each a path that leads to a file and an offset in it, in every process. All hits have the
    /// cookie.
    pub(super) fn attach(
        &self,
        program: BorrowedFd<'_>,
        half: raw::Return,
        places: &[(&str, u64)],
        cookie: u64,
    ) -> io::Result<(OwnedFd, Definition)> {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let kind = if half == raw::Return::Yes { 'r' } else { 'p' };
        let definition = Definition {
            tracefs: Arc::clone(&self.tracefs),
            name: format!("{}/{kind}{number}", self.group),
        };
        let mut text = String::new();
        for (path, offset) in places {
            writeln!(text, "{kind}:{} {path}:{offset:#x}", definition.name).map_err(io::Error::other)?;
        }
        define(&self.tracefs, &text)?;
        let link = raw::event_link(program, definition.id()?, cookie)?;
        Ok((link, definition))
    }
}

/// An event that exists. Dropping it removes it: its link must be closed by then.
pub(super) struct Definition {
    tracefs: Arc<OwnedFd>,
    name: String,
}

impl Definition {
    /// The number by which perf knows the event.
    fn id(&self) -> io::Result<u64> {
        let file = openat(
            &*self.tracefs,
            format!("events/{}/id", self.name),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text)?;
        text.trim().parse().map_err(io::Error::other)
    }
}

impl Drop for Definition {
    fn drop(&mut self) {
        if let Err(error) = define(&self.tracefs, &format!("-:{}\n", self.name)) {
            tracing::debug!("cannot remove the definition {}: {error}", self.name);
        }
    }
}

/// Gives tracefs commands, one a line.
fn define(tracefs: &OwnedFd, commands: &str) -> io::Result<()> {
    // Never truncating: that removes the events of all.
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
    File::from(openat(tracefs, DEFINITIONS, flags, Mode::empty())?).write_all(commands.as_bytes())
}

/// The directory of tracefs: where it is mounted, or else a mount of our own that nobody else sees.
fn tracefs() -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(mounted) = openat(CWD, MOUNTED, flags, Mode::empty())
        && accessat(&mounted, DEFINITIONS, Access::WRITE_OK, AtFlags::empty()).is_ok()
    {
        return Ok(mounted);
    }
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// Names of the events in a list of definitions that are of ours, but of an owner that is gone.
fn left_over(list: &str, is_gone: impl Fn(&Incarnation) -> bool) -> BTreeSet<&str> {
    list.lines()
        .filter_map(|line| {
            // `p:GROUP/EVENT PATH:OFFSET`
            let name = line.split_once(':')?.1.split_once(' ')?.0;
            let owner = name.split_once('/')?.0.strip_prefix(PREFIX)?.parse().ok()?;
            is_gone(&owner).then_some(name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(list: &str, gone: &[&str], expected: &[&str]) {
        let gone = |owner: &Incarnation| gone.contains(&owner.to_string().as_str());
        let found: Vec<&str> = left_over(list, gone).into_iter().collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_left_of_a_dead_owner_is_found_once_and_nothing_else() {
        let list = "\
p:pyrobe_1_2_30_400/p0 /proc/self/fd/9:0x0000000000001000
p:pyrobe_1_2_30_400/p0 /proc/self/fd/9:0x0000000000001100
r:pyrobe_1_2_30_400/r1 /proc/self/fd/9:0x0000000000001100
p:pyrobe_1_2_31_400/p0 /proc/self/fd/9:0x0000000000001000
p:pyrobe_mine/p0 /bin/sh:0x0000000000001000
p:uprobes/p0 /bin/a b:0x0000000000001000 arg1=%ax
";
        let gone = "1_2_30_400";
        check(list, &[gone], &["pyrobe_1_2_30_400/p0", "pyrobe_1_2_30_400/r1"]);
        check(list, &[], &[]);
        check("", &[gone], &[]);
    }
}
