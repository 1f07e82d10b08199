//! /proc/PID/maps: which files a process has mapped to run code from them.
//!
//! A file counts when one of its mappings is executable; all its mappings are then kept, because the data of
//! an image is found through them too. Format: `show_map_vma` in the kernel's `fs/proc/task_mmu.c`.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
};

use crate::units::{FileOffset, Pid, ProcAddr};

/// Most bytes read of one process's maps: about 600,000 mappings, past the kernel's default limit of 65,530.
const MAX_MAPS: u64 = 64 << 20;
/// The kernel appends this to the path of a file that has no name any more.
const DELETED: &[u8] = b" (deleted)";

/// One mapping of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: ProcAddr,
    /// Behind the last byte.
    pub end: ProcAddr,
    /// What of the file stands at `start`.
    pub file_offset: FileOffset,
    /// Whether code in it can run.
    pub exec: bool,
}

/// A file of which a process maps code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedFile {
    /// Device, as `makedev` numbers it. Not always what `stat` says: see `open_mapped`.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Path, as seen from this process's root if it can be reached from there, else from its own mount's.
    pub path: PathBuf,
    /// Whether it has no name any more. (A file whose name ends like that looks the same; only the opened
    /// file knows.)
    pub deleted: bool,
    /// Its mappings, by address.
    pub ranges: Vec<Range>,
}

/// The files of which a process maps code, in the order of their lowest addresses. An error if it is gone; no
/// files if it has no memory, as a kernel thread.
pub fn mapped_files(pid: Pid) -> io::Result<Vec<MappedFile>> {
    let maps = File::open(format!("/proc/{pid}/maps"))?;
    parse(BufReader::with_capacity(64 << 10, maps.take(MAX_MAPS)))
}

fn parse(mut maps: impl BufRead) -> io::Result<Vec<MappedFile>> {
    let mut files: BTreeMap<(u64, u64), (ProcAddr, MappedFile)> = BTreeMap::new();
    let mut executable = HashSet::new();
    let mut line = Vec::new();
    while {
        line.clear();
        maps.read_until(b'\n', &mut line)? > 0
    } {
        let Some(mapping) = parse_line(line.strip_suffix(b"\n").unwrap_or(&line)) else {
            continue;
        };
        let key = (mapping.device, mapping.inode);
        if mapping.range.exec {
            executable.insert(key);
        }
        files
            .entry(key)
            .or_insert_with(|| {
                let (path, deleted) = split_deleted(mapping.path);
                let file = MappedFile {
                    device: mapping.device,
                    inode: mapping.inode,
                    path: PathBuf::from(OsString::from_vec(unescape(path))),
                    deleted,
                    ranges: Vec::new(),
                };
                (mapping.range.start, file)
            })
            .1
            .ranges
            .push(mapping.range);
    }
    let mut files: Vec<_> = files
        .into_iter()
        .filter(|(key, _)| executable.contains(key))
        .map(|(_, file)| file)
        .collect();
    files.sort_by_key(|(start, _)| *start);
    Ok(files.into_iter().map(|(_, file)| file).collect())
}

struct Mapping<'a> {
    range: Range,
    device: u64,
    inode: u64,
    path: &'a [u8],
}

/// `START-END PERM OFFSET MAJOR:MINOR INODE   PATH`; `None` if it is no file's.
fn parse_line(line: &[u8]) -> Option<Mapping<'_>> {
    let mut rest = line;
    let mut field = || {
        let end = rest.iter().position(|byte| *byte == b' ')?;
        let (field, after) = rest.split_at_checked(end)?;
        rest = after.get(1..)?;
        str::from_utf8(field).ok()
    };
    let (start, end) = field()?.split_once('-')?;
    let permissions = field()?;
    let offset = field()?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?.parse().ok()?;
    let padding = rest.iter().position(|byte| *byte != b' ')?;
    let path = rest.get(padding..)?;
    if inode == 0 || !path.starts_with(b"/") {
        return None;
    }
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some(Mapping {
        range: Range {
            start: ProcAddr(hex(start)?),
            end: ProcAddr(hex(end)?),
            file_offset: FileOffset(hex(offset)?),
            exec: permissions.as_bytes().get(2) == Some(&b'x'),
        },
        device: rustix::fs::makedev(number(major)?, number(minor)?),
        inode,
        path,
    })
}

