//! A recording that is counted while it is made: the capture holds the tallies, and its size does not grow with time.
//!
//! The owner's inputs go the way on which a report would read them from a capture (`replay`), and what comes of them is
//! written anew now and then. Invariant: whatever ends the recorder, the file holds the last tallies, whole.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::attach::now;
use crate::{
    capture::{
        Audit, Block, End, ImageRecord, Meta, Overwrite, ProcessCounters, Replaced, WriteError, Writer,
        replaced::Finished,
    },
    profile::ProfileSettings,
    replay::Replay,
    units::ByteCount,
};

/// Tallies kept of processes that are gone, about 100 bytes each; the oldest processes past that become one row.
const GONE_TALLIES: usize = 1 << 20;

/// What was counted so far.
pub(super) struct Aggregation {
    file: Replaced,
    path: PathBuf,
    replay: Replay,
    meta: Meta,
    images: Vec<ImageRecord>,
    every: Duration,
    due: Instant,
}

impl Aggregation {
    /// Makes the file, with nothing counted.
    pub(super) fn create(
        path: &Path,
        overwrite: Overwrite,
        limit: Option<ByteCount>,
        every: Duration,
        meta: &Meta,
    ) -> Result<Self, WriteError> {
        let meta = Meta {
            aggregated: true,
            ..meta.clone()
        };
        let mut file = Replaced::create(path, overwrite, &meta)?;
        file.set_limit(limit);
        Ok(Self {
            file,
            path: path.into(),
            replay: Replay::new(ProfileSettings::default()),
            meta,
            images: Vec::new(),
            every,
            due: Instant::now() + every,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn meta(&mut self, meta: &Meta) {
        self.meta.hit_cost_ns = meta.hit_cost_ns;
    }

    pub(super) fn image(&mut self, image: &ImageRecord) {
        self.images.push(image.clone());
        self.replay.block(Block::Image(image.clone()));
    }

    pub(super) fn audit(&mut self, audit: &Audit) {
        self.replay.block(Block::Audit(audit.clone()));
    }

    /// What is no event and has no place of its own here.
    pub(super) fn block(&mut self, block: Block) {
        self.replay.block(block);
    }

    pub(super) fn counters(&mut self, counters: &[ProcessCounters]) {
        self.replay.block(Block::Counters(counters.to_vec()));
    }

    pub(super) fn events(&mut self, records: &[u8]) {
        self.replay.events(records);
    }

    /// Writes what was counted, if it is time.
    pub(super) fn flush(&mut self) -> Result<(), WriteError> {
        self.replay.fold_gone(GONE_TALLIES);
        if Instant::now() < self.due || !self.file.can_be_replaced() {
            return Ok(());
        }
        let Self {
            file,
            replay,
            meta,
            images,
            ..
        } = self;
        let result = file.put(meta, |writer| {
            put_images(writer, images)?;
            replay.tallies(now(), |part| writer.tallies(part))
        });
        self.due = Instant::now() + self.every;
        result
    }

    /// Writes all of it, and the end.
    pub(super) fn finish(mut self, counters: &[ProcessCounters], end: End) -> Result<Finished, WriteError> {
        if !counters.is_empty() {
            self.counters(counters);
        }
        let Self {
            file,
            mut replay,
            meta,
            images,
            ..
        } = self;
        let at = end.end_monotonic;
        file.finish(
            &meta,
            |writer| {
                put_images(writer, &images)?;
                replay.last_tallies(at, |part| writer.tallies(part))
            },
            end,
        )
    }
}

fn put_images(writer: &mut Writer, images: &[ImageRecord]) -> Result<(), WriteError> {
    images.iter().try_for_each(|image| writer.image(image))
}
