//! The blocks of a capture to a snapshot: events are decoded and counted, tallies are taken as they are.
//!
//! Used on a capture that is read, and by `record --aggregate` on what it would have written otherwise: so the figures
//! of both ways are the same by construction. No input or output. Invariant: what a capture cannot say is a note or a
//! mark of the snapshot, never a guess.

mod gaps;
mod restore;
mod store;
#[cfg(test)]
mod tests;

use crate::{
    capture::{
        AtWork, Audit, Block, End, EndReason, Ended, HOST, ImageRecord, Meta, ProcessCounters, Tallies,
        Window,
    },
    ingest::{Decoder, event::same_start},
    mode::Mode,
    profile::{
        Context, Coverage, GroupGap, ImageInfo, PoolAudit, Profile, ProfileSettings, Snapshot, Work,
        audit::ByClass,
    },
    units::{BootNs, MonotonicNs, Pid},
};
use gaps::Gaps;
use restore::Restored;

/// Takes blocks in the order in which they stand.
pub struct Replay {
    profile: Profile,
    context: Context,
    start: Option<MonotonicNs>,
    newest_counters: Vec<ProcessCounters>,
    gaps: Gaps,
    /// Of an aggregated capture.
    restored: Option<Restored>,
    settings: ProfileSettings,
    file: Option<u32>,
    end: Option<EndReason>,
}

impl Replay {
    /// Nothing was taken yet.
    pub fn new(settings: ProfileSettings) -> Self {
        Self {
            profile: Profile::new(settings),
            context: Context::default(),
            start: None,
            newest_counters: Vec::new(),
            gaps: Gaps::default(),
            restored: None,
            settings,
            file: None,
            end: None,
        }
    }

    /// The next block.
    pub fn block(&mut self, block: Block) {
        match block {
            Block::Meta(meta) => self.meta(meta),
            Block::Image(image) => {
                // It can be told twice: what was missed before it was attached may be heard of later.
                self.context.images.retain(|known| known.id != image.id.get());
                self.context.images.push(image_info(image));
            }
            Block::Events { records, .. } => self.events(&records),
            // Each names all processes that ran at its time; those that are gone have told by themselves.
            Block::Counters(counters) => self.newest_counters = counters,
            Block::Gap(gap) => {
                if let Some(group) = gap.group {
                    self.profile.gap(GroupGap {
                        group,
                        from: gap.from,
                        to: (gap.to.get() != 0).then_some(gap.to),
                    });
                }
                self.gaps.push(gap);
            }
            Block::End(end) => self.ended(&end),
            Block::Audit(audit) => self.profile.audit(pool_audit(&audit)),
            Block::HeapAudit(audit) => self.profile.heap_audit(audit),
            Block::Survey(survey) => self.profile.survey(&survey),
            Block::Window(window) => self.window(&window),
            Block::Tallies(part) => self.tallies_part(part),
            Block::Process(_) => {}
        }
    }

    fn window(&mut self, window: &Window) {
        let work = |pid: Pid, start: Option<BootNs>| {
            let of_it = |found: &&AtWork| {
                found.pid == pid && start.is_none_or(|start| same_start(found.start, start))
            };
            window.at_work.iter().find(of_it).map(|found| Work {
                before: found.before,
                used: found.used,
                hits: found.hits,
            })
        };
        self.profile.window(window.from, window.to, window.one_in, work);
    }

    /// Whole records of a ring, which come before the next block.
    pub fn events(&mut self, records: &[u8]) {
        let mut decoder = Decoder::new(records);
        for event in decoder.by_ref() {
            self.profile.apply(&event);
        }
        let tally = decoder.tally();
        self.profile.add_decode_problems(tally.unknown + tally.malformed);
    }

    /// The snapshot of all blocks, knowing how the capture ended.
    pub fn snapshot(mut self, ended: Option<&Ended>) -> Snapshot {
        let truncated = match ended {
            Some(Ended::Cut { reason, .. }) => Some(format!("the capture is cut: {reason}")),
            Some(Ended::Corrupt { reason, .. }) => Some(format!("the capture is damaged: {reason}")),
            Some(Ended::Complete) | None => None,
        };
        let mut context = std::mem::take(&mut self.context);
        context.notes.extend(self.gaps.notes());
        if let Some(file) = self.file {
            context.notes.insert(0, file_note(file, self.end));
        }
        if let Some(restored) = self.restored.take() {
            return restored.snapshot(context, self.start, self.end, truncated);
        }
        self.apply_counters();
        match truncated {
            Some(why) => self.profile.set_truncated(why),
            None => self.profile.finish(),
        }
        self.profile.set_context(context);
        self.profile.snapshot()
    }

