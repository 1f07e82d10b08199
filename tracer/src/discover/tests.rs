//! Discovery on real interpreters: found, opened, placed and read, below our root and below others.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and says why it skips"
)]

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use object::{Endianness, elf, read::elf::FileHeader, read::elf::ProgramHeader};

use super::{
    test_support::{Cat, copy_program, pyenv_version, python_below_another_root, static_python},
    *,
};
use crate::units::{FileOffset, Pid, ProcAddr, VirtAddr};

/// Prints its pid, then waits for the end of its standard input.
const WAIT: &str = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()";

/// A running Python; it ends when its standard input is closed.
struct Running {
    child: Child,
    pid: Pid,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let pid = Pid(line.trim().parse().unwrap());
        Self { child, pid }
    }

    /// The file whose name starts so.
    fn mapped(&self, name: &str) -> MappedFile {
        mapped_files(self.pid)
            .unwrap()
            .into_iter()
            .find(|file| file.path.file_name().unwrap().to_string_lossy().starts_with(name))
            .unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

fn segments(mut file: &File) -> Vec<LoadSegment> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    let data = bytes.as_slice();
    let header = elf::FileHeader64::<Endianness>::parse(data).unwrap();
    let endian = header.endian().unwrap();
    let headers = header.program_headers(endian, data).unwrap();
    headers
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .map(|segment| LoadSegment {
            address: VirtAddr(segment.p_vaddr(endian)),
            offset: FileOffset(segment.p_offset(endian)),
            file_size: segment.p_filesz(endian),
            exec: segment.p_flags(endian) & elf::PF_X != 0,
        })
        .collect()
}

/// The image is opened as the file at `path` and its code stands in memory where the bias says.
fn check_image(running: &Running, mapped: &MappedFile, path: &Path, via: Via) {
    let opened = open_mapped(running.pid, mapped).unwrap();
    assert_eq!(opened.key, ImageKey::of(File::open(path).unwrap()).unwrap());
    assert_eq!(opened.via, via);
    let segments = segments(&opened.file);
    let bias = bias(&mapped.ranges, &segments).unwrap();
    let mut compared = 0;
    for segment in segments.iter().filter(|segment| segment.exec) {
        let mut code = vec![0; usize::try_from(segment.file_size.min(1 << 20)).unwrap()];
        opened
            .file
            .read_exact_at(&mut code, segment.offset.get())
            .unwrap();
        let place = ProcAddr(bias.wrapping_add(segment.address.get()));
        assert_eq!(read_memory(running.pid, place, code.len()).unwrap(), code);
        compared += code.len();
    }
    assert!(compared > 1000, "{compared} bytes of code");
}

fn python(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.args(["-c", WAIT]);
    command
}

#[test]
fn a_static_interpreter_is_placed() {
    let Some(path) = static_python() else { return };
    let running = Running::start(&mut python(&path));
    check_image(&running, &running.mapped("python3"), &path, Via::MapFiles);
    let info = process(running.pid).unwrap();
    assert_eq!(info.exe, Some(path.clone()));
    assert_eq!(
        info.command_line,
        [path.as_os_str(), "-c".as_ref(), WAIT.as_ref()]
    );
}

#[test]
fn shared_interpreters_are_placed() {
    for (version, short) in [("3.9.18", "3.9"), ("3.11.7", "3.11"), ("3.13.0", "3.13")] {
        let Some(root) = pyenv_version(version) else {
            continue;
        };
        let running = Running::start(&mut python(&root.join("bin/python3")));
        let library = root.join(format!("lib/libpython{short}.so.1.0"));
        check_image(&running, &running.mapped("libpython"), &library, Via::MapFiles);
    }
}

#[test]
fn an_interpreter_below_another_root_is_opened_and_placed() {
    let Some((path, root)) = python_below_another_root() else {
        return;
    };
    let inside = Path::new("/").join(path.strip_prefix(&root).unwrap());
    let mut chroot = Command::new("chroot");
    let running = Running::start(chroot.arg(&root).arg(inside).args(["-c", WAIT]));
    let mapped = running.mapped("python3");
    // Same mount namespace: the kernel shows the path as we see it.
    assert_eq!(mapped.path, path);
    check_image(&running, &mapped, &path, Via::MapFiles);
}

/// Runs a Python in a mount namespace of its own whose root is `root`, as a container does.
fn contained(root: &Path, inside: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg("mount --bind \"$0\" \"$0\"; cd \"$0\"; pivot_root . mnt; exec chroot . \"$1\" -c \"$2\"")
        .arg(root)
        .arg(inside)
        .arg(WAIT);
    command
}

