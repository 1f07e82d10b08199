//! /proc/PID/smaps: how much of each part of a process's address space is memory of its own.
//!
//! Reading it makes the kernel walk the process's page tables, so it is done now and then, not often. Format:
//! `show_smap` in the kernel's `fs/proc/task_mmu.c`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
};

use crate::{ingest::Region, units::Pid};

/// Most bytes read of one process: some 60,000 mappings, near the kernel's default limit.
const MAX_SMAPS: u64 = 64 << 20;

/// The parts with anonymous memory that is resident, by address. An error if the process is gone; nothing if it has no
/// memory.
pub fn anonymous_regions(pid: Pid) -> io::Result<Vec<Region>> {
    let smaps = File::open(format!("/proc/{pid}/smaps"))?;
    parse(BufReader::with_capacity(64 << 10, smaps.take(MAX_SMAPS)))
}

fn parse(mut smaps: impl BufRead) -> io::Result<Vec<Region>> {
    let mut regions: Vec<Region> = Vec::new();
    let mut current = None;
    let mut has_memory = false;
    let mut line = Vec::new();
    while smaps.read_until(b'\n', &mut line)? > 0 {
        if let Some(range) = range(&line) {
            current = Some(range);
            has_memory = false;
        } else if let Some(anonymous) = bytes(&line, b"Anonymous:")
            && let Some((start, end)) = current.take()
            && anonymous > 0
        {
            has_memory = true;
            regions.push(Region {
                start,
                end,
                anonymous,
                huge: 0,
            });
        } else if let Some(huge) = bytes(&line, b"AnonHugePages:")
            && let Some(region) = regions.last_mut().filter(|_| has_memory)
        {
            region.huge = huge;
        }
        line.clear();
    }
    Ok(regions)
}

/// The range in the line that a mapping begins with. All others begin with a capital and a colon follows; a path can
/// hold anything, but stands further back.
fn range(line: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(line.split(|&byte| byte == b' ').next()?).ok()?;
    let (start, end) = text.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (address(start)?, address(end)?);
    (start < end).then_some((start, end))
}

/// Bytes in a line `NAME:  12 kB`.
fn bytes(line: &[u8], name: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(name)?;
    let text = std::str::from_utf8(rest).ok()?;
    let kib: u64 = text.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const TEXT: &str = "\
00400000-00401000 r-xp 00000000 fe:00 12 /bin/a
Rss:                   4 kB
Anonymous:             0 kB
01000000-01100000 rw-p 00000000 00:00 0 [heap]
Rss:                 512 kB
Anonymous:           500 kB
AnonHugePages:         0 kB
7f0000000000-7f0000200000 rw-p 00000000 00:00 0 
Anonymous:          2048 kB
AnonHugePages:      2048 kB
7f1000000000-7f1000200000 r--p 00000000 fe:00 13 /lib/c
Anonymous:             0 kB
AnonHugePages:         4 kB
";

    #[test]
    fn regions_with_memory_of_their_own_are_found() {
        let region = |start, end, anonymous, huge| Region {
            start,
            end,
            anonymous,
            huge,
        };
        assert_eq!(
            parse(TEXT.as_bytes()).unwrap(),
            [
                region(0x0100_0000, 0x0110_0000, 500 << 10, 0),
                region(0x7f00_0000_0000, 0x7f00_0020_0000, 2048 << 10, 2048 << 10),
            ]
        );
        assert_eq!(
            parse(&b"\xff\xfe-1\nAnonymous: x kB\nAnonymous: 3 kB\n"[..]).unwrap(),
            []
        );
    }

    #[test]
    fn this_process_has_memory() {
        let regions = anonymous_regions(Pid(std::process::id())).unwrap();
        let local = 0_u8;
        let address = (&raw const local).addr() as u64;
        let stack = regions
            .iter()
            .find(|region| (region.start..region.end).contains(&address));
        // A thread's stack may be a part of a larger region, and is touched here.
        assert!(stack.unwrap().anonymous >= 4096);
    }
}
