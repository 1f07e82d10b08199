//! Where a recording goes: into one capture, into several, or as tallies.
//!
//! Apart so that the owner need not know. Invariant: whatever is put in comes in the order of the ring.

use std::path::PathBuf;

use super::{Files, Settings, aggregate::Aggregation, rotate::Rotation};
use crate::{
    capture::{
        Audit, Block, End, Gap, ImageRecord, Meta, ProcessCounters, ProcessRecord, Window, WriteError,
        Writer, replaced::Finished,
    },
    ingest::{HeapAudit, Survey},
    units::ByteCount,
};

/// One of the three.
pub(super) enum Output {
    Whole { writer: Writer, path: PathBuf },
    Rotated(Box<Rotation>),
    Aggregated(Box<Aggregation>),
}

impl Output {
    /// Makes the (first) file.
    pub(super) fn create(settings: &Settings, meta: &Meta) -> Result<Self, WriteError> {
        let (path, overwrite) = (&settings.output, settings.overwrite);
        Ok(match settings.files {
            Files::One => {
                let mut writer = Writer::create(path, overwrite, meta)?;
                writer.set_limit(settings.max_size);
                Self::Whole {
                    writer,
                    path: path.clone(),
                }
            }
            Files::Rotated { size, keep } => {
                Self::Rotated(Box::new(Rotation::create(path, overwrite, size, keep, meta)?))
            }
            Files::Aggregated { every } => {
                let limit = settings.max_size;
                Self::Aggregated(Box::new(Aggregation::create(
                    path, overwrite, limit, every, meta,
                )?))
            }
        })
    }

    /// The files there are, oldest first.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Whole { path, .. } => vec![path.clone()],
            Self::Rotated(rotation) => rotation.files(),
            Self::Aggregated(aggregation) => vec![aggregation.path().into()],
        }
    }

    /// What went wrong without ending the recording.
    pub(super) fn take_problems(&mut self) -> Vec<String> {
        match self {
            Self::Rotated(rotation) => rotation.take_problems(),
            Self::Whole { .. } | Self::Aggregated(_) => Vec::new(),
        }
    }

    /// More is known than at the start.
    pub(super) fn meta(&mut self, meta: &Meta) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.meta(meta),
            Self::Rotated(rotation) => rotation.meta(meta),
            Self::Aggregated(aggregation) => {
                aggregation.meta(meta);
                Ok(())
            }
        }
    }

    /// An image was attached to.
    pub(super) fn image(&mut self, image: &ImageRecord) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.image(image),
            Self::Rotated(rotation) => rotation.image(image),
            Self::Aggregated(aggregation) => {
                aggregation.image(image);
                Ok(())
            }
        }
    }

    /// More is known about a process.
    pub(super) fn process(&mut self, process: &ProcessRecord) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.process(process),
            Self::Rotated(rotation) => rotation.process(process),
            // No report shows it.
            Self::Aggregated(_) => Ok(()),
        }
    }

    /// The counters of the processes that run.
    pub(super) fn counters(&mut self, counters: &[ProcessCounters]) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.counters(counters),
            Self::Rotated(rotation) => rotation.counters(counters),
            Self::Aggregated(aggregation) => {
                aggregation.counters(counters);
                Ok(())
            }
        }
    }

    /// What the pools of a process hold.
    pub(super) fn audit(&mut self, audit: &Audit) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.audit(audit),
            Self::Rotated(rotation) => rotation.audit(audit),
            Self::Aggregated(aggregation) => {
                aggregation.audit(audit);
                Ok(())
            }
        }
    }

    /// What the heap of a process looks like.
    pub(super) fn heap_audit(&mut self, audit: &HeapAudit) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.heap_audit(audit),
            Self::Rotated(rotation) => rotation.heap_audit(audit),
            Self::Aggregated(aggregation) => {
                aggregation.block(Block::HeapAudit(audit.clone()));
                Ok(())
            }
        }
    }

    /// Which sampled blocks of a process are gone.
    pub(super) fn survey(&mut self, survey: Survey) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.survey(&survey),
            Self::Rotated(rotation) => rotation.survey(&survey),
            Self::Aggregated(aggregation) => {
                aggregation.block(Block::Survey(survey));
                Ok(())
            }
        }
    }

    /// Every allocation was looked at for a while.
    pub(super) fn window(&mut self, window: Window) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.window(&window),
            Self::Rotated(rotation) => rotation.window(&window),
            Self::Aggregated(aggregation) => {
                aggregation.block(Block::Window(window));
                Ok(())
            }
        }
    }

    /// Something was not traced for a while.
    pub(super) fn gap(&mut self, gap: Gap) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.gap(&gap),
            Self::Rotated(rotation) => rotation.gap(&gap),
            Self::Aggregated(aggregation) => {
                aggregation.block(Block::Gap(gap));
                Ok(())
            }
        }
    }

    /// Whether another file was begun since somebody asked: it knows nothing of what the ones before say of pools.
    pub(super) fn take_turned(&mut self) -> bool {
        match self {
            Self::Rotated(rotation) => rotation.take_turned(),
            Self::Whole { .. } | Self::Aggregated(_) => false,
        }
    }

    /// Whole records, in the order in which the ring gave them.
    pub(super) fn events(&mut self, records: &[u8]) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.events(0, records),
            Self::Rotated(rotation) => rotation.events(records),
            Self::Aggregated(aggregation) => {
                aggregation.events(records);
                Ok(())
            }
        }
    }

    /// Writes what was gathered; what was aggregated only now and then.
    pub(super) fn flush(&mut self) -> Result<(), WriteError> {
        match self {
            Self::Whole { writer, .. } => writer.flush(),
            Self::Rotated(rotation) => rotation.flush(),
            Self::Aggregated(aggregation) => aggregation.flush(),
        }
    }

    /// Writes what was gathered, the last counters and the end.
    pub(super) fn finish(self, counters: &[ProcessCounters], end: End) -> Result<Finished, WriteError> {
        let written = |written: ByteCount| Finished { written, full: false };
        match self {
            Self::Whole { writer, .. } => writer.finish(counters, end).map(written),
            Self::Rotated(rotation) => rotation.finish(counters, end).map(written),
            Self::Aggregated(aggregation) => aggregation.finish(counters, end),
        }
    }
}
