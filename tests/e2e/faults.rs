//! What goes wrong in the world: killed programs, full disks, cut files, missing rights, forged files.
//!
//! Always the same demand: a clear error with a hint, nothing lost that was written, targets unharmed, no panic.

use std::{
    ffi::OsString,
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create, fsmount,
        fsopen, mount, unmount,
    },
    process::Signal,
};
use tempfile::TempDir;

use crate::support::{
    capture::{Capture, list_processes, record},
    collapsed,
    interpreters::{Id, find},
    recording::Recording,
    run::{Run, pyrobe, pyrobe_path, run},
    skip,
    target::Target,
};

fn record_pid(target: &Target, file: &Path) -> Recording {
    record_pid_with(target, file, &[])
}

fn record_pid_with(target: &Target, file: &Path, options: &[&str]) -> Recording {
    let pid = target.pid().to_string();
    let mut command = pyrobe(["record", "--mode", "allocs", "--pid", &pid]);
    Recording::start(command.args(options).arg("-o").arg(file))
}

/// Bytes of a process's mapped Python code that differ from the file: the probes that stand in it.
fn changed_code_bytes(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).expect("root can read memory");
    maps.lines()
        .filter(|line| line.contains(" r-xp ") && line.contains("python"))
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (start, end) = fields[0].split_once('-').expect("a range of addresses");
            let address = |text: &str| u64::from_str_radix(text, 16).expect("a hexadecimal number");
            let (start, length) = (address(start), address(end) - address(start));
            let read = |file: &mut fs::File, from: u64| {
                let mut bytes = Vec::new();
                file.seek(SeekFrom::Start(from)).expect("a file can be sought in");
                file.take(length)
                    .read_to_end(&mut bytes)
                    .expect("mapped code can be read");
                bytes
            };
            let in_memory = read(&mut memory, start);
            let in_file = read(
                &mut fs::File::open(fields[5]).expect("the file is there"),
                address(fields[2]),
            );
            in_memory
                .iter()
                .zip(&in_file)
                .filter(|(memory, file)| memory != file)
                .count()
        })
        .sum()
}

#[test]
fn pyrobe_killed_leaves_targets_whole_and_a_capture_that_can_be_read() {
    for links in ["session", "multi", "per-point"] {
        kill_and_look(links);
    }
}

fn kill_and_look(links: &str) {
    let Some(interpreter) = find(Id::Pyenv(10)) else {
        return;
    };
    let mut target = Target::start(&interpreter);
    let capture = Capture::new();
    let recording = record_pid_with(&target, &capture.path, &["--links", links]);
    assert!(
        changed_code_bytes(target.pid()) > 0,
        "no probe stands in the target while it is recorded"
    );
    target.tell("make 50000 100");
    recording.signal(Signal::KILL);
    assert_eq!(recording.wait().code(), 128 + 9);
    assert_eq!(target.tell("make 1000 100"), "done", "the target goes on");
    // Another test may record the same interpreter, so its probes may stand there: ask until none does.
    wait_until("no probe is left in the target", || {
        changed_code_bytes(target.pid()) == 0
    });
    let stats = capture.run(&["report", "stats"], &["--json"]);
    assert!(matches!(stats.code(), 0 | 3), "the capture can be read\n{stats}");
    assert!(
        stats.json()["truncated"].is_string(),
        "the report says that the capture is cut\n{stats}"
    );
    target.finish();
}

/// The events of tracefs that a process has defined, from a mount of our own.
fn definitions_of(pid: u32) -> Vec<String> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC).expect("root can mount");
    fsconfig_create(&context).expect("the kernel has tracefs");
    let tracefs = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .expect("tracefs can be mounted");
    let file = openat(
        &tracefs,
        "uprobe_events",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .expect("tracefs has the list");
    let mut list = String::new();
    fs::File::from(file)
        .read_to_string(&mut list)
        .expect("root can read the list");
    let its = format!("_{pid}_");
    let of_it = list
        .lines()
        .filter(|line| line.contains(":pyrobe_") && line.contains(&its));
    of_it.map(str::to_owned).collect()
}

#[test]
fn what_a_killed_pyrobe_leaves_in_tracefs_the_next_removes() {
    let Some(interpreter) = find(Id::Pyenv(10)) else {
        return;
    };
    let mut target = Target::start(&interpreter);
    let per_point = ["--links", "per-point"];
    let (killed, ended) = (Capture::new(), Capture::new());
    let recording = record_pid_with(&target, &killed.path, &per_point);
    let pid = recording.pid();
    assert_ne!(definitions_of(pid), [""; 0], "a recording defines events");
    recording.signal(Signal::KILL);
    assert_eq!(recording.wait().code(), 128 + 9);
    let recording = record_pid_with(&target, &ended.path, &per_point);
    assert_eq!(
        definitions_of(pid),
        [""; 0],
        "the definitions of one that was killed are gone"
    );
    let pid = recording.pid();
    assert_ne!(definitions_of(pid), [""; 0], "those of the one that runs are not");
    target.tell("make 100 100");
    recording.stop().expect_code(0);
    assert_eq!(definitions_of(pid), [""; 0], "one that ends leaves none");
    target.finish();
}

