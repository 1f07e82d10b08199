//! The owner of a recording: sets everything up, consumes inputs in order, ends it.

use std::{
    path::PathBuf,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{Receiver, Sender};

use super::{
    Settings, Target,
    attach::{Attached, Found, now},
    audit::{Auditor, Which},
    feeders::{self, Input, RingThread},
    governor::Governor,
    judge::Judge,
    meta::{boot_ns, unix_ns},
    output::Output,
    reading::Reading,
    watch_records::{announced, watch},
    window::Windows,
};
use crate::{
    bpf::{BpfError, ProgramLog, Tracer},
    capture::{
        End, EndReason, Gap, HOST, ImageRecord, Meta, ProcessCounters, WriteError, replaced::Finished,
    },
    discover::{MapEvent, Selection, UserNames, process},
    error::{Exit, UserError},
    ingest::event::Counters,
    mode::Mode,
    units::{BootNs, ByteCount, MonotonicNs, Pid},
};

/// How a recording went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub reason: EndReason,
    /// Events that went into the capture.
    pub events: u64,
    /// Bytes of the capture, of the last one if there are several.
    pub written: ByteCount,
    /// The captures, oldest first.
    pub files: Vec<PathBuf>,
    /// Exit code of the command, if there was one and it exited.
    pub exit_code: Option<i32>,
    /// The command still runs.
    pub still_running: Option<Pid>,
    /// What went wrong without ending the recording.
    pub problems: Vec<String>,
    /// Records that were lost, all reasons together.
    pub lost: u64,
}

/// How often the owner looks whose heap is to be read.
const READING: Duration = Duration::from_millis(250);
/// How often it looks after all that has no event of its own.
const SECOND: Duration = Duration::from_secs(1);

pub(super) struct Owner<'a> {
    pub(super) settings: &'a Settings,
    pub(super) tracer: Tracer,
    attached: Attached,
    pub(super) output: Output,
    users: UserNames,
    pub(super) auditor: Auditor,
    judge: Judge,
    pub(super) governor: Governor,
    pub(super) windows: Windows,
    /// When the next look at the blocks of a window is, if there is to be one.
    look_at: Option<MonotonicNs>,
    /// When the heaps are to be looked at again, and everything else that has no event of its own.
    next_reading: Instant,
    next_second: Instant,
    pub(super) problems: Vec<String>,
    events: u64,
    undecoded: u64,
    malformed: u64,
    command: Option<Pid>,
    exit_code: Option<i32>,
    log: Option<ProgramLog>,
    /// What the capture says of the recording, and what it will say once that is measured.
    measured: Option<(Meta, JoinHandle<Option<f64>>)>,
}

