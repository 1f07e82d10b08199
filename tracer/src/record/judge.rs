//! Whether a process's executable is one of those that are recorded.
//!
//! The kernel side cannot match paths, so it records every process that meets the other rules until it is told
//! otherwise (provisionally: nothing is missed), and what came of the others is dropped here, before it is written.
//! Apart because it is the only place where userspace narrows while a recording runs.

use std::{
    borrow::Cow,
    collections::VecDeque,
    path::{Path, PathBuf},
};

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_ebpf::{
    limits::MOST_TICK_NS,
    record::{self, Head, chosen, kind},
};

use crate::{
    bpf::Tracer,
    discover::{MapEvent, Selection, executable, process},
    units::{MonotonicNs, Pid},
};

/// Programs remembered of one process: a record of an earlier one may still be in the ring.
const REMEMBERED: usize = 4;
/// Processes whose programs are remembered; then all are forgotten, and /proc alone has to tell.
const MAX_PROCESSES: usize = 65_536;

/// A program that a process became.
#[derive(Clone, Debug)]
struct Became {
    time: MonotonicNs,
    /// `None` until its executable is mapped.
    path: Option<PathBuf>,
}

/// Judges executables, and drops what was recorded of those that are not wanted.
#[derive(Debug, Default)]
pub(super) struct Judge {
    selection: Selection,
    /// Newest last.
    programs: FxHashMap<Pid, VecDeque<Became>>,
    selected: FxHashSet<Pid>,
    dropped: FxHashSet<Pid>,
    unsure: u64,
}

/// A process record that waits for a verdict.
struct Announced {
    pid: Pid,
    parent: Pid,
    time: MonotonicNs,
}

impl Judge {
    /// Nothing to judge if the selection has no patterns for executables.
    pub(super) fn new(selection: Selection) -> Self {
        Self {
            selection,
            ..Self::default()
        }
    }

    fn is_idle(&self) -> bool {
        self.selection.executables.is_empty()
    }

    /// Processes whose executable could not be told, because they were gone: they are recorded.
    pub(super) fn unsure(&self) -> u64 {
        self.unsure
    }

    /// Whether nothing of this process is recorded.
    pub(super) fn drops(&self, pid: Pid) -> bool {
        self.dropped.contains(&pid)
    }

    /// Remembers which program a process became, and judges it at once: mostly before it has allocated.
    pub(super) fn saw(&mut self, event: &MapEvent, tracer: &mut Tracer) {
        if self.is_idle() {
            return;
        }
        if self.programs.len() > MAX_PROCESSES {
            self.programs.clear();
        }
        match event {
            MapEvent::Exec { pid, time } => {
                let programs = self.programs.entry(*pid).or_default();
                if programs.len() == REMEMBERED {
                    programs.pop_front();
                }
                programs.push_back(Became {
                    time: *time,
                    path: None,
                });
            }
            MapEvent::Forked { pid, parent, .. } => {
                // The earlier process of this number is gone.
                self.programs.remove(pid);
                if let Some(programs) = self.programs.get(parent).cloned() {
                    self.programs.insert(*pid, programs);
                }
            }
            // The kernel maps the executable first, then what it needs.
            MapEvent::Mapped(mapping) => {
                let newest = self.programs.get_mut(&mapping.pid).and_then(VecDeque::back_mut);
                if let Some(Became {
                    path: path @ None, ..
                }) = newest
                {
                    // A path as this process sees it, if the other one has not gone on meanwhile.
                    *path = Some(
                        executable(mapping.pid).map_or_else(|_| mapping.path.clone(), |found| found.path),
                    );
                    self.settle(mapping.pid, tracer);
                }
            }
            MapEvent::Exited { .. } | MapEvent::Lost { .. } => {}
        }
    }

    /// Tells the kernel side early what becomes of a process: then there is nothing to drop later, and its children
    /// are treated like it from the first.
    fn settle(&self, pid: Pid, tracer: &mut Tracer) {
        if !process(pid).is_ok_and(|found| self.selection.matches(&found)) {
            self.reject(pid, tracer);
        } else if let Err(error) = tracer.add_target(pid) {
            tracing::debug!("children of process {pid} are not followed: {error}");
        }
    }

