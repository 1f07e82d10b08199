//! The processes of the host, from /proc, each read in full or not at all.
//!
//! Formats: `Documentation/filesystems/proc.rst` of the kernel. A process can vanish, or its pid can become
//! another process, between two reads; the start time is read first and again at the end to notice that.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::cgroup;
use crate::units::{BootNs, Pid};

/// Most bytes read of a command line; the kernel itself sets no bound.
const MAX_COMMAND_LINE: u64 = 64 << 10;
/// Most bytes read of an environment.
const MAX_ENVIRONMENT: u64 = 1 << 20;
/// Most bytes read of the other files, which are short.
const MAX_FILE: u64 = 64 << 10;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Process id.
    pub pid: Pid,
    /// Parent's process id.
    pub parent: Pid,
    /// When it started, a multiple of the clock tick: compare with [`ProcessInfo::started_at`].
    pub start: BootNs,
    /// Effective user id.
    pub uid: u32,
    /// Name of its main thread, at most 15 bytes. Any bytes.
    pub comm: OsString,
    /// Its arguments, perhaps cut. Empty for a kernel thread or zombie.
    pub command_line: Vec<OsString>,
    /// Path of its control group, from the hierarchy's root; the v2 hierarchy if it has one there.
    pub cgroup: String,
    /// Container id, 64 hexadecimal digits.
    pub container: Option<String>,
    /// Path of its executable, as the kernel shows it; `None` for a kernel thread.
    pub exe: Option<PathBuf>,
    /// Whether it has not called exec since it was forked: its memory began as a copy of its parent's.
    pub forked: bool,
}

impl ProcessInfo {
    /// Whether this is the process that started at the exact time `start`.
    pub fn started_at(&self, start: BootNs) -> bool {
        let tick = tick_ns();
        self.start.get() / tick == start.get() / tick
    }
}

/// All processes that can be read, in the order of /proc.
pub fn processes() -> io::Result<impl Iterator<Item = ProcessInfo>> {
    Ok(fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| process(Pid(pid)).ok()))
}

/// One process. An error if it is gone.
pub fn process(pid: Pid) -> io::Result<ProcessInfo> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let stat = parse_stat(&read_bounded(&dir.join("stat"), MAX_FILE)?).ok_or(io::ErrorKind::InvalidData)?;
    let status = read_bounded(&dir.join("status"), MAX_FILE)?;
    let command_line = read_bounded(&dir.join("cmdline"), MAX_COMMAND_LINE)?;
    let cgroup = read_bounded(&dir.join("cgroup"), MAX_FILE).unwrap_or_default();
    let exe = fs::read_link(dir.join("exe")).ok();
    let again = parse_stat(&read_bounded(&dir.join("stat"), MAX_FILE)?).ok_or(io::ErrorKind::InvalidData)?;
    if again.start_ticks != stat.start_ticks {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(ProcessInfo {
        pid,
        parent: Pid(stat.parent),
        start: BootNs(stat.start_ticks.saturating_mul(tick_ns())),
        uid: parse_uid(&status).ok_or(io::ErrorKind::InvalidData)?,
        comm: OsString::from_vec(stat.comm),
        command_line: parse_command_line(&command_line),
        container: cgroup::container_of(&cgroup),
        cgroup: cgroup::path_of(&cgroup),
        exe,
        forked: stat.flags & PF_FORKNOEXEC != 0,
    })
}

/// What a process runs at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Path, as the kernel shows it.
    pub path: PathBuf,
    /// Address of the process's arguments (`mm_struct.arg_start`): another one after an exec.
    pub arguments: u64,
}

/// What a process runs now. An error if it is gone, or becomes another program meanwhile.
pub fn executable(pid: Pid) -> io::Result<Executable> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let arguments = || -> io::Result<u64> {
        parse_arguments(&read_bounded(&dir.join("stat"), MAX_FILE)?).ok_or(io::ErrorKind::InvalidData.into())
    };
    let before = arguments()?;
    let path = fs::read_link(dir.join("exe"))?;
    if before != arguments()? {
        return Err(io::ErrorKind::Interrupted.into());
    }
    Ok(Executable {
        path,
        arguments: before,
    })
}

/// The value that a variable had when the process began; `None` if it was not set.
pub fn environment_variable(pid: Pid, name: &str) -> io::Result<Option<OsString>> {
    let environment = read_bounded(&PathBuf::from(format!("/proc/{pid}/environ")), MAX_ENVIRONMENT)?;
    Ok(environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .map(|value| OsString::from_vec(value.to_vec())))
}

/// Nanoseconds of a clock tick as /proc counts them.
fn tick_ns() -> u64 {
    1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)
}

/// At most `limit` bytes of a file.
pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Set by a fork, cleared by an exec.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/sched.h>
const PF_FORKNOEXEC: u32 = 0x40;

