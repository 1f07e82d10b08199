//! The owner of a recording: sets everything up, consumes inputs in order, ends it.

use std::path::Path;

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::{
    Settings, Target,
    attach::{Attached, now},
    command,
    feeders::{self, Input, RingThread},
    meta::{meta, unix_ns},
    watch_records::watch,
};
use crate::{
    bpf::{self, BpfError, KernelFacts, Tracer},
    capture::{End, EndReason, ProcessCounters, WriteError, Writer},
    discover::{MapEvent, MapWatcher, UserNames, process},
    error::{Exit, UserError},
    ingest::event::Counters,
    units::{BootNs, ByteCount, Pid},
};

/// Inputs that may wait for the owner; a batch of records is 256 KiB.
const QUEUE: usize = 64;

/// How a recording went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub reason: EndReason,
    /// Events that went into the capture.
    pub events: u64,
    /// Bytes of the capture.
    pub written: ByteCount,
    /// Exit code of the command, if there was one and it exited.
    pub exit_code: Option<i32>,
    /// The command still runs.
    pub still_running: Option<Pid>,
    /// What went wrong without ending the recording.
    pub problems: Vec<String>,
    /// Records that were lost, all reasons together.
    pub lost: u64,
}

struct Owner<'a> {
    settings: &'a Settings,
    tracer: Tracer,
    attached: Attached,
    writer: Writer,
    users: UserNames,
    problems: Vec<String>,
    events: u64,
    undecoded: u64,
    malformed: u64,
    command: Option<Pid>,
    exit_code: Option<i32>,
}

/// Records until something ends it. `ready` is called once every probe is in place, with what was found.
pub fn run(settings: &Settings, ready: impl FnOnce(&str)) -> Result<Outcome, UserError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| UserError::new("cannot start the runtime").caused_by(error))?;
    runtime.block_on(record(settings, ready))
}