/// Asks again and again, for states that nobody announces; fails at a deadline far above what it takes.
#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < crate::support::run::DEADLINE,
            "it never came true: {what}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_target_killed_in_a_run_is_recorded_up_to_its_end() {
    let Some(interpreter) = find(Id::Pyenv(13)) else {
        return;
    };
    let mut target = Target::start(&interpreter);
    let (pid, frame) = (target.pid(), target.make_frame());
    let capture = Capture::new();
    let recording = record_pid(&target, &capture.path);
    target.tell("make 2000 100");
    target.kill();
    recording.wait().expect_code(0);
    let made = collapsed::sum(&capture.stacks("count"), pid, &[frame]);
    assert!((2000..2100).contains(&made), "{made} blocks instead of 2000");
}

#[test]
fn the_exit_code_of_the_command_is_passed_on() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let capture = Capture::new();
    let mut command = pyrobe(["record", "-o"]);
    command
        .arg(&capture.path)
        .arg("--")
        .args(interpreter.command_line());
    command.args([
        "-c",
        "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)",
    ]);
    let run = run(&mut command).expect_code(7).expect_stderr("err\n");
    assert_eq!(
        run.stdout_text(),
        "out\n",
        "the command's standard output is passed through alone"
    );
}

/// A file system of one mebibyte, unmounted when this is dropped.
struct TinyDisk(TempDir);

impl TinyDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        mount(
            "none",
            directory.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=1m"),
        )
        .expect("root can mount");
        Self(directory)
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // What is left mounted goes with the machine; the test has its verdict.
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_ends_the_recording_in_part_and_keeps_what_was_written() {
    let Some(interpreter) = find(Id::Pyenv(11)) else {
        return;
    };
    let mut target = Target::start(&interpreter);
    let disk = TinyDisk::new();
    let file = disk.0.path().join("full.pyrobe");
    let recording = record_pid(&target, &file);
    target.tell("spread 2000");
    target.tell("make 500000 100");
    let run = recording.stop().expect_code(3).expect_error_with_hint();
    assert!(
        run.stderr.contains("No space left on device"),
        "the cause is named\n{run}"
    );
    let stats = Capture::at(&file).run(&["report", "stats"], &["--json"]);
    assert!(
        matches!(stats.code(), 0 | 3),
        "what was written can be read\n{stats}"
    );
    assert!(
        stats.json()["total_allocations"].as_u64() > Some(0),
        "something was written\n{stats}"
    );
    assert_eq!(target.tell("make 10 100"), "done", "the target goes on");
    target.finish();
}

#[test]
fn a_cut_capture_is_read_to_its_last_whole_block() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let recorded = record(&interpreter, "exec_reuse.py", &[], &[]);
    let whole = fs::read(&recorded.capture.path).expect("the capture is there");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("cut.pyrobe");
    for part in 0..20 {
        let length = whole.len() * part / 20;
        fs::write(&file, &whole[..length]).expect("a file can be written");
        let stats = Capture::at(&file).run(&["report", "stats"], &["--json"]);
        assert!(
            !stats.stderr.contains("panicked"),
            "cut at {length} of {}\n{stats}",
            whole.len()
        );
        if stats.code() == 2 {
            stats.expect_error_with_hint();
        } else {
            assert!(
                stats.json()["truncated"].is_string(),
                "cut at {length} of {}\n{stats}",
                whole.len()
            );
        }
    }
}

#[test]
fn a_user_without_the_right_to_trace_is_told_what_is_missing() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let target = Target::start(&interpreter);
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("a mode can be set");
    // The build directory may be where only root can look.
    let program = directory.path().join("pyrobe");
    fs::copy(pyrobe_path(), &program).expect("the program can be copied");
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(program);
    command.args(["record", "--pid", &target.pid().to_string(), "-o", "out.pyrobe"]);
    command.current_dir(directory.path());
    run(&mut command).expect_code(2).expect_error_with_hint();
    target.finish();
}

#[test]
fn without_btf_the_error_names_it() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let target = Target::start(&interpreter);
    let capture = Capture::new();
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(pyrobe_path());
    command
        .args(["record", "--pid", &target.pid().to_string(), "-o"])
        .arg(&capture.path);
    let run = run(&mut command).expect_code(2).expect_error_with_hint();
    assert!(
        run.stderr.contains("BTF"),
        "the error names what is missing\n{run}"
    );
    target.finish();
}

