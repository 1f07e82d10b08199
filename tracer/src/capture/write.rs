//! Writes a capture: blocks go to the file whole, or not at all.
//!
//! Events are gathered per ring and written when a block is full or on [`Writer::flush`], which a timer calls,
//! so that the death of this process loses no more than was gathered since. After a failed write the file is
//! cut back to its last whole block. The file is made for its owner only: it holds command lines and paths of
//! every user's processes.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use tracer_ebpf::ABI_VERSION;
use zstd::bulk::Compressor;

use super::{
    context::{Audit, End, Gap, ImageRecord, Meta, ProcessCounters, ProcessRecord, Window},
    format::{Codec, EVENTS_HEAD, Frame, HEAD_BYTES, MAX_RAW, header, kind},
    tallies::Tallies,
};
use crate::{
    ingest::{HeapAudit, Survey},
    units::ByteCount,
};

/// Bytes of a ring's events that make a block.
const BLOCK_BYTES: usize = 1 << 20;
/// Level of compression: the fastest, because the recording's own CPU time is a cost.
const LEVEL: i32 = 1;
/// Kept free under a limit, for the last counters and the end.
const RESERVE: u64 = 64 << 10;

/// Whether an existing file may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// It is an error.
    Refuse,
    /// It is emptied first.
    Force,
}

/// Why a capture could not be made or continued.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is a file of that name, and it may not be replaced.
    #[error("{} exists already", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The file could not be created.
    #[error("cannot create {}", path.display())]
    Create {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk is full, or another error of the file system. What is there stays readable.
    #[error("cannot write to {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The block would have passed the limit; it was not written.
    #[error("the capture has reached its limit of {limit} bytes")]
    Full {
        /// The limit.
        limit: ByteCount,
    },
    /// An earlier write failed and could not be undone.
    #[error("an earlier write to {} failed", path.display())]
    Broken {
        /// Where.
        path: PathBuf,
    },
    /// A block could not be put into bytes.
    #[error("cannot encode a block of the capture")]
    Encode {
        /// Why.
        source: io::Error,
    },
}

enum Sink {
    File(File),
    Stream(Box<dyn Write + Send>),
}

/// A capture being written.
pub struct Writer {
    sink: Sink,
    path: PathBuf,
    compressor: Compressor<'static>,
    rings: BTreeMap<u32, Vec<u8>>,
    /// The frame and the stored bytes of the block being written.
    block: Vec<u8>,
    written: u64,
    limit: Option<ByteCount>,
    unwritten: u64,
    broken: bool,
}