impl<'a> Owner<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        tracer: Tracer,
        attached: Attached,
        output: Output,
        problems: Vec<String>,
        log: Option<ProgramLog>,
    ) -> Self {
        Self {
            settings,
            tracer,
            attached,
            output,
            users: UserNames::of_host(),
            auditor: Auditor::new(settings.mode, settings.audit_interval),
            judge: Judge::new(match &settings.target {
                Target::Selected(selection) => selection.clone(),
                _ => Selection::default(),
            }),
            governor: Governor::new(settings.mode, settings.max_overhead, boot_ns()),
            windows: Windows::new(settings.max_overhead),
            look_at: None,
            next_reading: Instant::now(),
            next_second: Instant::now() + SECOND,
            problems,
            events: 0,
            undecoded: 0,
            malformed: 0,
            command: None,
            exit_code: None,
            log,
            measured: None,
        }
    }

    /// The capture tells what a hit costs as soon as that is known.
    pub(super) fn measure(&mut self, meta: Meta, cost: JoinHandle<Option<f64>>) {
        self.measured = Some((meta, cost));
    }

    /// Puts the cost of a hit on record, waiting for it.
    fn note_hit_cost(&mut self) -> Result<(), WriteError> {
        let Some((mut meta, cost)) = self.measured.take() else {
            return Ok(());
        };
        meta.hit_cost_ns = cost.join().ok().flatten();
        if let Some(cost) = meta.hit_cost_ns {
            self.governor.set_hit_cost(cost);
        }
        if meta.hit_cost_ns.is_none() {
            return Ok(());
        }
        self.output.meta(&meta)
    }

    /// Images attached so far.
    pub(super) fn images(&self) -> usize {
        self.attached.records().len()
    }

    /// What went wrong so far.
    pub(super) fn problems(&mut self) -> &[String] {
        self.problems.extend(self.attached.take_problems());
        &self.problems
    }

    /// The recording ends with this command.
    pub(super) fn follow(&mut self, command: Pid) {
        self.command = Some(command);
    }

    /// Tells the kernel side which of the processes that run Python are selected; how many. A process that comes
    /// meanwhile is judged like any that comes later.
    pub(super) fn select(&mut self, running: &[Pid]) -> Result<usize, BpfError> {
        let Target::Selected(selection) = &self.settings.target else {
            return Ok(running.len());
        };
        let mut selected = 0;
        for &pid in running {
            // It may be gone.
            let Ok(found) = process(pid) else { continue };
            if selection.matches(&found) {
                // For the sake of its children: itself it would be selected at its first hit.
                self.tracer.add_target(pid)?;
                selected += 1;
            } else {
                self.judge.reject(pid, &mut self.tracer);
            }
        }
        Ok(selected)
    }

    /// Attaches what was found and puts it on record.
    pub(super) fn attach_at_start(&mut self, found: &[Found]) -> Result<(), BpfError> {
        self.attached.attach_all(&mut self.tracer, found)?;
        for image in self.attached.records() {
            if let Err(error) = self.output.image(image) {
                self.problems.push(error.to_string());
            }
        }
        Ok(())
    }

    /// Puts those processes on record that run already: one that is idle would not be seen otherwise, and its heap not
    /// be read. What the kernel side says of it later goes for it.
    pub(super) fn announce(&mut self, running: &[Pid]) -> Result<(), WriteError> {
        let mut records = Vec::new();
        for &pid in running {
            let wanted = match &self.settings.target {
                Target::Selected(_) => self.tracer.is_selected(pid),
                _ => true,
            };
            // It may be gone.
            if wanted
                && let Ok(info) = process(pid)
                && let Some((image, bias)) = self.attached.mapped(pid)
            {
                announced(&info, image, bias, &mut records);
            }
        }
        self.records(&records)
    }

    pub(super) async fn consume(
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
            match self.take(input, &to) {
                Ok(None) => {}
                Ok(Some(reason)) => break reason,
                Err(WriteError::Full { .. }) => break EndReason::Full,
                Err(error) => {
                    failure = Some(error);
                    break EndReason::Failed;
                }
            }
        };
        // While the probes stand, so that what changes meanwhile is on record.
        if failure.is_none() {
            let told = self
                .close_window()
                .and_then(|()| self.audit(Which::All))
                .and_then(|()| self.note_missed());
            match told {
                Ok(()) | Err(WriteError::Full { .. }) => {}
                Err(error) => failure = Some(error),
            }
        }
        let detaching = Instant::now();
        self.tracer.detach();
        tracing::debug!("probes removed in {:?}", detaching.elapsed());
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
    fn take(&mut self, input: Input, to: &Sender<Input>) -> Result<Option<EndReason>, WriteError> {
        match input {
            Input::Records(records) => self.records(&records)?,
            Input::RingEmpty { .. } => return Ok(Some(EndReason::Failed)),
            Input::Installed(image) => {
                let new = self.attached.late(&mut self.tracer, &image);
                self.note_image(new)?;
            }
            Input::Maps(events) => self.maps(&events)?,
            Input::Tick => return self.tick(to),
            Input::WindowOver => {
                self.window_over(to)?;
                self.look_later(to);
            }
            Input::Look => {
                self.look_at = self.look_at.filter(|&at| at > now());
                let surveys = self.auditor.look(self.attached.records());
                self.put_on_record(surveys)?;
                self.look_later(to);
            }
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
        let records = &*self.judge.pass(records, &mut self.tracer);
        let found = watch(records, &mut self.users, &mut self.auditor);
        self.events += found.events;
        self.undecoded += found.undecoded;
        self.output.events(records)?;
        if !found.recovered.is_empty() {
            self.output.events(&found.recovered)?;
        }
        for process in &found.processes {
            self.output.process(process)?;
        }
        Ok(())
    }

    /// Compares nothing: puts on record what the interpreters themselves count.
    fn audit(&mut self, which: Which) -> Result<(), WriteError> {
        if self.output.take_turned() {
            self.auditor.tell_all_anew();
        }
        let readings = self.auditor.run(which, self.attached.records());
        self.put_on_record(readings)
    }

    fn put_on_record(&mut self, readings: Vec<Reading>) -> Result<(), WriteError> {
        for audit in readings {
            match audit {
                Reading::Sums(audit) => self.output.audit(&audit)?,
                Reading::Heap(audit) => self.output.heap_audit(&audit)?,
                Reading::Survey(survey) => self.output.survey(survey)?,
            }
        }
        Ok(())
    }

    /// Asks for the next look at the blocks of a window, if there is to be one.
    fn look_later(&mut self, to: &Sender<Input>) {
        let Some(due) = self.auditor.next_look() else {
            return;
        };
        if self.look_at.is_none_or(|at| due < at) {
            self.look_at = Some(due);
            let wait = due.get().saturating_sub(now().get());
            feeders::look_after(Duration::from_nanos(wait), to.clone());
        }
    }

    fn maps(&mut self, events: &[MapEvent]) -> Result<(), WriteError> {
        for event in events {
            self.judge.saw(event, &mut self.tracer);
            let new = match event {
                MapEvent::Mapped(mapping) => self.attached.mapping(&mut self.tracer, mapping),
                MapEvent::Lost { .. } => {
                    let before = self.attached.records().len();
                    let (_, found) = self.attached.running(None);
                    self.attached
                        .attach_all(&mut self.tracer, &found)
                        .map(|()| self.attached.records().get(before).cloned())
                }
                _ => continue,
            };
            self.note_image(new)?;
        }
        Ok(())
    }

    fn note_image(&mut self, new: Result<Option<ImageRecord>, BpfError>) -> Result<(), WriteError> {
        match new {
            Ok(Some(image)) => self.output.image(&image)?,
            Ok(None) => {}
            Err(error) => self.problems.push(error.to_string()),
        }
        Ok(())
    }

    /// Interpreters that ran and were never attached, and blocks that were not remembered.
    fn note_missed(&mut self) -> Result<(), WriteError> {
        for gap in self.auditor.left_out(now()) {
            self.output.gap(gap)?;
        }
        for (path, since) in self.attached.missed() {
            self.output.gap(Gap {
                from: since,
                to: now(),
                reason: format!("{} ran and was not attached in time", path.display()),
                ..Gap::default()
            })?;
        }
        Ok(())
    }

    fn tick(&mut self, to: &Sender<Input>) -> Result<Option<EndReason>, WriteError> {
        let wait = self.govern(to)?;
        feeders::tick_after(wait, to.clone());
        let now = Instant::now();
        if now < self.next_reading {
            return Ok(None);
        }
        self.next_reading = now + READING;
        if now < self.next_second {
            if self.settings.mode == Mode::Heap {
                self.audit(Which::Due)?;
            }
            return Ok(None);
        }
        self.next_second = now + SECOND;
        self.attached.begin_scan();
        self.flush_log();
        if self.measured.as_ref().is_some_and(|(_, cost)| cost.is_finished()) {
            self.note_hit_cost()?;
        }
        let counters = self.counters();
        self.output.counters(&counters)?;
        self.output.flush()?;
        self.auditor.look_for_work();
        self.audit(Which::Due)?;
        self.complete_groups();
        if let Target::Processes(pids) = &self.settings.target
            && pids.iter().all(|&pid| process(pid).is_err())
            && counters.iter().all(|process| process.pid == HOST)
        {
            return Ok(Some(EndReason::TargetExited));
        }
        Ok(None)
    }

    /// The eBPF programs' own log lines, to where ours go.
    fn flush_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// Counters of the processes that run; under [`HOST`], what no process could be charged with.
    fn counters(&mut self) -> Vec<ProcessCounters> {
        let mut all: Vec<ProcessCounters> = match self.tracer.counters() {
            Ok(live) => live
                .iter()
                .filter(|process| !self.judge.drops(process.pid))
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
        self.flush_log();
        for (group, since) in self.governor.off().to_vec() {
            if let Err(error) = self.gap(group, since, now()) {
                tracing::debug!("the capture does not tell of the last gap: {error}");
            }
        }
        if let Err(error) = self.note_hit_cost() {
            tracing::debug!("the capture does not tell what a hit costs: {error}");
        }
        let counters = self.counters();
        let lost = counters.iter().flat_map(|process| &process.losses).sum();
        self.problems.extend(self.attached.take_problems());
        self.problems.extend(self.auditor.take_problem());
        if self.judge.unsure() > 0 {
            self.problems.push(format!(
                "{} process(es) were gone before their executable could be told, and are recorded",
                self.judge.unsure()
            ));
        }
        let end = End {
            reason,
            message: failure.as_ref().map(ToString::to_string).unwrap_or_default(),
            end_monotonic: now(),
            end_unix_ns: unix_ns(),
            exit_code: self.exit_code,
            undecoded: self.undecoded + self.malformed,
            unwritten: ByteCount(0),
        };
        self.problems.extend(self.output.take_problems());
        let files = self.output.files();
        let finished = self.output.finish(&counters, end);
        if let Some(error) = failure.or_else(|| {
            finished.as_ref().err().map(|error| WriteError::Write {
                path: self.settings.output.clone(),
                source: std::io::Error::other(error.to_string()),
            })
        }) {
            return Err(UserError::new("the recording ended before its time")
                .caused_by(error)
                .hint("what was written so far can be read; make room, or write elsewhere with -o")
                .exit_with(Exit::Partial));
        }
        let Finished { written, full } = finished.unwrap_or(Finished {
            written: ByteCount(0),
            full: false,
        });
        Ok(Outcome {
            reason: if full { EndReason::Full } else { reason },
            events: self.events,
            written,
            files,
            exit_code: self.exit_code,
            still_running: self.command,
            problems: self.problems,
            lost,
        })
    }
}
