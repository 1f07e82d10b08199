//! Which processes a user means: by executable, control group, container or user.
//!
//! Kinds that are given must all be met; of several of one kind, any will do. What can be wrong with the words is
//! found here, before anything is traced. The kernel side judges users and groups by the numbers found here.

use std::{fmt, io, path::Path};

use super::{
    hierarchy::{ControlGroup, Hierarchy},
    process::ProcessInfo,
    user::UserNames,
};

/// Why processes cannot be selected that way.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// Not a pattern.
    #[error("{pattern:?} is not a pattern")]
    Pattern {
        /// What was given.
        pattern: String,
        /// What is wrong with it.
        source: glob::PatternError,
    },
    /// No such user.
    #[error("there is no user {name:?}")]
    NoUser {
        /// What was given.
        name: String,
    },
    /// The host has no v2 hierarchy.
    #[error("this host has no control group hierarchy of version 2")]
    NoHierarchy,
    /// It cannot be read.
    #[error("cannot read the control groups below {mount}")]
    Unreadable {
        /// Where they are.
        mount: String,
        /// Why.
        source: io::Error,
    },
    /// No such control group.
    #[error("there is no control group {path:?} below {mount}")]
    NoGroup {
        /// What was given.
        path: String,
        /// Where it was looked for.
        mount: String,
    },
    /// Not the start of a container id.
    #[error("{id:?} is not the id of a container, nor the beginning of one")]
    NotAnId {
        /// What was given.
        id: String,
    },
    /// No such container.
    #[error("there is no container {id:?}")]
    NoContainer {
        /// What was given.
        id: String,
    },
    /// Several containers.
    #[error("{id:?} is the beginning of several container ids: {}", .found.join(", "))]
    Ambiguous {
        /// What was given.
        id: String,
        /// Some of them, shortened.
        found: Vec<String>,
    },
}

impl SelectError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Pattern { .. } => {
                "* stands for anything but a slash, ** between slashes for any directories, ? and [ab] for a character"
            }
            Self::NoUser { .. } => "give a name of /etc/passwd or a number",
            Self::NoHierarchy => "select processes with --pid, --exe or --user",
            Self::Unreadable { .. } => "run as root",
            Self::NoGroup { .. } => "`cat /proc/PID/cgroup` shows a process's group, behind 0::",
            Self::NotAnId { .. } => {
                "an id has up to 64 hexadecimal digits; what a container is called only its runtime knows"
            }
            Self::NoContainer { .. } => {
                "`pyrobe ps` shows the containers of running Python processes; the container must exist by now"
            }
            Self::Ambiguous { .. } => "give more of its digits",
        }
    }
}

/// A pattern for the path of an executable, or for its file name if there is no slash in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutablePattern(glob::Pattern);

impl ExecutablePattern {
    fn parse(pattern: &str) -> Result<Self, SelectError> {
        glob::Pattern::new(pattern)
            .map(Self)
            .map_err(|source| SelectError::Pattern {
                pattern: pattern.to_owned(),
                source,
            })
    }

    /// Whether an executable is meant, by its path as /proc/PID/exe shows it.
    pub fn matches(&self, path: &Path) -> bool {
        let path = path.to_string_lossy();
        let path = path.strip_suffix(" (deleted)").unwrap_or(&path);
        let text = if self.0.as_str().contains('/') {
            path
        } else {
            path.rsplit('/').next().unwrap_or_default()
        };
        let options = glob::MatchOptions {
            require_literal_separator: true,
            ..glob::MatchOptions::default()
        };
        self.0.matches_with(text, options)
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub uid: u32,
    given: String,
}

impl User {
    /// By name; a number that is no name is an id, known or not.
    fn find(given: &str, names: &UserNames) -> Result<Self, SelectError> {
        let uid = names
            .id_of(given)
            .or_else(|| given.parse().ok())
            .ok_or_else(|| SelectError::NoUser {
                name: given.to_owned(),
            })?;
        Ok(Self {
            uid,
            given: given.to_owned(),
        })
    }
}

/// What was asked for, word by word.
#[derive(Clone, Copy, Debug, Default)]
pub struct Words<'a> {
    /// Patterns for executables.
    pub executables: &'a [String],
    /// Paths of control groups.
    pub cgroups: &'a [String],
    /// Container ids, or their beginnings.
    pub containers: &'a [String],
    /// Names or ids of users.
    pub users: &'a [String],
}

/// What a process must be to be selected. With nothing in it, every process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Its executable matches one of these.
    pub executables: Vec<ExecutablePattern>,
    /// It is in one of these, or below.
    pub cgroups: Vec<ControlGroup>,
    /// Ids of containers, one of which it is in.
    pub containers: Vec<String>,
    /// The control groups of those containers.
    pub container_groups: Vec<ControlGroup>,
    /// Its effective user is one of these.
    pub users: Vec<User>,
}