struct Stat {
    comm: Vec<u8>,
    parent: u32,
    flags: u32,
    start_ticks: u64,
}

/// `PID (COMM) STATE PPID ... FLAGS ... STARTTIME ...`, fields 9 and 22; COMM may hold anything, parentheses included, so it
/// ends at the last one.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let comm = stat.get(open + 1..close)?.to_vec();
    let rest = str::from_utf8(stat.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let flags = fields.nth(4)?.parse().ok()?;
    let start_ticks = fields.nth(12)?.parse().ok()?;
    Some(Stat {
        comm,
        parent,
        flags,
        start_ticks,
    })
}

/// `arg_start`, field 48 of the same line; 0 if the reader may not know it.
fn parse_arguments(stat: &[u8]) -> Option<u64> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = str::from_utf8(stat.get(close + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(45)?.parse().ok()
}

/// The effective user id from `Uid:\treal\teffective\t...`. The name in the same file cannot fake that line,
/// because the kernel escapes newlines in it.
fn parse_uid(status: &[u8]) -> Option<u32> {
    let line = status
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"Uid:"))?;
    str::from_utf8(line)
        .ok()?
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Arguments, each ended by a NUL; the last one may have been cut. A process may have overwritten the area
/// with one string without any NUL (`setproctitle`): that is one argument.
fn parse_command_line(bytes: &[u8]) -> Vec<OsString> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes
        .split(|byte| *byte == 0)
        .map(|argument| OsString::from_vec(argument.to_vec()))
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{os::unix::process::CommandExt, process::Command};

    use proptest::prelude::*;

    use super::*;
    use crate::discover::test_support::Cat;

    fn check_stat(line: &[u8], expected: Option<(&[u8], u32, u64)>) {
        let found = parse_stat(line);
        let found = found
            .as_ref()
            .map(|stat| (stat.comm.as_slice(), stat.parent, stat.start_ticks));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_name_with_parentheses_spaces_and_newlines_does_not_shift_the_fields() {
        let tail = b" S 41 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3";
        for comm in [b"python3".as_slice(), b"a) R 1 (b", b"x\ny", b"\xff\xfe", b""] {
            let line = [b"42 (", comm, b")", tail].concat();
            check_stat(&line, Some((comm, 41, 98765)));
        }
        check_stat(b"42 (cut) S 41 1 1", None);
        check_stat(b"", None);
        check_stat(b") (", None);
    }

    #[test]
    fn the_effective_user_is_the_second_of_the_line() {
        assert_eq!(
            parse_uid(b"Name:\tUid:\\n\nUid:\t0\t33\t0\t0\nGid:\t1\n"),
            Some(33)
        );
        assert_eq!(parse_uid(b"Name:\tx\n"), None);
    }

    #[test]
    fn arguments_keep_empty_ones_and_any_bytes() {
        let parse = |bytes: &[u8]| -> Vec<Vec<u8>> {
            parse_command_line(bytes)
                .into_iter()
                .map(OsString::into_vec)
                .collect()
        };
        assert_eq!(
            parse(b"python3\0\0-c\0a\nb\0"),
            [b"python3".as_slice(), b"", b"-c", b"a\nb"]
        );
        assert_eq!(parse(b"title: \xff"), [b"title: \xff"]);
        assert!(parse(b"").is_empty());
    }

    #[test]
    fn this_process_is_found_with_what_it_knows_of_itself() {
        let me = processes()
            .unwrap()
            .find(|process| process.pid.get() == std::process::id())
            .unwrap();
        assert_eq!(me.exe, std::env::current_exe().ok());
        assert_eq!(me.command_line, std::env::args_os().collect::<Vec<_>>());
        assert_eq!(me.uid, rustix::process::geteuid().as_raw());
        assert_eq!(me.parent.get(), std::os::unix::process::parent_id());
        assert!(!me.forked);
        assert!(me.started_at(BootNs(me.start.get() + 1)));
        assert!(!me.started_at(BootNs(me.start.get() + 2_000_000_000)));
    }

    #[test]
    fn this_process_has_an_executable_and_arguments() {
        let me = executable(Pid(std::process::id())).unwrap();
        assert_eq!(Some(me.path), std::env::current_exe().ok());
        // They are on the stack, high above what is local here.
        let local = 0_u8;
        assert!(me.arguments > std::ptr::from_ref(&local).addr() as u64 || me.arguments == 0);
    }

    #[test]
    fn a_child_that_has_exited_is_an_error_and_not_a_panic() {
        let cat = Cat::start(Command::new("cat").arg0("a\nb (c"));
        let pid = cat.pid();
        let info = process(pid).unwrap();
        assert_eq!(info.command_line, ["a\nb (c"]);
        assert_eq!(info.parent.get(), std::process::id());
        drop(cat);
        assert!(process(pid).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            parse_stat(&bytes);
            parse_uid(&bytes);
            parse_command_line(&bytes);
        }
    }
}
