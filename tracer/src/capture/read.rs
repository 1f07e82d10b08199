//! Reads a capture as a stream, one block in memory at a time.
//!
//! The file is hostile input: lengths are capped, checksums checked, and how it ended is always told apart:
//! complete, cut (it has no end, as after a kill), or corrupt.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tracer_ebpf::ABI_VERSION;
use zstd::bulk::Decompressor;

use super::{
    context::{Audit, End, Gap, ImageRecord, Meta, ProcessCounters, ProcessRecord, Window},
    format::{Codec, EVENTS_HEAD, Frame, HEAD_BYTES, HeaderError, kind, parse_header},
    tallies::Tallies,
};
use crate::ingest::{HeapAudit, Survey};

/// Why a file is not read at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It could not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be read.
    #[error("cannot read the capture's header")]
    Read {
        /// Why.
        source: io::Error,
    },
    /// It does not begin as captures do.
    #[error("this is not a capture of pyrobe")]
    NotACapture,
    /// It is shorter than a header.
    #[error("the capture was cut off in its header")]
    HeaderCut,
    /// The header's checksum does not match.
    #[error("the capture's header is damaged")]
    HeaderDamaged,
    /// Another major version of the format.
    #[error("the capture has format {found}, this pyrobe reads format {known}")]
    Format {
        /// The file's.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// Another version of the records.
    #[error("the capture's events have version {found}, this pyrobe reads version {known}")]
    Abi {
        /// The file's.
        found: u32,
        /// Ours.
        known: u32,
    },
}

impl OpenError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Open { .. } | Self::Read { .. } => None,
            Self::NotACapture => Some("name a file that `pyrobe record` has written"),
            Self::HeaderCut | Self::HeaderDamaged => Some("copy the file again, or record again"),
            Self::Format { .. } | Self::Abi { .. } => {
                Some("read it with the pyrobe version that recorded it, or a newer one")
            }
        }
    }
}

/// One block of a capture.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Where and how it was made.
    Meta(Meta),
    /// An image.
    Image(ImageRecord),
    /// More about a process.
    Process(ProcessRecord),
    /// Whole records of one ring, for `ingest::Decoder`.
    Events {
        /// Index of the ring.
        ring: u32,
        /// The records.
        records: Bytes,
    },
    /// Counters of live processes.
    Counters(Vec<ProcessCounters>),
    /// A time without tracing.
    Gap(Gap),
    /// What the pools of a process held.
    Audit(Audit),
    /// The same pool by pool, and the rest of its memory.
    HeapAudit(HeapAudit),
    /// Which blocks that were seen in sampling windows are gone.
    Survey(Survey),
    /// A time in which every allocation was looked at.
    Window(Window),
    /// A part of what was aggregated.
    Tallies(Tallies),
    /// The end.
    End(End),
}

/// How a capture ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With its end block.
    Complete,
    /// Without: the recording died or the file was cut. What stands before `at` is good.
    Cut {
        /// Bytes up to the end of the last whole block.
        at: u64,
        /// What is missing, in words.
        reason: &'static str,
    },
    /// Damaged. What stands before `at` is good; what follows is not read.
    Corrupt {
        /// Bytes up to the end of the last good block.
        at: u64,
        /// What is wrong, in words.
        reason: String,
    },
}

/// A capture being read: an iterator of blocks. Ask [`Reader::ended`] when it is through.
pub struct Reader<R> {
    from: R,
    decompressor: Decompressor<'static>,
    /// Bytes up to the end of the last whole block.
    at: u64,
    skipped: u64,
    seen_end: bool,
    ended: Option<Ended>,
}

/// Why a block was not read; becomes an [`Ended`].
enum Stop {
    Cut(&'static str),
    Corrupt(String),
}

impl Reader<BufReader<File>> {
    /// Opens the capture at `path`.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let file = File::open(path).map_err(|source| OpenError::Open {
            path: path.into(),
            source,
        })?;
        Self::new(BufReader::new(file))
    }
}

impl<R: Read> Reader<R> {
    /// Reads a capture from `from`, which need not be able to seek.
    pub fn new(mut from: R) -> Result<Self, OpenError> {
        let mut header = [0; HEAD_BYTES];
        let len = read_up_to(&mut from, &mut header).map_err(|source| OpenError::Read { source })?;
        let magic = super::format::MAGIC;
        if len < HEAD_BYTES {
            let is_start = header.get(..len.min(magic.len())) == magic.get(..len.min(magic.len()));
            return Err(if is_start {
                OpenError::HeaderCut
            } else {
                OpenError::NotACapture
            });
        }
        let abi = parse_header(&header).map_err(|error| match error {
            HeaderError::Magic => OpenError::NotACapture,
            HeaderError::Checksum => OpenError::HeaderDamaged,
            HeaderError::Version(found) => OpenError::Format {
                found,
                known: super::format::MAJOR,
            },
        })?;
        if abi != ABI_VERSION {
            return Err(OpenError::Abi {
                found: abi,
                known: ABI_VERSION,
            });
        }
        Ok(Self {
            from,
            decompressor: Decompressor::new().map_err(|source| OpenError::Read { source })?,
            at: HEAD_BYTES as u64,
            skipped: 0,
            seen_end: false,
            ended: None,
        })
    }

