//! Control group and container of a process, from the text of /proc/PID/cgroup.
//!
//! No container runtime is asked: all of them put the container's 64-digit id into the group's path.
//! Names: `cri-containerd-ID.scope`, `docker-ID.scope`, `crio-ID.scope`, `libpod-ID.scope` under systemd,
//! `docker/ID` and `kubepods/.../ID` under cgroupfs.

/// Digits of a container id.
const ID_DIGITS: usize = 64;

/// The path in the v2 hierarchy; on a host with v1 only (or where v2 is mounted but not used), the first other
/// one that says more than `/`.
pub(super) fn path_of(text: &[u8]) -> String {
    let paths = || lines(text);
    let unified = paths().find(|(id, _)| *id == b"0").map(|(_, path)| path);
    let path = match unified {
        Some(path) if path != b"/" => path,
        _ => paths()
            .map(|(_, path)| path)
            .find(|path| *path != b"/")
            .or(unified)
            .unwrap_or_default(),
    };
    String::from_utf8_lossy(path).into_owned()
}

/// The container id in any of the paths.
pub(super) fn container_of(text: &[u8]) -> Option<String> {
    lines(text).find_map(|(_, path)| container_id(&String::from_utf8_lossy(path)))
}

/// The container id in the path of a control group: that of the innermost container.
pub fn container_id(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|component| {
        let name = component.strip_suffix(".scope").unwrap_or(component);
        // The runtime's own monitor process runs beside the container, in a group named after it.
        if name.contains("conmon") {
            return None;
        }
        let id = name.rsplit(['-', ':']).next()?;
        let is_id = id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| id.to_ascii_lowercase())
    })
}

/// `ID:CONTROLLERS:PATH` lines as (id, path).
fn lines(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let id = fields.next()?;
        Some((id, fields.nth(1)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn check(path: &str, expected: Option<&str>) {
        let path = path.replace("ID", ID);
        assert_eq!(container_id(&path).as_deref(), expected, "{path}");
    }

    #[test]
    fn the_id_is_found_as_every_runtime_writes_it() {
        check("/system.slice/docker-ID.scope", Some(ID));
        check("/docker/ID", Some(ID));
        check("/docker/ID/init.scope", Some(ID));
        check(
            "/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope",
            Some(ID),
        );
        check("/kubepods/burstable/pod0f-3/ID", Some(ID));
        check("/kubepods.slice/crio-ID.scope/container", Some(ID));
        check("/machine.slice/libpod-ID.scope/container", Some(ID));
        check("/k8s.slice:cri-containerd:ID", Some(ID));
    }

    #[test]
    fn what_only_looks_like_one_is_none() {
        check("/machine.slice/libpod-conmon-ID.scope", None);
        check("/user.slice/user-1000.slice/session-3.scope", None);
        check("/docker/0123", None);
        check("/docker/IDf", None);
        check(
            "/docker/zz23456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            None,
        );
        check("/", None);
        check("", None);
    }

    #[test]
    fn the_unified_path_comes_first_unless_it_is_the_root() {
        assert_eq!(path_of(b"4:memory:/m\n0::/user.slice/a:b\n"), "/user.slice/a:b");
        assert_eq!(path_of(b"9:name=systemd:/\n4:memory:/m\n0::/\n"), "/m");
        assert_eq!(path_of(b"0::/\n"), "/");
        assert_eq!(path_of(b""), "");
        assert_eq!(path_of(b"garbage\n\xff::/x\n"), "/x");
    }

    #[test]
    fn a_v1_host_names_the_container_in_any_hierarchy() {
        let text = format!("5:cpu:/\n4:memory:/docker/{ID}\n0::/\n");
        assert_eq!(container_of(text.as_bytes()).as_deref(), Some(ID));
    }
}
