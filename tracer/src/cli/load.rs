//! A capture to a snapshot: blocks to events to a profile, as a stream.

use std::{collections::BTreeMap, io, path::Path};

use crate::{
    capture::{Audit, Block, Ended, Gap, ImageRecord, Meta, OpenError, Reader},
    error::UserError,
    ingest::Decoder,
    profile::{
        Context, Coverage, ImageInfo, Mode, PoolAudit, Profile, ProfileSettings, Snapshot, audit::ByClass,
    },
    record::HOST,
};

/// Reads a whole capture; `-` is standard input.
pub(super) fn snapshot(path: &Path) -> Result<Snapshot, UserError> {
    let fail = |error: OpenError| {
        let hint = error.hint();
        let user = UserError::new(format!("cannot read {}", path.display())).caused_by(error);
        match hint {
            Some(hint) => user.hint(hint),
            None => user,
        }
    };
    if path == Path::new("-") {
        let reader = Reader::new(io::stdin().lock()).map_err(fail)?;
        return Ok(read(reader));
    }
    Ok(read(Reader::open(path).map_err(fail)?))
}

fn read<R: io::Read>(mut reader: Reader<R>) -> Snapshot {
    let mut profile = Profile::new(ProfileSettings::default());
    let mut context = Context::default();
    let mut start = None;
    let mut last_counters = Vec::new();
    let mut gaps: Vec<Gap> = Vec::new();
    for block in reader.by_ref() {
        match block {
            Block::Meta(meta) => {
                start = Some(meta.start_monotonic);
                if meta.mode == Mode::Heap.name() {
                    profile.set_mode(Mode::Heap);
                }
                describe(&mut context, meta);
            }
            Block::Image(image) => {
                // It can be told twice: what was missed before it was attached may be heard of later.
                context.images.retain(|known| known.id != image.id.get());
                context.images.push(image_info(image));
            }
            Block::Events { records, .. } => {
                let mut decoder = Decoder::new(&records);
                for event in decoder.by_ref() {
                    profile.apply(&event);
                }
                let tally = decoder.tally();
                profile.add_decode_problems(tally.unknown + tally.malformed);
            }
            // Each names all processes that ran at its time; those that are gone have told by themselves.
            Block::Counters(counters) => last_counters = counters,
            Block::Gap(gap) => {
                if let Some(group) = gap.group {
                    profile.gap(group);
                }
                gaps.push(gap);
            }
            Block::End(end) => {
                if let Some(start) = start {
                    context.duration_ns = Some(end.end_monotonic.get().saturating_sub(start.get()));
                }
                profile.add_decode_problems(end.undecoded);
                if end.unwritten.get() != 0 {
                    context.notes.push(format!(
                        "{} bytes of events are not in the file: {}",
                        end.unwritten, end.message
                    ));
                }
            }
            Block::Audit(audit) => profile.audit(pool_audit(&audit)),
            Block::HeapAudit(audit) => profile.heap_audit(audit),
            Block::Window(window) => profile.window(window.from, window.to),
            Block::Process(_) => {}
        }
    }
    for counters in last_counters {
        if counters.pid == HOST {
            profile.set_host_losses(counters.counters().losses);
        } else {
            profile.set_counters(counters.pid, counters.start, counters.counters());
        }
    }
    match reader.ended() {
        Some(Ended::Cut { reason, .. }) => profile.set_truncated(format!("the capture is cut: {reason}")),
        Some(Ended::Corrupt { reason, .. }) => {
            profile.set_truncated(format!("the capture is damaged: {reason}"));
        }
        Some(Ended::Complete) | None => profile.finish(),
    }
    context.notes.extend(gap_notes(&gaps));
    profile.set_context(context);
    profile.snapshot()
}

fn describe(context: &mut Context, meta: Meta) {
    context.tool_version = meta.pyrobe_version;
    context.host = meta.host;
    context.kernel = meta.kernel;
    context.mode = meta.mode;
    context.command = meta.command;
    context.settings = meta.settings.into_iter().collect();
    context.started_unix_ns = Some(meta.start_unix_ns);
    context.cost_per_hit_ns = meta.hit_cost_ns;
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

/// A sentence for each reason that something was not traced for a time. A gap that never ended is its beginning only.
fn gap_notes(gaps: &[Gap]) -> Vec<String> {
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for gap in gaps {
        let (count, time) = sums.entry(&gap.reason).or_default();
        if gap.to.get() == 0 {
            *count += 1;
        } else {
            *count += u64::from(gap.group.is_none());
            *time += gap.to.get().saturating_sub(gap.from.get());
        }
    }
    let note = |(reason, (count, time)): (&str, (u64, u64))| {
        format!(
            "not traced for {} ms in {count} gap(s): {reason}",
            time / 1_000_000
        )
    };
    sums.into_iter().map(note).collect()
}