/// A path as the kernel shows it: the path, and whether its file has no name any more.
pub(super) fn split_deleted(path: &[u8]) -> (&[u8], bool) {
    match path.strip_suffix(DELETED) {
        Some(path) => (path, true),
        None => (path, false),
    }
}

/// Undoes the kernel's escapes: only a newline is written as `\012` in this file, and a backslash stays as it
/// is, so that any other escape is the name's own.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            name.push(b'\n');
            rest = after;
        } else {
            name.push(*byte);
            rest = after;
        }
    }
    name
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::{ffi::OsStrExt, fs::MetadataExt};

    use proptest::prelude::*;

    use super::*;

    const MAPS: &[u8] = b"\
5500-5600 r--p 00000000 fe:00 77                         /usr/bin/python3.11
5600-5700 r-xp 00001000 fe:00 77                         /usr/bin/python3.11
5700-5800 rw-p 00002000 fe:00 77                         /usr/bin/python3.11
5800-5900 rw-p 00000000 00:00 0                          [heap]
7000-7100 r--p 00000000 fe:00 99                         /usr/lib/locale/C.utf8
7100-7200 r-xp 00003000 00:1f 18446744073709551615       /tmp/a b\\012c\\134 (deleted)
7200-7300 r-xs 00000000 00:05 1024                       anon_inode:[x]
7300-7400 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn files_with_code_are_kept_with_all_their_mappings() {
        let files = parse(MAPS).unwrap();
        let [python, odd] = files.as_slice() else {
            panic!("{files:?}");
        };
        assert_eq!(python.path.as_os_str(), "/usr/bin/python3.11");
        assert_eq!((python.device, python.inode), (0xfe00, 77));
        let shape: Vec<_> = python
            .ranges
            .iter()
            .map(|range| (range.start.get(), range.file_offset.get(), range.exec))
            .collect();
        assert_eq!(
            shape,
            [
                (0x5500, 0, false),
                (0x5600, 0x1000, true),
                (0x5700, 0x2000, false)
            ]
        );
        assert!(!python.deleted && odd.deleted);
        assert_eq!(odd.path.as_os_str().as_bytes(), b"/tmp/a b\nc\\134");
        assert_eq!(odd.inode, u64::MAX);
    }

    #[test]
    fn damaged_lines_are_left_out() {
        let text: &[u8] =
            b"zz-5600 r-xp 0 fe:00 7 /a\n1-2 r-xp 0 fe:00\n\n1-2 r-xp 0 fe-00 7 /a\n1-2 r-xp 0 1:2 7 b";
        assert_eq!(parse(text).unwrap(), []);
    }

    #[test]
    fn this_process_maps_its_own_executable() {
        let exe = std::env::current_exe().unwrap();
        let files = mapped_files(Pid(std::process::id())).unwrap();
        let me = files.iter().find(|file| file.path == exe).unwrap();
        assert_eq!(me.inode, std::fs::metadata(&exe).unwrap().ino());
        assert!(me.ranges.is_sorted_by_key(|range| range.start));
        assert!(me.ranges.len() > 2);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in prop::collection::vec(any::<u8>(), 0..400)) {
            parse(text.as_slice()).unwrap();
        }

        #[test]
        fn any_name_comes_back(name in prop::collection::vec(1u8.., 1..40)) {
            // A name that already looks escaped cannot be told from one that was.
            prop_assume!(!name.windows(4).any(|part| part == b"\\012"));
            prop_assume!(!name.ends_with(DELETED));
            let escaped: Vec<u8> = name.iter().flat_map(|byte| match byte {
                b'\n' => b"\\012".to_vec(),
                byte => vec![*byte],
            }).collect();
            let line = [b"1000-2000 r-xp 00000000 08:01 5    /".as_slice(), &escaped].concat();
            let files = parse(line.as_slice()).unwrap();
            prop_assert_eq!(files[0].path.as_os_str().as_bytes(), [b"/".as_slice(), &name].concat());
        }
    }
}