#[test]
fn an_interpreter_in_another_mount_namespace_is_opened_and_placed() {
    let Some((path, root)) = python_below_another_root() else {
        return;
    };
    let inside = Path::new("/").join(path.strip_prefix(&root).unwrap());
    let running = Running::start(&mut contained(&root, &inside));
    let mapped = running.mapped("python3");
    // The kernel shows the path as the container sees it; here it may name another file, or none.
    assert_eq!(mapped.path, inside);
    check_image(&running, &mapped, &path, Via::MapFiles);
    // Without the right to use map_files, by the path below its root.
    let mut by_path = mapped;
    by_path.ranges.clear();
    let opened = open_mapped(running.pid, &by_path).unwrap();
    assert_eq!(opened.via, Via::ProcessRoot);
    assert_eq!(opened.key, ImageKey::of(File::open(&path).unwrap()).unwrap());
}

#[test]
fn a_new_interpreter_is_classified_from_what_the_watcher_saw() {
    let Some(path) = static_python() else { return };
    let mut watcher = match MapWatcher::start() {
        Ok(watcher) => watcher,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("renamed");
    copy_program(&path, &copy);
    let running = Running::start(&mut python(&copy));
    let mut events = Vec::new();
    watcher.drain(&mut events);
    let mut classifier = Classifier::default();
    let found: Vec<PathBuf> = events
        .iter()
        .filter_map(|event| match event {
            MapEvent::Mapped(mapping) if mapping.pid == running.pid => Some(mapping),
            _ => None,
        })
        .filter(|mapping| {
            let examine = |file: &File| segments(file).len();
            *classifier.classify_mapping(mapping, examine).unwrap() > 0
        })
        .map(|mapping| mapping.path.clone())
        .collect();
    assert!(found.contains(&copy), "{found:?}");
    assert!(found.len() > 2, "{found:?}");
}

#[test]
fn a_program_on_a_layered_file_system_is_opened_although_devices_differ() {
    let mut watcher = match MapWatcher::start() {
        Ok(watcher) => watcher,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let mut classifier = Classifier::default();
    // A mount that is gone gives its device number to the next one, so all stay.
    let (mut kinds, mut keys, mut cats) = (Vec::new(), Vec::new(), Vec::new());
    let script = "mount -t tmpfs none \"$0\"; cd \"$0\"; mkdir upper work all; \
        mount -t overlay none -o lowerdir=/usr/bin,upperdir=upper,workdir=work all; \
        if [ $1 = upper ]; then cp -p all/cat new; mv new all/cat; fi; exec all/cat";
    for layer in ["lower", "lower", "upper"] {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", script]);
        let cat = Cat::start(command.arg(dir.path()).arg(layer));
        let mapped = mapped_files(cat.pid()).unwrap().remove(0);
        let opened = open_mapped(cat.pid(), &mapped).unwrap();
        assert_eq!(opened.via, Via::MapFiles);
        assert_eq!(opened.key.inode, mapped.inode, "{layer}");
        let mut events = Vec::new();
        watcher.drain(&mut events);
        let seen = events.iter().any(|event| match event {
            MapEvent::Mapped(mapping) if mapping.pid == cat.pid() && mapping.path.ends_with("all/cat") => {
                open_mapped(cat.pid(), &mapping.as_file()).unwrap().key == opened.key
            }
            _ => false,
        });
        assert!(seen, "{layer}: {mapped:?} {events:?}");
        kinds.push(classifier.classify(&opened.file, |_| opened.key).unwrap());
        keys.push(opened.key);
        cats.push(cat);
    }
    // Two mounts of one layer are one file with two keys; its copy above is another.
    assert_ne!(keys[0], keys[1]);
    assert!(Arc::ptr_eq(&kinds[0], &kinds[1]));
    assert!(!Arc::ptr_eq(&kinds[0], &kinds[2]));
}

#[test]
fn the_environment_of_a_process_is_read() {
    let Some(path) = static_python() else { return };
    let running = Running::start(python(&path).env("PYTHONMALLOC", "malloc").env("A", "x=y"));
    let value = |name: &str| environment_variable(running.pid, name).unwrap();
    assert_eq!(value("PYTHONMALLOC"), Some("malloc".into()));
    assert_eq!(value("A"), Some("x=y".into()));
    assert_eq!(value("PYTHON"), None);
}