    /// Blocks of kinds that this version does not know.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// How it ended; `None` before the iterator has.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// The next block; `None` for one that this version does not know.
    fn block(&mut self) -> Result<Option<Block>, Stop> {
        let mut head = [0; HEAD_BYTES];
        match read_up_to(&mut self.from, &mut head).map_err(|error| broken(&error))? {
            0 => return Err(Stop::Cut("it has no end block")),
            HEAD_BYTES => {}
            _ => return Err(Stop::Cut("it stops in the middle of a block")),
        }
        let frame = Frame::parse(&head).map_err(|reason| Stop::Corrupt(reason.to_owned()))?;
        let mut stored = Vec::new();
        // Grows with what is there, not with what the frame claims.
        let len = (&mut self.from)
            .take(u64::from(frame.stored_len))
            .read_to_end(&mut stored)
            .map_err(|error| broken(&error))?;
        if len < frame.stored_len as usize {
            return Err(Stop::Cut("it stops in the middle of a block"));
        }
        if crc32fast::hash(&stored) != frame.crc {
            return Err(Stop::Corrupt("a block's checksum does not match".to_owned()));
        }
        let raw = match frame.codec {
            Codec::Plain => stored,
            Codec::Zstd => self
                .decompressor
                .decompress(&stored, frame.raw_len as usize)
                .map_err(|error| Stop::Corrupt(format!("a block cannot be decompressed: {error}")))?,
        };
        if raw.len() != frame.raw_len as usize {
            return Err(Stop::Corrupt("a block has not the length it claims".to_owned()));
        }
        let block = parse_block(frame.kind, raw)?;
        self.at += (HEAD_BYTES + len) as u64;
        Ok(block)
    }

    /// What follows the end block: nothing, if all is well.
    fn after_end(&mut self) -> Ended {
        let mut one = [0; 1];
        match read_up_to(&mut self.from, &mut one) {
            Ok(0) => Ended::Complete,
            Ok(_) => Ended::Corrupt {
                at: self.at,
                reason: "there is more after its end block".to_owned(),
            },
            Err(error) => Ended::Corrupt {
                at: self.at,
                reason: format!("it cannot be read: {error}"),
            },
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        while self.ended.is_none() {
            if self.seen_end {
                self.ended = Some(self.after_end());
                break;
            }
            match self.block() {
                Ok(Some(block)) => {
                    self.seen_end = matches!(block, Block::End(_));
                    return Some(block);
                }
                Ok(None) => self.skipped += 1,
                Err(Stop::Cut(reason)) => self.ended = Some(Ended::Cut { at: self.at, reason }),
                Err(Stop::Corrupt(reason)) => self.ended = Some(Ended::Corrupt { at: self.at, reason }),
            }
        }
        None
    }
}

fn broken(error: &io::Error) -> Stop {
    Stop::Corrupt(format!("it cannot be read: {error}"))
}

fn parse_block(kind: u8, raw: Vec<u8>) -> Result<Option<Block>, Stop> {
    Ok(Some(match kind {
        kind::META => Block::Meta(json(&raw)?),
        kind::IMAGE => Block::Image(json(&raw)?),
        kind::PROCESS => Block::Process(json(&raw)?),
        kind::COUNTERS => Block::Counters(json(&raw)?),
        kind::GAP => Block::Gap(json(&raw)?),
        kind::AUDIT => Block::Audit(json(&raw)?),
        kind::WINDOW => Block::Window(json(&raw)?),
        kind::HEAP_AUDIT => Block::HeapAudit(
            HeapAudit::decode(&raw)
                .ok_or_else(|| Stop::Corrupt("a reading of a heap does not fit its block".to_owned()))?,
        ),
        kind::SURVEY => Block::Survey(
            Survey::decode(&raw)
                .ok_or_else(|| Stop::Corrupt("a look at sampled blocks does not fit its block".to_owned()))?,
        ),
        kind::TALLIES => Block::Tallies(json(&raw)?),
        kind::END => Block::End(json(&raw)?),
        kind::EVENTS => {
            let Some(head) = raw.first_chunk::<EVENTS_HEAD>() else {
                return Err(Stop::Corrupt("a block of events has no ring".to_owned()));
            };
            let [r0, r1, r2, r3, ..] = *head;
            Block::Events {
                ring: u32::from_le_bytes([r0, r1, r2, r3]),
                records: Bytes::from(raw).slice(EVENTS_HEAD..),
            }
        }
        _ => return Ok(None),
    }))
}

fn json<T: DeserializeOwned>(raw: &[u8]) -> Result<T, Stop> {
    serde_json::from_slice(raw)
        .map_err(|error| Stop::Corrupt(format!("a block is not what it should be: {error}")))
}

/// Fills `buffer` as far as there are bytes; how many there were.
fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..)
        && !rest.is_empty()
    {
        match from.read(rest) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}
