//! The watcher on the running kernel: real Pythons, a late `dlopen`, a changed root, a ring that overflows.
//!
//! These need root and say so when they skip.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and says why it skips"
)]

use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tokio::io::unix::AsyncFd;

use super::*;
use crate::{
    discover::test_support::{pyenv_version, python_below_another_root, static_python},
    units::Pid,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn watcher() -> Option<MapWatcher> {
    match MapWatcher::start() {
        Ok(watcher) => Some(watcher),
        Err(error @ WatchError::NotPermitted { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// Runs a command to its end; the events of its process.
fn events_of(watcher: &mut MapWatcher, command: &mut Command) -> Vec<MapEvent> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid(child.id());
    let mut events = Vec::new();
    let begin = Instant::now();
    while !events
        .iter()
        .any(|event| matches!(event, MapEvent::Exited { pid: gone, .. } if *gone == pid))
    {
        assert!(begin.elapsed() < PATIENCE, "{events:?}");
        watcher.wait(Duration::from_secs(1)).unwrap();
        watcher.drain(&mut events);
    }
    assert!(child.wait().unwrap().success());
    events.retain(|event| match event {
        MapEvent::Mapped(mapping) => mapping.pid == pid,
        MapEvent::Exec { pid: of, .. }
        | MapEvent::Exited { pid: of, .. }
        | MapEvent::Forked { pid: of, .. } => *of == pid,
        MapEvent::Lost { .. } => true,
    });
    events
}

/// The mapping of the file at `path`, found by device and inode.
fn mapping_of<'a>(events: &'a [MapEvent], path: &Path) -> Option<&'a Mapping> {
    let metadata = fs::metadata(path).unwrap();
    events.iter().find_map(|event| match event {
        MapEvent::Mapped(mapping) if (mapping.device, mapping.inode) == (metadata.dev(), metadata.ino()) => {
            Some(mapping)
        }
        _ => None,
    })
}

#[test]
fn the_executable_of_a_new_process_is_seen_with_its_exec_and_exit() {
    let Some(mut watcher) = watcher() else { return };
    let program = fs::canonicalize("/bin/cat").unwrap();
    let events = events_of(&mut watcher, &mut Command::new(&program));
    let mapping = mapping_of(&events, &program).unwrap();
    assert_eq!(mapping.path, program);
    let before = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = u64::try_from(before.tv_sec).unwrap() * 1_000_000_000;
    assert!(
        now.abs_diff(mapping.time.get()) < 60_000_000_000,
        "{now} {}",
        mapping.time
    );
    assert!(events.iter().any(|event| matches!(event, MapEvent::Exec { .. })));
    assert!(events.is_sorted_by_key(MapEvent::time));
}

#[test]
fn a_library_that_is_loaded_late_is_seen() {
    let (Some(python), Some(shared)) = (static_python(), pyenv_version("3.12.1")) else {
        return;
    };
    let library = shared.join("lib/libpython3.12.so.1.0");
    let Some(mut watcher) = watcher() else { return };
    let script = format!("import ctypes; ctypes.CDLL({:?})", library.display().to_string());
    let events = events_of(&mut watcher, Command::new(&python).args(["-c", &script]));
    let first = mapping_of(&events, &python).unwrap();
    let late = mapping_of(&events, &library).unwrap();
    assert!(first.time < late.time);
}

#[test]
fn a_program_below_another_root_is_seen() {
    let Some((python, root)) = python_below_another_root() else {
        return;
    };
    let Some(mut watcher) = watcher() else { return };
    let inside = Path::new("/").join(python.strip_prefix(&root).unwrap());
    let mut command = Command::new("chroot");
    let events = events_of(&mut watcher, command.arg(&root).arg(inside).args(["-c", "pass"]));
    assert!(mapping_of(&events, &python).is_some(), "{events:?}");
    // chroot itself, then Python.
    let execs = events
        .iter()
        .filter(|event| matches!(event, MapEvent::Exec { .. }));
    assert_eq!(execs.count(), 2);
}

#[test]
fn an_overflowing_ring_says_how_much_was_lost_and_goes_on() {
    let Some(mut watcher) = watcher() else { return };
    let small: Vec<_> = watcher.rings.drain(..).collect();
    drop(small);
    for cpu in parse_cpu_list(&fs::read_to_string("/sys/devices/system/cpu/online").unwrap()) {
        watcher
            .rings
            .push(Ring::map(perf::open(cpu).unwrap(), 1).unwrap());
    }
    let mut seen = 0u64;
    let mut events = Vec::new();
    // Rounds of many processes without a drain, then one record that finds room and carries the loss.
    for _ in 0..2 {
        for _ in 0..60 {
            assert!(Command::new("/bin/true").status().unwrap().success());
        }
        watcher.drain(&mut events);
        for _ in 0..4 {
            assert!(Command::new("/bin/true").status().unwrap().success());
        }
        watcher.drain(&mut events);
    }
    let mut lost = 0;
    for event in events {
        match event {
            MapEvent::Lost { records, .. } => lost += records,
            MapEvent::Mapped(mapping) => {
                assert!(mapping.path.is_absolute());
                seen += 1;
            }
            _ => {}
        }
    }
    assert!(lost > 100 && seen > 10, "lost {lost}, seen {seen}");
}

#[tokio::test]
async fn it_wakes_an_event_loop() {
    let Some(watcher) = watcher() else { return };
    let program = fs::canonicalize("/bin/cat").unwrap();
    // SAFETY: the watcher owns its descriptor and keeps it until it is dropped.
    let mut watcher = unsafe { AsyncFd::register(watcher) }.unwrap();
    for _ in 0..3 {
        let mut child = Command::new(&program).stdin(Stdio::null()).spawn().unwrap();
        let mut events = Vec::new();
        while !events
            .iter()
            .any(|event| matches!(event, MapEvent::Exited { pid, .. } if pid.get() == child.id()))
        {
            let mut ready = tokio::time::timeout(PATIENCE, watcher.readable_mut())
                .await
                .unwrap()
                .unwrap();
            ready.clear_ready();
            ready.get_inner_mut().drain(&mut events);
        }
        assert!(mapping_of(&events, &program).is_some());
        child.wait().unwrap();
    }
}

#[test]
fn cpu_lists_are_read() {
    let check = |list: &str, expected: &[u32]| assert_eq!(parse_cpu_list(list).collect::<Vec<_>>(), expected);
    check("0-3,5\n", &[0, 1, 2, 3, 5]);
    check("0", &[0]);
    check("", &[]);
    check("a-b,-,3-1", &[]);
}