impl Selection {
    /// Looks the words up on this host.
    pub fn resolve(words: Words<'_>) -> Result<Self, SelectError> {
        let mut selection = Self::default();
        for pattern in words.executables {
            selection.executables.push(ExecutablePattern::parse(pattern)?);
        }
        if !words.users.is_empty() {
            let names = UserNames::of_host();
            for name in words.users {
                selection.users.push(User::find(name, &names)?);
            }
        }
        if !words.cgroups.is_empty() || !words.containers.is_empty() {
            let hierarchy = Hierarchy::of_host()?;
            for path in words.cgroups {
                selection.cgroups.push(hierarchy.group(path)?);
            }
            for id in words.containers {
                let (id, groups) = hierarchy.container(id)?;
                selection.containers.push(id);
                selection.container_groups.extend(groups);
            }
        }
        Ok(selection)
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a process is selected.
    pub fn matches(&self, process: &ProcessInfo) -> bool {
        fn any<T>(wanted: &[T], met: impl FnMut(&T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().any(met)
        }
        let executable = process.exe.as_deref();
        any(&self.executables, |pattern| {
            executable.is_some_and(|path| pattern.matches(path))
        }) && any(&self.users, |user| user.uid == process.uid)
            && any(&self.cgroups, |group| group.holds(&process.cgroup))
            && any(&self.container_groups, |group| group.holds(&process.cgroup))
    }
}

impl fmt::Display for Selection {
    /// `user root, executable python3*`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let executables = self.executables.iter().map(|pattern| pattern.0.as_str());
        let cgroups = self.cgroups.iter().map(|group| group.path.as_str());
        let containers = self.containers.iter().map(|id| id.get(..12).unwrap_or(id));
        let users = self.users.iter().map(|user| user.given.as_str());
        let kinds: [(&str, Vec<&str>); 4] = [
            ("user", users.collect()),
            ("control group", cgroups.collect()),
            ("container", containers.collect()),
            ("executable", executables.collect()),
        ];
        let mut between = "";
        for (kind, wanted) in kinds.iter().filter(|(_, wanted)| !wanted.is_empty()) {
            write!(f, "{between}{kind} {}", wanted.join(" or "))?;
            between = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::PathBuf;

    use super::*;
    use crate::discover::process;
    use crate::units::Pid;

    fn check(pattern: &str, path: &str, expected: bool) {
        let pattern = ExecutablePattern::parse(pattern).unwrap();
        assert_eq!(pattern.matches(Path::new(path)), expected, "{pattern:?} {path}");
    }

    #[test]
    fn a_pattern_without_a_slash_is_for_the_file_name() {
        check("python3.11", "/usr/bin/python3.11", true);
        check("python3.1?", "/usr/bin/python3.11", true);
        check("python3", "/usr/bin/python3.11", false);
        check("python*", "/opt/python/bin/uwsgi", false);
        check("python3.11", "/usr/bin/python3.11 (deleted)", true);
    }

    #[test]
    fn a_pattern_with_a_slash_is_for_the_whole_path() {
        check("/usr/bin/python*", "/usr/bin/python3.11", true);
        check("/usr/*", "/usr/bin/python3.11", false);
        check("/usr/*/python3.11", "/usr/bin/python3.11", true);
        check("/**/python3.11", "/srv/a/b/python3.11", true);
        check("bin/python3.11", "/usr/bin/python3.11", false);
    }

    #[test]
    fn a_broken_pattern_is_an_error() {
        for pattern in ["[ab", "a***b", "/usr/**x"] {
            assert!(ExecutablePattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_user_is_a_name_or_a_number() {
        let names = UserNames::of_host();
        assert_eq!(User::find("root", &names).unwrap().uid, 0);
        assert_eq!(User::find("12345678", &names).unwrap().uid, 12_345_678);
        for name in ["no such user", "-1", "4294967296", ""] {
            assert!(User::find(name, &names).is_err(), "{name}");
        }
    }

    #[test]
    fn every_kind_must_be_met_and_of_one_kind_any() {
        let me = process(Pid(std::process::id())).unwrap();
        let own_name = me.exe.clone().unwrap_or_default();
        let own_name = own_name.file_name().unwrap().to_str().unwrap().to_owned();
        let select = |executables: &[&str], users: &[&str]| {
            let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
            let (executables, users) = (owned(executables), owned(users));
            let selection = Selection::resolve(Words {
                executables: &executables,
                users: &users,
                ..Words::default()
            });
            selection.unwrap().matches(&me)
        };
        let uid = me.uid.to_string();
        assert!(select(&[], &[]));
        assert!(select(&["nothing", &own_name], &[]));
        assert!(select(&[&own_name], &["12345678", &uid]));
        assert!(!select(&[&own_name], &["12345678"]));
        assert!(!select(&["nothing"], &[&uid]));
        let kernel_thread = ProcessInfo {
            exe: None,
            ..me.clone()
        };
        let pattern = ExecutablePattern::parse("*").unwrap();
        let all = Selection {
            executables: vec![pattern],
            ..Selection::default()
        };
        assert!(all.matches(&me) && !all.matches(&kernel_thread));
        assert!(PathBuf::from(own_name).is_relative());
    }

    #[test]
    fn a_selection_says_what_it_is() {
        let words = ["python3.11".to_owned(), "uwsgi".to_owned()];
        let selection = Selection::resolve(Words {
            executables: &words,
            users: &["root".to_owned()],
            ..Words::default()
        });
        assert_eq!(
            selection.unwrap().to_string(),
            "user root, executable python3.11 or uwsgi"
        );
    }
}
