//! A recording in several files, of which each can be read by itself and the newest are kept.
//!
//! Apart from the writer, which knows nothing of events: here is decided where a file ends and what the next one repeats
//! (`kept`), and what its counters are (`balance`). Invariants: an event is in one file; a file does not pass its size,
//! unless one event alone needs more; the next one is begun only once the one before is whole; what is not traced when a file
//! begins, the file says.

mod balance;
mod kept;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use tracer_ebpf::reason::REASONS;

use self::{
    balance::losses_minus,
    kept::{KEPT_BYTES, Kept},
};
use super::{attach::now, meta::unix_ns};
use crate::{
    capture::{
        Audit, End, EndReason, Gap, HOST, ImageRecord, Meta, Numbered, Overwrite, ProcessCounters,
        ProcessRecord, Window, WriteError, Writer,
    },
    ingest::{
        HeapAudit, Survey,
        decode::{decode, record_len},
        event::Counters,
    },
    units::{BootNs, ByteCount, MonotonicNs},
};

/// Bytes of events that make a block.
const BLOCK_BYTES: usize = 1 << 20;
/// Bytes of a file that events leave to counters, audits and the end.
const RESERVE: u64 = 64 << 10;
/// A file ends when it has less room than this.
const LEAST_ROOM: usize = 32 << 10;
/// The least that a file may be bounded to: below, it would hold little besides what it repeats.
pub const LEAST_SIZE: ByteCount = ByteCount(1 << 20);

/// The files of a recording.
pub(super) struct Rotation {
    files: Numbered,
    limit: ByteCount,
    /// `None` only if one file was closed and the next could not be made.
    writer: Option<Writer>,
    path: PathBuf,
    meta: Meta,
    images: Vec<ImageRecord>,
    /// Groups of sites that are not traced.
    gaps: Vec<Gap>,
    kept: Kept,
    /// Records for the next block.
    gathered: Vec<u8>,
    /// How many fit into the file, at least.
    room: usize,
    /// Whether anything is in the file but what it begins with.
    begun: bool,
    /// Whether another file was begun since somebody asked.
    turned: bool,
    host_losses: [u64; REASONS],
    host_base: [u64; REASONS],
    problem: Option<String>,
}

impl Rotation {
    /// Makes the first file.
    pub(super) fn create(
        name: &Path,
        overwrite: Overwrite,
        limit: ByteCount,
        keep: usize,
        meta: &Meta,
    ) -> Result<Self, WriteError> {
        let mut rotation = Self {
            files: Numbered::claim(name, keep, overwrite)?,
            limit,
            writer: None,
            path: name.into(),
            meta: meta.clone(),
            images: Vec::new(),
            gaps: Vec::new(),
            kept: Kept::new(KEPT_BYTES),
            gathered: Vec::with_capacity(BLOCK_BYTES),
            room: 0,
            begun: false,
            turned: false,
            host_losses: [0; REASONS],
            host_base: [0; REASONS],
            problem: None,
        };
        rotation.begin()?;
        Ok(rotation)
    }