impl Writer {
    /// Makes a capture at `path`, or on standard output if that is `-`, and writes its first block.
    pub fn create(path: &Path, overwrite: Overwrite, meta: &Meta) -> Result<Self, WriteError> {
        if path == Path::new("-") {
            return Self::stream(Box::new(io::stdout()), meta);
        }
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        match overwrite {
            Overwrite::Refuse => options.create_new(true),
            Overwrite::Force => options.create(true).truncate(true),
        };
        let file = options.open(path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => WriteError::Exists { path: path.into() },
            _ => WriteError::Create {
                path: path.into(),
                source,
            },
        })?;
        Self::begin(Sink::File(file), path.into(), meta)
    }

    /// Writes a capture to a pipe or anything else that cannot go back.
    pub fn stream(to: Box<dyn Write + Send>, meta: &Meta) -> Result<Self, WriteError> {
        Self::begin(Sink::Stream(to), PathBuf::from("standard output"), meta)
    }

    fn begin(sink: Sink, path: PathBuf, meta: &Meta) -> Result<Self, WriteError> {
        let compressor = Compressor::new(LEVEL).map_err(|source| WriteError::Encode { source })?;
        let mut writer = Self {
            sink,
            path,
            compressor,
            rings: BTreeMap::new(),
            block: Vec::new(),
            written: 0,
            limit: None,
            unwritten: 0,
            broken: false,
        };
        writer.block.extend_from_slice(&header(ABI_VERSION));
        writer.put()?;
        writer.json(kind::META, meta)?;
        Ok(writer)
    }

    /// Bounds the file; what would pass the limit is refused with [`WriteError::Full`], except the end.
    pub fn set_limit(&mut self, limit: Option<ByteCount>) {
        self.limit = limit;
    }

    /// Bytes in the file so far.
    pub fn written(&self) -> ByteCount {
        ByteCount(self.written)
    }

    /// More is known than at the start: takes the place of what the first block says.
    pub fn meta(&mut self, meta: &Meta) -> Result<(), WriteError> {
        self.json(kind::META, meta)
    }

    /// An image was attached to.
    pub fn image(&mut self, image: &ImageRecord) -> Result<(), WriteError> {
        self.json(kind::IMAGE, image)
    }

    /// More is known about a process.
    pub fn process(&mut self, process: &ProcessRecord) -> Result<(), WriteError> {
        self.json(kind::PROCESS, process)
    }

    /// The counters of live processes, now and then and at the end: they are lost with the process otherwise.
    pub fn counters(&mut self, counters: &[ProcessCounters]) -> Result<(), WriteError> {
        self.json(kind::COUNTERS, counters)
    }

    /// Something was not traced for a while.
    pub fn gap(&mut self, gap: &Gap) -> Result<(), WriteError> {
        self.json(kind::GAP, gap)
    }

    /// Every allocation was looked at for a while. Ordered as an audit is.
    pub fn window(&mut self, window: &Window) -> Result<(), WriteError> {
        self.flush()?;
        self.json(kind::WINDOW, window)
    }

    /// What the pools of a process hold. What was gathered is written first, so that what the audit is later than
    /// stands before it.
    pub fn audit(&mut self, audit: &Audit) -> Result<(), WriteError> {
        self.flush()?;
        self.json(kind::AUDIT, audit)
    }

    /// What the heap of a process looks like. Ordered as an audit is.
    pub fn heap_audit(&mut self, audit: &HeapAudit) -> Result<(), WriteError> {
        self.flush()?;
        self.write(kind::HEAP_AUDIT, &audit.encode())
    }

    /// Which blocks that were seen in sampling windows are gone. Ordered as an audit is.
    pub fn survey(&mut self, survey: &Survey) -> Result<(), WriteError> {
        self.flush()?;
        self.write(kind::SURVEY, &survey.encode())
    }

    /// A part of what was aggregated.
    pub fn tallies(&mut self, part: &Tallies) -> Result<(), WriteError> {
        self.json(kind::TALLIES, part)
    }

    /// Adds whole records of a ring, in the order in which the ring gave them.
    pub fn events(&mut self, ring: u32, records: &[u8]) -> Result<(), WriteError> {
        // Less than a block is gathered already, so the sum stays below what readers accept.
        if records.len() > MAX_RAW - BLOCK_BYTES - EVENTS_HEAD {
            self.unwritten += records.len() as u64;
            return Err(too_long());
        }
        let gathered = self.rings.entry(ring).or_insert_with(|| {
            let mut start = Vec::with_capacity(BLOCK_BYTES + (BLOCK_BYTES >> 2));
            start.extend_from_slice(&events_head(ring));
            start
        });
        gathered.extend_from_slice(records);
        if gathered.len() >= BLOCK_BYTES {
            self.flush_ring(ring)?;
        }
        Ok(())
    }

    /// Writes what was gathered.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        let rings: Vec<u32> = self.rings.keys().copied().collect();
        let mut first = Ok(());
        for ring in rings {
            // Every ring is tried, so that each one's losses are counted.
            first = first.and(self.flush_ring(ring));
        }
        first
    }

    /// Writes what was gathered, the last counters and the end; gives the bytes written. The limit does not
    /// hold for counters and end, and they are tried even if the disk was full: they say what is missing.
    pub fn finish(mut self, counters: &[ProcessCounters], mut end: End) -> Result<ByteCount, WriteError> {
        let flushed = self.flush();
        end.unwritten = ByteCount(self.unwritten);
        self.limit = None;
        if !counters.is_empty() {
            self.counters(counters)?;
        }
        self.json(kind::END, &end)?;
        if let Sink::Stream(to) = &mut self.sink {
            to.flush().map_err(|source| WriteError::Write {
                path: self.path.clone(),
                source,
            })?;
        }
        match flushed {
            // The caller knows the limit was reached, and the end says what is missing.
            Ok(()) | Err(WriteError::Full { .. }) => Ok(self.written()),
            Err(error) => Err(error),
        }
    }

    fn flush_ring(&mut self, ring: u32) -> Result<(), WriteError> {
        let Some(gathered) = self.rings.get_mut(&ring) else {
            return Ok(());
        };
        if gathered.len() <= EVENTS_HEAD {
            return Ok(());
        }
        let mut block = std::mem::take(gathered);
        let result = self.event_block(&block);
        // The buffer goes back, so that a recording does not allocate for each block.
        block.truncate(EVENTS_HEAD);
        self.rings.insert(ring, block);
        result
    }

    fn event_block(&mut self, raw: &[u8]) -> Result<(), WriteError> {
        let result = self.write(kind::EVENTS, raw);
        if result.is_err() {
            self.unwritten += raw.len().saturating_sub(EVENTS_HEAD) as u64;
        }
        result
    }

    fn json<T: Serialize + ?Sized>(&mut self, kind: u8, value: &T) -> Result<(), WriteError> {
        let raw = serde_json::to_vec(value).map_err(|error| WriteError::Encode { source: error.into() })?;
        self.write(kind, &raw)
    }

    /// Frames, compresses and writes one block.
    fn write(&mut self, kind: u8, raw: &[u8]) -> Result<(), WriteError> {
        if self.broken {
            return Err(WriteError::Broken {
                path: self.path.clone(),
            });
        }
        if raw.len() > MAX_RAW {
            return Err(too_long());
        }
        self.block.clear();
        self.block
            .resize(HEAD_BYTES + zstd::zstd_safe::compress_bound(raw.len()), 0);
        let room = self.block.get_mut(HEAD_BYTES..).unwrap_or_default();
        let compressed = self
            .compressor
            .compress_to_buffer(raw, room)
            .map_err(|source| WriteError::Encode { source })?;
        let codec = if compressed < raw.len() {
            self.block.truncate(HEAD_BYTES + compressed);
            Codec::Zstd
        } else {
            self.block.truncate(HEAD_BYTES);
            self.block.extend_from_slice(raw);
            Codec::Plain
        };
        let stored = self.block.get(HEAD_BYTES..).unwrap_or_default();
        let frame = Frame {
            kind,
            codec,
            raw_len: u32::try_from(raw.len()).unwrap_or(u32::MAX),
            stored_len: u32::try_from(stored.len()).unwrap_or(u32::MAX),
            crc: crc32fast::hash(stored),
        };
        if let Some(place) = self.block.first_chunk_mut() {
            *place = frame.to_bytes();
        }
        if let Some(limit) = self.limit
            && self.written + self.block.len() as u64 + RESERVE > limit.get()
        {
            return Err(WriteError::Full { limit });
        }
        self.put()
    }

    /// Puts `self.block` into the file, whole or not at all.
    fn put(&mut self) -> Result<(), WriteError> {
        let result = match &mut self.sink {
            Sink::File(file) => file.write_all(&self.block),
            Sink::Stream(to) => to.write_all(&self.block).and_then(|()| to.flush()),
        };
        match result {
            Ok(()) => {
                self.written += self.block.len() as u64;
                Ok(())
            }
            Err(source) => {
                self.broken = !self.cut_back();
                Err(WriteError::Write {
                    path: self.path.clone(),
                    source,
                })
            }
        }
    }

    /// Removes a part of a block from the end of the file; whether that worked.
    fn cut_back(&mut self) -> bool {
        match &mut self.sink {
            Sink::File(file) => {
                file.set_len(self.written).is_ok() && file.seek(SeekFrom::Start(self.written)).is_ok()
            }
            Sink::Stream(_) => false,
        }
    }
}

fn too_long() -> WriteError {
    WriteError::Encode {
        source: io::Error::new(io::ErrorKind::InvalidInput, "longer than a block can be"),
    }
}

/// What stands in front of the records of an event block.
fn events_head(ring: u32) -> [u8; EVENTS_HEAD] {
    u64::from(ring).to_le_bytes()
}