async fn record(settings: &Settings, ready: impl FnOnce(&str)) -> Result<Outcome, UserError> {
    check_targets(&settings.target)?;
    let kernel = KernelFacts::read().map_err(|error| bpf_error("cannot trace on this host", error))?;
    let targets = match &settings.target {
        Target::WholeHost => bpf::Target::WholeHost,
        Target::Processes(pids) => bpf::Target::Processes(pids.clone()),
        // The command will be our child: it is followed from its first instruction, like any child of a target.
        Target::Command(_) => bpf::Target::Processes(vec![Pid(std::process::id())]),
    };
    let loading = bpf::Settings {
        target: targets,
        ring_bytes: settings.ring_bytes,
        log_level: settings.log_level,
        links: settings.links,
        work: settings.work,
    };
    let mut tracer =
        Tracer::load(&kernel, &loading).map_err(|error| bpf_error("cannot load the eBPF programs", error))?;
    let writer = Writer::create(
        &settings.output,
        settings.overwrite,
        &meta(settings, tracer.links()),
    )
    .map_err(|error| create_error(&settings.output, error))?;
    let (to, inputs) = mpsc::channel(QUEUE);
    let mut problems = Vec::new();
    // Before the scan, so that nothing can appear between the two.
    match MapWatcher::start() {
        Ok(watcher) => feeders::watch_maps(watcher, to.clone()).map_err(thread_error)?,
        Err(error) => problems.push(format!(
            "{error}: images that appear later are found by looking at /proc once a second"
        )),
    }
    let ring = tracer
        .take_ring()
        .map_err(|error| bpf_error("cannot read the ring", error))?;
    let ring = RingThread::start(ring, to.clone()).map_err(thread_error)?;
    let mut owner = Owner {
        settings,
        tracer,
        attached: Attached::default(),
        writer,
        users: UserNames::of_host(),
        problems,
        events: 0,
        undecoded: 0,
        malformed: 0,
        command: None,
        exit_code: None,
    };
    owner.writer.set_limit(settings.max_size);
    let processes = owner
        .attach_at_start()
        .map_err(|error| bpf_error("cannot attach", error))?;
    feeders::signals_and_clock(settings.duration, &to).map_err(thread_error)?;
    let images = owner.attached.records().len();
    ready(&format!(
        "recording {processes} Python process(es), {images} image(s) attached; Ctrl-C ends it"
    ));
    if let Target::Command(command) = &settings.target {
        let started = command::start(command, to.clone()).map_err(|error| {
            let name = command
                .first()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            UserError::new(format!("cannot start {name}"))
                .caused_by(error)
                .hint("give the command as a shell finds it")
        });
        match started {
            Ok(started) => owner.command = Some(started.pid),
            Err(error) => {
                // Nothing was recorded: an empty capture would only be in the way.
                if settings.output != Path::new("-") {
                    let _ = std::fs::remove_file(&settings.output);
                }
                return Err(error);
            }
        }
    }
    owner.consume(inputs, to, ring).await
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

impl Owner<'_> {
    /// Attaches all that can be known now. Returns how many Python processes run.
    fn attach_at_start(&mut self) -> Result<usize, BpfError> {
        let found = match &self.settings.target {
            Target::WholeHost => {
                let found = self.attached.scan(&mut self.tracer, None)?;
                // So that the first process of an installed interpreter is seen from its first allocation.
                self.attached.well_known(&mut self.tracer)?;
                found
            }
            Target::Processes(pids) => {
                let pids = pids.clone();
                self.attached.scan(&mut self.tracer, Some(&pids))?
            }
            Target::Command(command) => {
                if let Some(program) = command.first() {
                    self.attached.command(&mut self.tracer, &program.clone())?;
                }
                0
            }
        };
        for image in self.attached.records() {
            if let Err(error) = self.writer.image(image) {
                self.problems.push(error.to_string());
            }
        }
        Ok(found)
    }

    async fn consume(
        mut self,
        mut inputs: Receiver<Input>,
        to: Sender<Input>,
        ring: RingThread,
    ) -> Result<Outcome, UserError> {
        let mut failure = None;
        let reason = loop {
            // The channel is open while `to` lives.
            let Some(input) = inputs.recv().await else {
                break EndReason::Other;
            };
            match self.take(input) {
                Ok(None) => {}
                Ok(Some(reason)) => break reason,
                Err(WriteError::Full { .. }) => break EndReason::Full,
                Err(error) => {
                    failure = Some(error);
                    break EndReason::Failed;
                }
            }
        };
        self.tracer.detach();
        ring.stop();
        // What was in the ring belongs to the recording, whatever ended it.
        while let Some(input) = inputs.recv().await {
            match input {
                Input::RingEmpty { malformed } => {
                    self.malformed = malformed;
                    break;
                }
                Input::Records(records) if failure.is_none() => match self.records(&records) {
                    Ok(()) | Err(WriteError::Full { .. }) => {}
                    Err(error) => failure = Some(error),
                },
                Input::CommandExited(code) => self.exit_code = Some(code),
                _ => {}
            }
        }
        drop((inputs, to));
        ring.join();
        self.end(reason, failure)
    }

    /// One input; a reason if the recording ends with it.
    fn take(&mut self, input: Input) -> Result<Option<EndReason>, WriteError> {
        match input {
            Input::Records(records) => self.records(&records)?,
            Input::RingEmpty { .. } => return Ok(Some(EndReason::Failed)),
            Input::Maps(events) => self.maps(&events)?,
            Input::Tick => return self.tick(),
            Input::Interrupt => return Ok(Some(EndReason::Interrupted)),
            Input::TimeOver => return Ok(Some(EndReason::Duration)),
            Input::CommandExited(code) => {
                self.exit_code = Some(code);
                self.command = None;
                return Ok(Some(EndReason::TargetExited));
            }
        }
        Ok(None)
    }

    fn records(&mut self, records: &[u8]) -> Result<(), WriteError> {
        let found = watch(records, &mut self.users);
        self.events += found.events;
        self.undecoded += found.undecoded;
        self.writer.events(0, records)?;
        if !found.recovered.is_empty() {
            self.writer.events(0, &found.recovered)?;
        }
        for process in &found.processes {
            self.writer.process(process)?;
        }
        Ok(())
    }

    fn maps(&mut self, events: &[MapEvent]) -> Result<(), WriteError> {
        for event in events {
            let new = match event {
                MapEvent::Mapped(mapping) => self.attached.mapping(&mut self.tracer, mapping),
                MapEvent::Lost { .. } => {
                    let before = self.attached.records().len();
                    self.attached
                        .scan(&mut self.tracer, None)
                        .map(|_| self.attached.records().get(before).cloned())
                }
                _ => continue,
            };
            match new {
                Ok(Some(image)) => self.writer.image(&image)?,
                Ok(None) => {}
                Err(error) => self.problems.push(error.to_string()),
            }
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<Option<EndReason>, WriteError> {
        self.attached.begin_scan();
        let counters = self.counters();
        self.writer.counters(&counters)?;
        self.writer.flush()?;
        if let Target::Processes(pids) = &self.settings.target {
            if pids.iter().all(|&pid| process(pid).is_err())
                && counters.iter().all(|process| process.pid == HOST)
            {
                return Ok(Some(EndReason::TargetExited));
            }
        }
        Ok(None)
    }

    /// Counters of the processes that run; under [`HOST`], what no process could be charged with.
    fn counters(&mut self) -> Vec<ProcessCounters> {
        let mut all: Vec<ProcessCounters> = match self.tracer.counters() {
            Ok(live) => live
                .iter()
                .map(|process| ProcessCounters::new(process.pid, process.start, &process.counters))
                .collect(),
            Err(error) => {
                self.problems.push(error.to_string());
                Vec::new()
            }
        };
        match self.tracer.unattributed() {
            Ok(losses) if losses.iter().any(|&loss| loss != 0) => {
                all.push(ProcessCounters::new(
                    HOST,
                    BootNs(0),
                    &Counters {
                        losses,
                        ..Counters::default()
                    },
                ));
            }
            Ok(_) => {}
            Err(error) => self.problems.push(error.to_string()),
        }
        all
    }

    fn end(mut self, reason: EndReason, failure: Option<WriteError>) -> Result<Outcome, UserError> {
        let counters = self.counters();
        let lost = counters.iter().flat_map(|process| &process.losses).sum();
        self.problems.extend(self.attached.take_problems());
        let end = End {
            reason,
            message: failure.as_ref().map(ToString::to_string).unwrap_or_default(),
            end_monotonic: now(),
            end_unix_ns: unix_ns(),
            exit_code: self.exit_code,
            undecoded: self.undecoded + self.malformed,
            unwritten: ByteCount(0),
        };
        let finished = self.writer.finish(&counters, end);
        if let Some(error) = failure.or_else(|| {
            finished.as_ref().err().map(|error| WriteError::Write {
                path: self.settings.output.clone(),
                source: std::io::Error::other(error.to_string()),
            })
        }) {
            return Err(UserError::new("the recording ended before its time")
                .caused_by(error)
                .hint("what was written so far can be read; make room, or write elsewhere with -o"));
        }
        Ok(Outcome {
            reason,
            events: self.events,
            written: finished.unwrap_or(ByteCount(0)),
            exit_code: self.exit_code,
            still_running: self.command,
            problems: self.problems,
            lost,
        })
    }
}

/// No process: under this pid stands what the whole host lost.
pub const HOST: Pid = Pid(0);