    /// The files there are, oldest first.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.files.files().map(Path::to_path_buf).collect()
    }

    /// What went wrong without ending the recording.
    pub(super) fn take_problems(&mut self) -> Vec<String> {
        let missed = self.kept.missed();
        let missed = (missed > 0).then(|| {
            format!(
                "{missed} time(s) a stack that had not been used for long was no longer among the {} MiB that are \
                 kept for later files: they show it as unknown, and count that",
                KEPT_BYTES >> 20
            )
        });
        self.problem.take().into_iter().chain(missed).collect()
    }

    pub(super) fn meta(&mut self, meta: &Meta) -> Result<(), WriteError> {
        self.meta.hit_cost_ns = meta.hit_cost_ns;
        let meta = self.meta.clone();
        self.writer()?.meta(&meta)
    }

    pub(super) fn image(&mut self, image: &ImageRecord) -> Result<(), WriteError> {
        self.images.push(image.clone());
        self.writer()?.image(image)?;
        self.look_at_room();
        Ok(())
    }

    pub(super) fn process(&mut self, process: &ProcessRecord) -> Result<(), WriteError> {
        self.kept.describe(process);
        self.writer()?.process(process)?;
        self.look_at_room();
        Ok(())
    }

    pub(super) fn audit(&mut self, audit: &Audit) -> Result<(), WriteError> {
        self.flush()?;
        let mut audit = audit.clone();
        // Blocks of which an earlier file tells are, for this one, from before it began.
        audit.since_start &= !self.kept.is_older(audit.pid);
        self.writer()?.audit(&audit)?;
        self.go_on()
    }

    pub(super) fn heap_audit(&mut self, audit: &HeapAudit) -> Result<(), WriteError> {
        self.flush()?;
        let mut audit = audit.clone();
        audit.since_start &= !self.kept.is_older(audit.pid);
        self.writer()?.heap_audit(&audit)?;
        self.go_on()
    }

    pub(super) fn survey(&mut self, survey: &Survey) -> Result<(), WriteError> {
        self.flush()?;
        self.writer()?.survey(survey)?;
        self.go_on()
    }

    pub(super) fn window(&mut self, window: &Window) -> Result<(), WriteError> {
        self.flush()?;
        self.writer()?.window(window)?;
        self.go_on()
    }

    pub(super) fn gap(&mut self, gap: &Gap) -> Result<(), WriteError> {
        self.flush()?;
        self.gaps.retain(|open| open.group != gap.group);
        if gap.group.is_some() && gap.to == MonotonicNs(0) {
            self.gaps.push(gap.clone());
        }
        self.write_gap(gap, gap.to)?;
        self.go_on()
    }

    /// Whether another file was begun since the last call.
    pub(super) fn take_turned(&mut self) -> bool {
        std::mem::take(&mut self.turned)
    }

    pub(super) fn counters(&mut self, counters: &[ProcessCounters]) -> Result<(), WriteError> {
        let of_file = self.of_file(counters);
        self.writer()?.counters(&of_file)?;
        self.go_on()
    }

    /// Adds whole records, in the order in which the ring gave them.
    pub(super) fn events(&mut self, records: &[u8]) -> Result<(), WriteError> {
        let mut rest = records;
        while !rest.is_empty() {
            let whole = record_len(rest).and_then(|len| rest.split_at_checked(usize::from(len)));
            let Some((record, behind)) = whole.filter(|(record, _)| !record.is_empty()) else {
                // What is no record is for the decoder to count.
                self.gathered.extend_from_slice(rest);
                break;
            };
            rest = behind;
            let Ok(event) = decode(record) else {
                self.gathered.extend_from_slice(record);
                continue;
            };
            let at = self.gathered.len();
            self.kept.write(&event, record, &mut self.gathered);
            if self.gathered.len() > self.room {
                let group = self.gathered.split_off(at);
                self.write_block()?;
                if group.len() > self.room && self.begun {
                    self.next_file()?;
                    self.kept.write(&event, record, &mut self.gathered);
                } else {
                    self.gathered.extend_from_slice(&group);
                }
            }
            self.kept.learn(&event, record);
        }
        Ok(())
    }

    /// Writes what was gathered.
    pub(super) fn flush(&mut self) -> Result<(), WriteError> {
        self.write_block()?;
        self.writer()?.flush()
    }

    /// Ends the last file.
    pub(super) fn finish(
        mut self,
        counters: &[ProcessCounters],
        mut end: End,
    ) -> Result<ByteCount, WriteError> {
        let of_file = self.of_file(counters);
        let written = self.write_block();
        if let Err(error) = &written
            && end.message.is_empty()
        {
            end.message = error.to_string();
        }
        let Some(writer) = self.writer.take() else {
            return Err(WriteError::Broken { path: self.path });
        };
        let finished = writer.finish(&of_file, end);
        written.and(finished)
    }

    fn writer(&mut self) -> Result<&mut Writer, WriteError> {
        let path = &self.path;
        self.writer
            .as_mut()
            .ok_or_else(|| WriteError::Broken { path: path.clone() })
    }

    /// Of a gap what is in this file.
    fn write_gap(&mut self, gap: &Gap, to: MonotonicNs) -> Result<(), WriteError> {
        let from = gap.from.max(self.meta.start_monotonic);
        self.writer()?.gap(&Gap {
            from,
            to,
            ..gap.clone()
        })
    }

    fn write_block(&mut self) -> Result<(), WriteError> {
        if !self.gathered.is_empty() {
            let gathered = std::mem::take(&mut self.gathered);
            let writer = self.writer()?;
            let result = writer.events(0, &gathered).and_then(|()| writer.flush());
            self.gathered = gathered;
            self.gathered.clear();
            self.begun = true;
            result?;
        }
        for process in self.kept.take_introduced() {
            self.writer()?.process(&process)?;
        }
        self.look_at_room();
        Ok(())
    }

    /// Something was written that is no event: it can fill a file too.
    fn go_on(&mut self) -> Result<(), WriteError> {
        self.begun = true;
        self.look_at_room();
        if self.room > 0 {
            return Ok(());
        }
        self.write_block()?;
        self.next_file()
    }

    /// A block takes at most its own bytes and a frame.
    fn look_at_room(&mut self) {
        let written = self.writer.as_ref().map_or(0, |writer| writer.written().get());
        let left = self.limit.get().saturating_sub(RESERVE).saturating_sub(written);
        let left = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        self.room = if left < LEAST_ROOM { 0 } else { left };
    }

    /// Closes the file and begins the next.
    fn next_file(&mut self) -> Result<(), WriteError> {
        let mut counters = Vec::new();
        for (pid, start, of_file) in self.kept.close() {
            self.kept.mention(pid, &mut self.gathered);
            counters.push(ProcessCounters::new(pid, start, &of_file));
        }
        self.write_block()?;
        counters.extend(self.host_counters());
        self.host_base = self.host_losses;
        let ended = now();
        for gap in self.gaps.clone() {
            self.write_gap(&gap, ended)?;
        }
        let end = End {
            reason: EndReason::Rotated,
            end_monotonic: ended,
            end_unix_ns: unix_ns(),
            ..End::default()
        };
        if let Some(writer) = self.writer.take() {
            writer.finish(&counters, end)?;
        }
        self.begin()
    }

    fn begin(&mut self) -> Result<(), WriteError> {
        let (number, path) = self.files.begin();
        if number > 1 {
            self.meta.start_boot = BootNs(
                self.meta
                    .start_boot
                    .get()
                    .saturating_add(now().get().saturating_sub(self.meta.start_monotonic.get())),
            );
            self.meta.start_monotonic = now();
            self.meta.start_unix_ns = unix_ns();
        }
        self.meta.file = Some(number);
        let mut writer = Writer::create(&path, Overwrite::Refuse, &self.meta)?;
        for image in &self.images {
            writer.image(image)?;
        }
        self.writer = Some(writer);
        self.path = path;
        for gap in self.gaps.clone() {
            self.write_gap(&gap, MonotonicNs(0))?;
        }
        self.begun = false;
        self.turned |= number > 1;
        self.kept.begin(number);
        self.look_at_room();
        if let Err(error) = self.files.trim() {
            self.problem.get_or_insert(error.to_string());
        }
        Ok(())
    }

    /// Counters as they count from the beginning of this file.
    fn of_file(&mut self, counters: &[ProcessCounters]) -> Vec<ProcessCounters> {
        let mut of_file = Vec::with_capacity(counters.len());
        for process in counters {
            let counted = process.counters();
            if process.pid == HOST {
                self.host_losses = counted.losses;
                of_file.extend(self.host_counters());
                continue;
            }
            let counted = match self.kept.balance(process.pid, process.start) {
                Some(balance) => balance.take(&counted),
                // Its first records are still to come.
                None => counted,
            };
            if counted == Counters::default() && !self.kept.is_in_file(process.pid) {
                continue;
            }
            self.kept.mention(process.pid, &mut self.gathered);
            of_file.push(ProcessCounters::new(process.pid, process.start, &counted));
        }
        of_file
    }

    /// What no process could be charged with, if there is anything.
    fn host_counters(&self) -> Option<ProcessCounters> {
        let losses = losses_minus(&self.host_losses, &self.host_base);
        losses.iter().any(|&loss| loss != 0).then(|| ProcessCounters {
            pid: HOST,
            losses: losses.to_vec(),
            ..ProcessCounters::default()
        })
    }
}
