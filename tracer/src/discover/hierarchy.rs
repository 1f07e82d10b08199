//! The control groups of this host: version 2 of them, which every process is in one of.
//!
//! A group's number, by which the kernel side knows it, is the inode of its directory (`cgroup_id` in the
//! kernel's `include/linux/cgroup.h`). No container runtime is asked: a container is the groups named after it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use super::{cgroup::container_id, process::read_bounded, select::SelectError};

/// Most bytes read of the list of mounts.
const MAX_MOUNTS: u64 = 4 << 20;
/// Most directories looked at when a container is looked for.
const MAX_GROUPS: usize = 100_000;
/// Container ids that an error names.
const SHOWN: usize = 5;

/// A control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlGroup {
    /// Path from the hierarchy's root, as /proc/PID/cgroup shows it.
    pub path: String,
    /// The kernel's number for it.
    pub id: u64,
}

impl ControlGroup {
    /// Whether the group at `path` is this one or below it.
    pub fn holds(&self, path: &str) -> bool {
        path.strip_prefix(self.path.trim_end_matches('/'))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// The v2 hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    mount: PathBuf,
}

impl Hierarchy {
    /// As this host mounts it: at `/sys/fs/cgroup`, or below it where version 1 is used as well.
    pub(super) fn of_host() -> Result<Self, SelectError> {
        let mounts = read_bounded(Path::new("/proc/self/mounts"), MAX_MOUNTS).unwrap_or_default();
        mount_point(&String::from_utf8_lossy(&mounts))
            .map(|mount| Self { mount })
            .ok_or(SelectError::NoHierarchy)
    }

    /// The group at a path that begins at the hierarchy's root, or at the host's.
    pub(super) fn group(&self, given: &str) -> Result<ControlGroup, SelectError> {
        let path = Path::new(given);
        let inside = [&self.mount, Path::new("/sys/fs/cgroup")]
            .iter()
            .find_map(|mount| path.strip_prefix(mount).ok())
            .unwrap_or_else(|| path.strip_prefix("/").unwrap_or(path));
        let plain = inside
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        self.at(inside)
            .filter(|_| plain && !given.is_empty())
            .ok_or_else(|| SelectError::NoGroup {
                path: given.to_owned(),
                mount: self.mount.display().to_string(),
            })
    }

    /// The container whose id begins with these digits, and its groups.
    pub(super) fn container(&self, given: &str) -> Result<(String, Vec<ControlGroup>), SelectError> {
        let digits = given.to_ascii_lowercase();
        if !(1..=64).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(SelectError::NotAnId { id: given.to_owned() });
        }
        let mut found = self.containers()?;
        found.retain(|id, _| id.starts_with(&digits));
        if found.len() > 1 {
            let shown = found.keys().take(SHOWN);
            return Err(SelectError::Ambiguous {
                id: given.to_owned(),
                found: shown.map(|id| id.get(..16).unwrap_or(id).to_owned()).collect(),
            });
        }
        found
            .pop_first()
            .ok_or_else(|| SelectError::NoContainer { id: given.to_owned() })
    }

    /// The groups that are named after containers, by their ids.
    fn containers(&self) -> Result<BTreeMap<String, Vec<ControlGroup>>, SelectError> {
        let mut found: BTreeMap<String, Vec<ControlGroup>> = BTreeMap::new();
        let mut left = vec![PathBuf::new()];
        let mut looked_at = 0;
        while let Some(inside) = left.pop() {
            let children = match fs::read_dir(self.mount.join(&inside)) {
                Ok(children) => children,
                Err(source) if inside.as_os_str().is_empty() => {
                    return Err(SelectError::Unreadable {
                        mount: self.mount.display().to_string(),
                        source,
                    });
                }
                // It is gone.
                Err(_) => continue,
            };
            let directories = children
                .flatten()
                .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()));
            for directory in directories {
                let inside = inside.join(directory.file_name());
                // A container's own groups are below its group.
                match container_id(&directory.file_name().to_string_lossy()) {
                    Some(id) => found.entry(id).or_default().extend(self.at(&inside)),
                    None if looked_at < MAX_GROUPS => left.push(inside),
                    None => {}
                }
                looked_at += 1;
            }
        }
        Ok(found)
    }

    /// The group in a directory, given from the hierarchy's root.
    fn at(&self, inside: &Path) -> Option<ControlGroup> {
        let directory = fs::metadata(self.mount.join(inside)).ok()?;
        directory.is_dir().then(|| ControlGroup {
            path: format!("/{}", inside.display()),
            id: directory.ino(),
        })
    }
}

