//! Who a process is: its key, its names, how it ended.
//!
//! Apart from the snapshot, since the profile keeps it while the process runs. Invariant: a pid alone names
//! nothing; all text is escaped on its way in.

use serde::{Deserialize, Serialize};

use crate::{
    ingest::event,
    symbolize::name_of_bytes,
    units::{BootNs, MonotonicNs, Pid},
};

/// What names a process, for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Process id; reused by the kernel.
    pub pid: Pid,
    /// When it started; `None` if its start was not delivered.
    pub start: Option<BootNs>,
    /// 0 for the first program traced in this process, one more after each exec.
    pub incarnation: u32,
}

/// How a process ended, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It did not, while it was recorded.
    #[default]
    Running,
    /// It exited.
    Exit,
    /// It became another program.
    Exec,
    /// Its end was not delivered, and its pid belongs to another now.
    Unseen,
}

/// Who a process is. All text is escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessInfo {
    /// What names it.
    pub key: ProcessKey,
    /// Short name: the program, or the script or module that an interpreter runs.
    pub name: String,
    /// Task name.
    pub comm: String,
    /// Arguments joined by spaces; perhaps cut.
    pub command_line: String,
    /// Parent's process id, if its start was delivered.
    pub parent: Option<Pid>,
    /// Effective user id, if its start was delivered.
    pub uid: Option<u32>,
    /// Control group id, if its start was delivered.
    pub cgroup: Option<u64>,
    /// Ids of the images it was seen to use.
    pub images: Vec<u32>,
    /// `PY_VERSION_HEX` of its interpreter, if a code object was seen.
    pub version_hex: Option<u32>,
    /// When it was first seen.
    pub first_seen: Option<MonotonicNs>,
    /// When its last event was made.
    pub last_seen: Option<MonotonicNs>,
    /// How it ended.
    pub end: End,
}

impl ProcessInfo {
    /// A process of which an event came before its start did.
    pub(super) fn unseen(pid: Pid) -> Self {
        Self {
            key: ProcessKey {
                pid,
                start: None,
                incarnation: 0,
            },
            name: "[unknown process]".to_owned(),
            comm: String::new(),
            command_line: String::new(),
            parent: None,
            uid: None,
            cgroup: None,
            images: Vec::new(),
            version_hex: None,
            first_seen: None,
            last_seen: None,
            end: End::Running,
        }
    }

    pub(super) fn from_event(event: &event::Process<'_>) -> Self {
        let arguments: Vec<&[u8]> = event
            .command_line
            .split(|&byte| byte == 0)
            .filter(|arg| !arg.is_empty())
            .collect();
        let comm = name_of_bytes(event.comm);
        Self {
            key: ProcessKey {
                pid: event.pid,
                start: Some(event.start),
                incarnation: 0,
            },
            name: short_name(&arguments).unwrap_or_else(|| comm.clone()),
            comm,
            command_line: name_of_bytes(&arguments.join(&b' ')),
            parent: Some(event.parent),
            uid: Some(event.uid),
            cgroup: Some(event.cgroup),
            images: vec![event.image.0],
            version_hex: None,
            first_seen: Some(event.time),
            last_seen: Some(event.time),
            end: End::Running,
        }
    }

    /// Takes what a process event says, if it can be about this process: then `true`.
    pub(super) fn absorb(&mut self, event: &Self) -> bool {
        let same_start = match (self.key.start, event.key.start) {
            (Some(known), Some(told)) => event::same_start(known, told),
            (known, told) => known.is_none() || known == told,
        };
        let described = self.parent.is_some();
        if !same_start || described && (self.command_line != event.command_line || self.comm != event.comm) {
            return false;
        }
        if described {
            // The kernel side knows it better than /proc.
            self.key.start = self.key.start.max(event.key.start);
            self.images.extend(
                event
                    .images
                    .iter()
                    .filter(|image| !self.images.contains(image))
                    .copied()
                    .collect::<Vec<_>>(),
            );
            return true;
        }
        *self = Self {
            key: ProcessKey {
                incarnation: self.key.incarnation,
                ..event.key
            },
            version_hex: self.version_hex,
            last_seen: self.last_seen.max(event.last_seen),
            ..event.clone()
        };
        true
    }

    /// How long it was seen, nanoseconds.
    pub fn seen_ns(&self) -> Option<u64> {
        Some(self.last_seen?.0.saturating_sub(self.first_seen?.0))
    }
}

/// Longest short name, characters.
const MAX_NAME: usize = 48;

/// The script or module an interpreter runs, or the program's own name.
fn short_name(arguments: &[&[u8]]) -> Option<String> {
    let base = |path: &[u8]| {
        path.rsplit(|&byte| byte == b'/')
            .next()
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    };
    let (program, rest) = arguments.split_first()?;
    let mut name = base(program);
    // A title that the program gave itself (`worker: 3/8 idle`) is no path.
    if program.contains(&b' ') {
        name = program.to_vec();
    } else if name.starts_with(b"python") || name.starts_with(b"pypy") {
        let mut rest = rest.iter();
        while let Some(&argument) = rest.next() {
            match argument {
                b"-m" | b"-c" => {
                    let module = if argument == b"-m" { rest.next() } else { None };
                    name = [name.as_slice(), argument].join(&b' ');
                    if let Some(module) = module {
                        name = [name.as_slice(), module].join(&b' ');
                    }
                    break;
                }
                // The options that have an argument of their own.
                b"-W" | b"-X" | b"--check-hash-based-pycs" => drop(rest.next()),
                _ if argument.starts_with(b"-") => {}
                script => {
                    name = base(script);
                    break;
                }
            }
        }
    }
    let name: String = name_of_bytes(&name).chars().take(MAX_NAME).collect();
    (!name.is_empty()).then_some(name)
}

/// `PY_VERSION_HEX` as text: `3.11.2`, `3.15.0a2`.
pub fn version_name(hex: u32) -> String {
    let [major, minor, micro, level] = hex.to_be_bytes();
    let serial = level & 15;
    let suffix = match level >> 4 {
        0xa => format!("a{serial}"),
        0xb => format!("b{serial}"),
        0xc => format!("rc{serial}"),
        _ => String::new(),
    };
    format!("{major}.{minor}.{micro}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(arguments: &[&str], expected: Option<&str>) {
        let arguments: Vec<&[u8]> = arguments.iter().map(|text| text.as_bytes()).collect();
        assert_eq!(short_name(&arguments).as_deref(), expected);
    }

    #[test]
    fn a_process_is_named_after_what_it_runs() {
        check(
            &[
                "/usr/bin/python3",
                "-u",
                "-X",
                "dev",
                "/srv/app.py",
                "--port",
                "1",
            ],
            Some("app.py"),
        );
        check(&["python3", "-m", "http.server"], Some("python3 -m http.server"));
        check(&["python3.11", "-c", "import x"], Some("python3.11 -c"));
        check(&["python3"], Some("python3"));
        check(&["/usr/sbin/uwsgi", "--ini", "a"], Some("uwsgi"));
        check(&["gunicorn: master [a/b]"], Some("gunicorn: master [a/b]"));
        check(&["/bin/\x1b[2J"], Some("\\x1b[2J"));
        check(&[], None);
    }

    #[test]
    fn versions_have_their_names() {
        assert_eq!(version_name(0x030b_02f0), "3.11.2");
        assert_eq!(version_name(0x030f_00a2), "3.15.0a2");
        assert_eq!(version_name(0x030e_00c1), "3.14.0rc1");
    }
}
