//! Setting a recording up: what can fail before anything is recorded, in the order that loses nothing.

use std::{
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use tokio::sync::mpsc;

use super::{
    Outcome, Settings, Target,
    attach::{Attached, Found},
    command,
    feeders::{self, RingThread},
    meta::meta,
    output::Output,
    owner::Owner,
};
use crate::{
    bpf::{self, BpfError, Executables, Grouping, KernelFacts, Tracer},
    capture::WriteError,
    discover::{ControlGroup, MapWatcher, Selection, process},
    error::{Exit, UserError},
    mode::Mode,
    units::Pid,
};

/// Inputs that may wait for the owner; a batch of records is 256 KiB.
const QUEUE: usize = 64;

/// Records until something ends it. `ready` is called once every probe is in place, with what was found.
pub fn run(settings: &Settings, ready: impl FnOnce(&str)) -> Result<Outcome, UserError> {
    keep_little_memory();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| UserError::new("cannot start the runtime").caused_by(error))?;
    runtime.block_on(record(settings, ready))
}

/// Looking at an interpreter's file takes tens of megabytes for a moment. glibc's malloc would take the first of them for a
/// sign that such blocks are common, and keep what is freed, in each thread's arena.
fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    for (option, value) in [
        (libc::M_MMAP_THRESHOLD, 512 << 10),
        (libc::M_TRIM_THRESHOLD, 256 << 10),
        (libc::M_ARENA_MAX, 2),
    ] {
        // SAFETY: it changes numbers that the allocator looks at under its own lock.
        if unsafe { libc::mallopt(option, value) } == 0 {
            tracing::debug!("malloc does not take option {option}");
        }
    }
}

async fn record(settings: &Settings, ready: impl FnOnce(&str)) -> Result<Outcome, UserError> {
    check_targets(&settings.target)?;
    let started = Instant::now();
    let (to, inputs) = mpsc::channel(QUEUE);
    let mut problems = Vec::new();
    // Before the scan, so that nothing can appear between the two.
    match MapWatcher::start() {
        Ok(watcher) => feeders::watch_maps(watcher, to.clone()).map_err(thread_error)?,
        Err(error) => problems.push(format!("{error}: images that appear later are not attached")),
    }
    // Two halves of about the same length: the kernel checks the programs, we look at files.
    let mut attached = Attached::new(settings.mode);
    let (tracer, findings) = thread::scope(|scope| {
        let finder = scope.spawn(|| find(&mut attached, &settings.target));
        let tracer = load(settings);
        (tracer, finder.join().unwrap_or_default())
    });
    let mut tracer = tracer?;
    let Findings {
        running,
        found,
        later,
    } = findings;
    tracing::debug!(
        "programs loaded and images examined after {:?}",
        started.elapsed()
    );
    let log = tracer.take_log();
    let ring = tracer
        .take_ring()
        .map_err(|error| bpf_error("cannot read the ring", error))?;
    let ring = RingThread::start(ring, to.clone()).map_err(thread_error)?;
    let meta = meta(settings, tracer.links());
    let output = Output::create(settings, &meta).map_err(|error| create_error(&settings.output, error))?;
    let files = output.files();
    let mut owner = Owner::new(settings, tracer, attached, output, problems, log);
    let pids = running;
    let running = owner
        .select(&pids)
        .map_err(|error| bpf_error("cannot select processes", error))?;
    owner
        .attach_at_start(&found)
        .map_err(|error| bpf_error("cannot attach", error))?;
    if owner.images() == 0 && found.iter().any(Found::can_be_traced) {
        discard(&files);
        return Err(UserError::new("no probe can be placed on this host")
            .caused_by(owner.problems().join("; "))
            .hint("`pyrobe doctor` says what this host can do"));
    }
    if settings.mode == Mode::Heap {
        owner
            .announce(&pids)
            .map_err(|error| create_error(&settings.output, error))?;
    }
    feeders::signals_and_clock(settings.duration, &to).map_err(thread_error)?;
    tracing::debug!("attached after {:?}", started.elapsed());
    let images = owner.images();
    let more = match later.len() {
        0 => String::new(),
        more => format!(", {more} installed ones are still looked at"),
    };
    let coming = match &settings.target {
        Target::Selected(selection) => format!(" and those to come ({selection})"),
        _ => String::new(),
    };
    ready(&format!(
        "recording {running} Python process(es){coming}, {images} image(s) attached{more}; Ctrl-C ends it"
    ));
    if let Target::Command(command) = &settings.target {
        match command::start(command, to.clone()) {
            Ok(pid) => owner.follow(pid),
            Err(error) => {
                discard(&files);
                let name = command.first().map(|name| name.to_string_lossy().into_owned());
                return Err(
                    UserError::new(format!("cannot start {}", name.unwrap_or_default()))
                        .caused_by(error)
                        .hint("give the command as a shell finds it"),
                );
            }
        }
    }
    feeders::examine_installed(later, to.clone()).map_err(thread_error)?;
    owner.measure(meta, feeders::measure_hit_cost().map_err(thread_error)?);
    owner.consume(inputs, to, ring).await
}

