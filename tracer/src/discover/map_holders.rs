//! Which processes hold eBPF maps: how a recorder is told that runs beside this one.
//!
//! Format: `bpf_map_show_fdinfo` of
//! <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/syscall.c>. A descriptor can be closed between two reads: then
//! it is not told of.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::process::read_bounded;
use crate::units::Pid;

/// Most bytes read of what the kernel says of a descriptor or of a process.
const MAX_FILE: u64 = 64 << 10;
/// Most maps of a process that are told of.
const MAX_MAPS: usize = 256;

/// A process that holds maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapHolder {
    /// The process.
    pub pid: Pid,
    /// The process id by which it knows itself, in a pid namespace of its own.
    pub own_pid: u32,
    /// Ids of the maps.
    pub maps: Vec<u32>,
}

/// All that can be looked into.
pub fn map_holders() -> Vec<MapHolder> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(holder).collect()
}

fn holder(pid: u32) -> Option<MapHolder> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = fs::read_dir(dir.join("fd")).ok()?;
    let of_map = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|to| to == Path::new("anon_inode:bpf-map"))
    };
    let maps: Vec<u32> = descriptors
        .filter_map(Result::ok)
        .filter(of_map)
        .filter_map(|entry| {
            let info = read_bounded(&dir.join("fdinfo").join(entry.file_name()), MAX_FILE).ok()?;
            number(&info, "map_id:")
        })
        .take(MAX_MAPS)
        .collect();
    if maps.is_empty() {
        return None;
    }
    let status = read_bounded(&dir.join("status"), MAX_FILE).ok()?;
    Some(MapHolder {
        pid: Pid(pid),
        // A kernel without pid namespaces has no such line.
        own_pid: number(&status, "NSpid:").unwrap_or(pid),
        maps,
    })
}

/// The last number of the line that starts so.
fn number(text: &[u8], start: &str) -> Option<u32> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(start.as_bytes()))?;
    str::from_utf8(line)
        .ok()?
        .split_ascii_whitespace()
        .last()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_of_a_line_counts() {
        let info = b"pos:\t0\nmap_type:\t2\nmap_id:\t417\nfrozen:\t0\n";
        assert_eq!(number(info, "map_id:"), Some(417));
        assert_eq!(number(b"Name:\tx\nNSpid:\t4242\t17\n", "NSpid:"), Some(17));
        assert_eq!(number(b"NSpid:\t\n", "NSpid:"), None);
        assert_eq!(number(b"NSpid:\t\xff\n", "NSpid:"), None);
        assert_eq!(number(b"", "NSpid:"), None);
    }

    #[test]
    fn who_has_no_map_is_no_holder() {
        assert_eq!(holder(0), None);
        // Nobody has so many processes.
        assert_eq!(holder(u32::MAX), None);
    }
}