/// The mount point in lines of `DEVICE DIRECTORY TYPE ...`.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let directory = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(directory))
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const FIRST: &str = "abc3456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const SECOND: &str = "abd3456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// A hierarchy's look-alike.
    fn hierarchy(groups: &[&str]) -> (tempfile::TempDir, Hierarchy) {
        let directory = tempfile::tempdir().unwrap();
        for group in groups {
            fs::create_dir_all(directory.path().join(group)).unwrap();
        }
        let mount = directory.path().to_owned();
        (directory, Hierarchy { mount })
    }

    #[test]
    fn a_group_is_found_with_and_without_the_mount_point() {
        let (_directory, hierarchy) = hierarchy(&["a.slice/b.service"]);
        let mount = hierarchy.mount.to_str().unwrap().to_owned();
        let wanted = hierarchy.group("/a.slice/b.service").unwrap();
        assert_eq!(wanted.path, "/a.slice/b.service");
        for given in [
            "a.slice/b.service".to_owned(),
            "/a.slice/b.service/".to_owned(),
            format!("{mount}/a.slice/b.service"),
            "/sys/fs/cgroup/a.slice/b.service".to_owned(),
        ] {
            assert_eq!(hierarchy.group(&given).unwrap().id, wanted.id, "{given}");
        }
        for given in ["", "/c.slice", "/a.slice/../a.slice", "/../../etc"] {
            assert!(
                matches!(hierarchy.group(given), Err(SelectError::NoGroup { .. })),
                "{given}"
            );
        }
    }

    #[test]
    fn a_group_holds_itself_and_what_is_below() {
        let group = |path: &str| ControlGroup {
            path: path.to_owned(),
            id: 1,
        };
        assert!(group("/a/b").holds("/a/b") && group("/a/b").holds("/a/b/c"));
        assert!(!group("/a/b").holds("/a/bc") && !group("/a/b").holds("/a"));
        assert!(group("/").holds("/") && group("/").holds("/a"));
    }

    #[test]
    fn a_container_is_found_by_its_id_or_the_beginning_of_it() {
        let first = format!("system.slice/docker-{FIRST}.scope/init.scope");
        let second = format!("kubepods.slice/pod1/cri-containerd-{SECOND}.scope");
        let monitor = format!("machine.slice/libpod-conmon-{FIRST}.scope");
        let (_directory, hierarchy) = hierarchy(&[&first, &second, &monitor, "user.slice"]);
        for given in [FIRST, "abc", "ABC3", &FIRST[..12]] {
            let (id, groups) = hierarchy.container(given).unwrap();
            assert_eq!(id, FIRST);
            assert_eq!(
                groups.iter().map(|group| group.path.as_str()).collect::<Vec<_>>(),
                [format!("/system.slice/docker-{FIRST}.scope")]
            );
        }
        let error = |given: &str| hierarchy.container(given).unwrap_err();
        assert!(matches!(error("ab"), SelectError::Ambiguous { found, .. } if found.len() == 2));
        assert!(matches!(error("0"), SelectError::NoContainer { .. }));
        assert!(matches!(error(""), SelectError::NotAnId { .. }));
        assert!(matches!(error("my-app"), SelectError::NotAnId { .. }));
        assert!(matches!(error(&format!("{FIRST}0")), SelectError::NotAnId { .. }));
    }

    #[test]
    fn the_hierarchy_is_where_it_is_mounted() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
    }
}