    /// Tells the kernel side of a process that runs and is not wanted. Its records are dropped until then.
    pub(super) fn reject(&self, pid: Pid, tracer: &mut Tracer) {
        // If it is gone there is nothing to tell. What holds is read anew: only that is certain to go together.
        let Ok(found) = executable(pid) else { return };
        if found.arguments == 0 || self.wants(&found.path) {
            return;
        }
        // A child of a selected process is selected, whatever it runs.
        if tracer.is_selected(pid) {
            return;
        }
        if let Err(error) = tracer.reject(pid, found.arguments) {
            tracing::debug!("process {pid} goes on being recorded for nothing: {error}");
        }
    }

    fn wants(&self, path: &Path) -> bool {
        self.selection
            .executables
            .iter()
            .any(|pattern| pattern.matches(path))
    }

    /// What is to be written of a batch of records.
    pub(super) fn pass<'a>(&mut self, records: &'a [u8], tracer: &mut Tracer) -> Cow<'a, [u8]> {
        if self.is_idle() {
            return Cow::Borrowed(records);
        }
        let mut kept = Vec::with_capacity(records.len());
        let mut rest = records;
        while let Some((record, behind)) = next_record(rest) {
            rest = behind;
            if self.keeps(record, tracer) {
                kept.extend_from_slice(record);
            }
        }
        // What is no record is for the decoder to count.
        kept.extend_from_slice(rest);
        Cow::Owned(kept)
    }

    fn keeps(&mut self, record: &[u8], tracer: &mut Tracer) -> bool {
        let pid = Pid(u32_at(record, std::mem::offset_of!(Head, pid)));
        match record.first() {
            Some(&kind::PROCESS) => {
                if record.get(std::mem::offset_of!(Head, flags)) == Some(&chosen::PROVISIONAL) {
                    self.judge(&announced(record, pid), tracer);
                } else {
                    self.dropped.remove(&pid);
                    self.selected.insert(pid);
                }
                !self.drops(pid)
            }
            Some(&(kind::EXEC | kind::EXIT)) => {
                if record.first() == Some(&kind::EXIT) {
                    self.selected.remove(&pid);
                }
                !self.dropped.remove(&pid)
            }
            _ => !self.drops(pid),
        }
    }

    fn judge(&mut self, process: &Announced, tracer: &mut Tracer) {
        let known = self.programs.get(&process.pid).and_then(|programs| {
            // No interpreter starts and becomes another program in a tick.
            let latest = MonotonicNs(process.time.get().saturating_add(MOST_TICK_NS));
            let before = programs.iter().rev().find(|became| became.time <= latest);
            before?.path.clone()
        });
        let path = known.or_else(|| executable(process.pid).ok().map(|found| found.path));
        // Nothing that may be wanted is thrown away.
        self.unsure += u64::from(path.is_none());
        let wanted = self.selected.contains(&process.parent) || path.is_none_or(|path| self.wants(&path));
        if wanted {
            self.dropped.remove(&process.pid);
            self.selected.insert(process.pid);
            if let Err(error) = tracer.add_target(process.pid) {
                tracing::debug!("children of process {} are not followed: {error}", process.pid);
            }
        } else {
            self.selected.remove(&process.pid);
            self.dropped.insert(process.pid);
            self.reject(process.pid, tracer);
        }
    }
}

/// The first whole record, and what is behind it.
fn next_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = bytes
        .get(std::mem::offset_of!(Head, len)..)?
        .first_chunk()
        .map(|len| usize::from(u16::from_le_bytes(*len)))?;
    bytes.split_at_checked(len).filter(|_| len >= size_of::<Head>())
}

fn announced(record: &[u8], pid: Pid) -> Announced {
    Announced {
        pid,
        parent: Pid(u32_at(record, std::mem::offset_of!(record::Process, parent))),
        time: MonotonicNs(u64_at(record, std::mem::offset_of!(record::Process, time_ns))),
    }
}

/// The number at `at`; 0 past the end.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk());
    chunk.map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// The number at `at`; 0 past the end.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk());
    chunk.map_or(0, |chunk| u64::from_le_bytes(*chunk))
}