/// Removes a capture in which nothing was recorded: it would only be in the way.
fn discard(files: &[PathBuf]) {
    for file in files.iter().filter(|file| *file != Path::new("-")) {
        // What cannot be removed is empty.
        let _ = std::fs::remove_file(file);
    }
}

/// The programs, loaded; nothing is probed yet.
fn load(settings: &Settings) -> Result<Tracer, UserError> {
    let kernel = KernelFacts::read().map_err(|error| bpf_error("cannot trace on this host", error))?;
    let target = match &settings.target {
        Target::WholeHost => bpf::Target::WholeHost,
        Target::Processes(pids) => bpf::Target::Processes(pids.clone()),
        Target::Selected(selection) => bpf::Target::Rules(rules(selection)),
        // The command will be our child: it is followed from its first instruction, like any child of a target.
        Target::Command(_) => bpf::Target::Processes(vec![Pid(std::process::id())]),
    };
    let loading = bpf::Settings {
        mode: settings.mode,
        grouping: match (settings.mode, settings.max_overhead) {
            (Mode::Allocs, None) => Grouping::Together,
            _ => Grouping::Apart,
        },
        target,
        ring_bytes: settings.ring_bytes,
        log_level: settings.log_level,
        links: settings.links,
        work: settings.work,
    };
    Tracer::load(&kernel, &loading).map_err(|error| bpf_error("cannot load the eBPF programs", error))
}

/// What the kernel side has to know of a selection.
fn rules(selection: &Selection) -> bpf::Rules {
    let ids = |groups: &[ControlGroup]| groups.iter().map(|group| group.id).collect();
    bpf::Rules {
        users: selection.users.iter().map(|user| user.uid).collect(),
        cgroups: ids(&selection.cgroups),
        containers: ids(&selection.container_groups),
        executables: if selection.executables.is_empty() {
            Executables::Any
        } else {
            Executables::Judged
        },
    }
}

/// What is there at the start.
#[derive(Default)]
struct Findings {
    /// The Python processes that run.
    running: Vec<Pid>,
    /// What is to be attached; the images of those processes come first.
    found: Vec<Found>,
    /// What is to be looked at while the recording runs.
    later: Vec<PathBuf>,
}

fn find(attached: &mut Attached, target: &Target) -> Findings {
    match target {
        // A process that is selected later may be the first of any interpreter.
        Target::WholeHost | Target::Selected(_) => {
            let (running, mut found) = attached.running(None);
            // So that the first process of an installed interpreter is seen from its first allocation.
            let (installed, later) = attached.installed();
            found.extend(installed);
            Findings {
                running,
                found,
                later,
            }
        }
        Target::Processes(pids) => {
            let (running, found) = attached.running(Some(pids));
            Findings {
                running,
                found,
                ..Findings::default()
            }
        }
        Target::Command(command) => Findings {
            found: attached.of_command(command),
            ..Findings::default()
        },
    }
}

/// A pid that is gone or not Python is told before anything is loaded.
fn check_targets(target: &Target) -> Result<(), UserError> {
    let Target::Processes(pids) = target else {
        return Ok(());
    };
    for &pid in pids {
        if process(pid).is_err() {
            return Err(UserError::new(format!("there is no process {pid}"))
                .hint("`pyrobe ps` lists the Python processes of this host")
                .exit_with(Exit::NothingToTrace));
        }
    }
    let mut images = crate::images::Images::default();
    let found: Vec<_> = pids.iter().map(|&pid| (pid, images.of_process(pid))).collect();
    if found.iter().any(|(_, found)| {
        found
            .as_ref()
            .is_ok_and(|found| found.iter().any(|(image, _)| image.runtime.is_ok()))
    }) {
        return Ok(());
    }
    let (pid, found) = found.into_iter().next().unwrap_or((Pid(0), Ok(Vec::new())));
    let why = match found {
        Err(error) => {
            return Err(UserError::new(format!("cannot look into process {pid}"))
                .caused_by(error)
                .hint("run as root"));
        }
        Ok(found) => found
            .first()
            .and_then(|(image, _)| image.runtime.as_ref().err().map(ToString::to_string)),
    };
    let message = match why {
        Some(why) => format!("process {pid} cannot be traced: {why}"),
        None => format!("process {pid} does not run Python"),
    };
    Err(UserError::new(message)
        .hint("`pyrobe ps` lists the Python processes of this host, and why one is not traced")
        .exit_with(Exit::NothingToTrace))
}

fn bpf_error(message: &str, error: BpfError) -> UserError {
    let hint = error.hint();
    UserError::new(message).caused_by(error).hint(hint)
}

fn thread_error(error: std::io::Error) -> UserError {
    UserError::new("cannot start a thread").caused_by(error)
}

fn create_error(path: &Path, error: WriteError) -> UserError {
    let hint = match &error {
        WriteError::Exists { .. } => "-f replaces it, -o names another file",
        _ => "-o names another place",
    };
    UserError::new(format!("cannot write the capture {}", path.display()))
        .caused_by(error)
        .hint(hint)
}