#[test]
fn without_tracefs_the_error_names_it() {
    let Some(interpreter) = find(Id::Debian311) else {
        return;
    };
    let target = Target::start(&interpreter);
    let capture = Capture::new();
    // Per-point links are events of tracefs; who may mount it needs nobody to have done so.
    let script = "mount -t tmpfs none /sys/kernel/tracing && exec setpriv --bounding-set -sys_admin \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(pyrobe_path());
    command
        .args([
            "record",
            "--links",
            "per-point",
            "--pid",
            &target.pid().to_string(),
            "-o",
        ])
        .arg(&capture.path);
    let run = run(&mut command).expect_code(2).expect_error_with_hint();
    assert!(
        run.stderr.contains("tracefs"),
        "the error names what is missing\n{run}"
    );
    target.finish();
}

fn record_only(pid: u32) -> Run {
    let capture = Capture::new();
    run(pyrobe(["record", "--pid", &pid.to_string(), "-o"]).arg(&capture.path))
}

#[test]
fn a_process_that_is_gone_is_nothing_to_trace() {
    if !skip::have_root() {
        return;
    }
    let mut child = Command::new("true").spawn().expect("true can be started");
    let pid = child.id();
    child.wait().expect("a child can be waited for by its parent");
    record_only(pid)
        .expect_code(1)
        .expect_error_with_hint()
        .expect_stderr(&pid.to_string());
}

#[test]
fn a_process_that_is_not_python_is_nothing_to_trace() {
    if !skip::have_root() {
        return;
    }
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .spawn()
        .expect("cat can be started");
    record_only(child.id())
        .expect_code(1)
        .expect_error_with_hint()
        .expect_stderr(&child.id().to_string());
    child.kill().expect("a child can be killed by its parent");
    child.wait().expect("a child can be waited for by its parent");
}

/// Forgeries of a real `libpython`: cut, and with numbers in the header that lead nowhere.
fn forgeries(real: &Path, directory: &Path) -> Vec<PathBuf> {
    let bytes = fs::read(real).expect("the library can be read");
    let with = |offset: usize, forged: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[offset..offset + forged.len()].copy_from_slice(forged);
        bytes
    };
    let forged: Vec<Vec<u8>> = vec![
        bytes[..64].to_vec(),
        bytes[..bytes.len() / 2].to_vec(),
        bytes[..bytes.len() - 1].to_vec(),
        // e_phoff, e_shoff, e_phnum and e_shnum, e_shstrndx (elf(5)).
        with(32, &u64::MAX.to_le_bytes()),
        with(40, &(u64::MAX - 63).to_le_bytes()),
        with(56, &[0xff; 2]),
        with(60, &[0xff; 2]),
        with(62, &[0xff; 2]),
        // Everything behind the header.
        [&bytes[..64], &vec![0xff; bytes.len() - 64][..]].concat(),
    ];
    forged
        .iter()
        .enumerate()
        .map(|(number, bytes)| {
            let place = directory.join(number.to_string());
            fs::create_dir(&place).expect("a directory can be made");
            let file = place.join(real.file_name().expect("a library has a name"));
            fs::write(&file, bytes).expect("a file can be written");
            file
        })
        .collect()
}

#[test]
fn forged_libraries_stop_neither_the_list_nor_a_recording() {
    let Some(interpreter) = find(Id::Pyenv(12)) else {
        return;
    };
    let real = interpreter.program.with_file_name("../lib/libpython3.12.so.1.0");
    let real = real
        .canonicalize()
        .expect("a pyenv-style build has a shared library");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut target = Target::start(&interpreter);
    let pid = target.pid();
    for file in forgeries(&real, directory.path()) {
        target.tell(&format!("map {}", file.display()));
    }
    let rows = list_processes();
    assert!(
        rows.iter().any(|row| row["pid"] == pid),
        "the process is listed: {rows:?}"
    );
    let capture = Capture::new();
    let recording = record_pid(&target, &capture.path);
    target.tell("make 500 100");
    let run = recording.stop();
    assert!(matches!(run.code(), 0 | 3), "the real library is traced\n{run}");
    let counts = capture.stacks("count");
    let seen = counts.iter().any(|stack| {
        stack.pid == pid && stack.value >= 500 && stack.frames.iter().any(|frame| frame.function == "make")
    });
    assert!(seen, "{}", collapsed::describe(&counts));
    target.finish();
}

#[test]
fn a_file_that_is_no_capture_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("no.pyrobe");
    for bytes in [&b""[..], b"not a capture", &[0xff; 4096]] {
        fs::write(&file, bytes).expect("a file can be written");
        let arguments: [OsString; 3] = ["report".into(), "stats".into(), file.clone().into()];
        run(&mut pyrobe(arguments))
            .expect_code(2)
            .expect_error_with_hint();
    }
}