    /// What was counted so far, while the recording goes on: hands it out in parts.
    pub fn tallies<E>(
        &mut self,
        at: MonotonicNs,
        put: impl FnMut(&Tallies) -> Result<(), E>,
    ) -> Result<(), E> {
        for counters in &self.newest_counters {
            if counters.pid == HOST {
                self.profile.set_host_losses(counters.counters().losses);
            } else if self.profile.is_running(counters.pid, counters.start) {
                // Others may be ahead of the events: their time will come.
                self.profile
                    .set_counters(counters.pid, counters.start, counters.counters());
            }
        }
        self.store(at, put)
    }

    /// The same once there are no more blocks.
    pub fn last_tallies<E>(
        &mut self,
        at: MonotonicNs,
        put: impl FnMut(&Tallies) -> Result<(), E>,
    ) -> Result<(), E> {
        self.apply_counters();
        self.profile.finish();
        self.store(at, put)
    }

    fn store<E>(&mut self, at: MonotonicNs, put: impl FnMut(&Tallies) -> Result<(), E>) -> Result<(), E> {
        // A reader has the notes of the capture's own blocks anyway.
        self.profile.set_context(Context {
            notes: Vec::new(),
            ..self.context.clone()
        });
        store::store(&self.profile.snapshot(), at, put)
    }

    /// Bounds what is kept of processes that are gone.
    pub fn fold_gone(&mut self, most: usize) {
        self.profile.fold_gone(most);
    }

    fn apply_counters(&mut self) {
        for counters in std::mem::take(&mut self.newest_counters) {
            if counters.pid == HOST {
                self.profile.set_host_losses(counters.counters().losses);
            } else {
                self.profile
                    .set_counters(counters.pid, counters.start, counters.counters());
            }
        }
    }

    fn meta(&mut self, meta: Meta) {
        self.start = Some(meta.start_monotonic);
        if meta.mode == Mode::Heap.name() {
            self.profile.set_mode(Mode::Heap);
        }
        self.file = meta.file;
        if meta.aggregated {
            self.restored.get_or_insert_with(|| Restored::new(self.settings));
        }
        let context = &mut self.context;
        context.tool_version = meta.pyrobe_version;
        context.host = meta.host;
        context.kernel = meta.kernel;
        context.mode = meta.mode;
        context.command = meta.command;
        context.settings = meta.settings.into_iter().collect();
        context.started_unix_ns = Some(meta.start_unix_ns);
        context.cost_per_hit_ns = meta.hit_cost_ns;
    }

    fn tallies_part(&mut self, part: Tallies) {
        let settings = self.settings;
        self.restored
            .get_or_insert_with(|| Restored::new(settings))
            .part(part);
    }

    fn ended(&mut self, end: &End) {
        self.end = Some(end.reason);
        if let Some(start) = self.start {
            self.context.duration_ns = Some(end.end_monotonic.get().saturating_sub(start.get()));
        }
        match &mut self.restored {
            Some(restored) => restored.add_decode_problems(end.undecoded),
            None => self.profile.add_decode_problems(end.undecoded),
        }
        if end.unwritten.get() != 0 {
            self.context.notes.push(format!(
                "{} bytes of events are not in the file: {}",
                end.unwritten, end.message
            ));
        }
    }
}

fn file_note(file: u32, end: Option<EndReason>) -> String {
    let next = match end {
        Some(EndReason::Rotated) => ", which goes on in the next",
        _ => "",
    };
    format!(
        "this is file {file} of a recording in several{next}: all figures are of this file alone, and frees of blocks \
         that an earlier one saw allocated are unmatched"
    )
}

fn image_info(image: ImageRecord) -> ImageInfo {
    ImageInfo {
        id: image.id.get(),
        path: image.path,
        version: image.version,
        build_id: Some(image.build_id).filter(|id| !id.is_empty()),
        coverage: Coverage {
            resolved: image.coverage_resolved,
            copies: image.coverage_copies,
        },
        placement: image.placement,
        attach_gap_ns: image.attach_gap_ns,
    }
}

fn pool_audit(audit: &Audit) -> PoolAudit {
    let mut used = ByClass::default();
    for (to, from) in used.iter_mut().zip(&audit.used) {
        *to = *from;
    }
    PoolAudit {
        pid: audit.pid,
        start: audit.start,
        began: audit.began,
        ended: audit.ended,
        since_start: audit.since_start,
        complete: audit.complete,
        pools: audit.pools,
        used,
    }
}
