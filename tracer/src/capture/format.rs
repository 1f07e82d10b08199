//! The bytes of a capture: a header, then frames. All integers are little endian.
//!
//! ```text
//! header, 24 bytes: magic (8) | major u16 | minor u16 | abi version u32 | reserved u32 | crc32 of the 20 bytes before
//! frame,  24 bytes: kind u8 | codec u8 | reserved u16 | raw length u32 | stored length u32 | reserved u32
//!                   | crc32 of the stored bytes u32 | crc32 of the 20 bytes before u32
//! then `stored length` bytes
//! ```
//!
//! The frame has a checksum of its own so that a damaged length is told apart from a file that was cut. A new
//! kind of block is a new minor version: readers skip what they do not know. Anything else is a new major one.

/// First bytes: not text, and changed by a transfer that rewrites line ends or the eighth bit.
pub(super) const MAGIC: [u8; 8] = *b"\x89pyrobe\n";
/// Readers refuse any other.
pub(super) const MAJOR: u16 = 1;
/// Readers accept newer ones.
pub(super) const MINOR: u16 = 7;
/// Bytes of the header and of a frame.
pub(super) const HEAD_BYTES: usize = 24;
/// Most bytes of a block once decompressed; a reader refuses more, a writer splits.
pub(super) const MAX_RAW: usize = 64 << 20;
/// Most bytes of a block as stored: zstd's own bound for incompressible input is far below.
pub(super) const MAX_STORED: usize = MAX_RAW + (MAX_RAW >> 6);

/// What a block holds.
pub(super) mod kind {
    /// [`super::super::Meta`], JSON; the first block.
    pub(crate) const META: u8 = 1;
    /// [`super::super::ImageRecord`], JSON.
    pub(crate) const IMAGE: u8 = 2;
    /// [`super::super::ProcessRecord`], JSON.
    pub(crate) const PROCESS: u8 = 3;
    /// Ring index u32, reserved u32, then whole records of `tracer_ebpf::record`.
    pub(crate) const EVENTS: u8 = 4;
    /// A list of [`super::super::ProcessCounters`], JSON.
    pub(crate) const COUNTERS: u8 = 5;
    /// [`super::super::Gap`], JSON.
    pub(crate) const GAP: u8 = 6;
    /// [`super::super::End`], JSON; the last block.
    pub(crate) const END: u8 = 7;
    /// [`super::super::Audit`], JSON; since 1.1.
    pub(crate) const AUDIT: u8 = 8;
    /// [`crate::ingest::HeapAudit`], encoded; since 1.2, with the large blocks that are gone since 1.3, without sampled
    /// ones since 1.4, with libc's chunks since 1.5, and with mappings that are blocks
    /// since 1.6, and what became of pages since 1.7.
    pub(crate) const HEAP_AUDIT: u8 = 9;
    /// [`super::super::Window`], JSON; since 1.2.
    pub(crate) const WINDOW: u8 = 10;
    /// [`super::super::Tallies`], JSON; since 1.2.
    pub(crate) const TALLIES: u8 = 11;
    /// [`crate::ingest::Survey`], encoded; since 1.4.
    pub(crate) const SURVEY: u8 = 12;
}

/// Bytes in front of the records of an event block.
pub(super) const EVENTS_HEAD: usize = 8;

/// How the bytes of a block are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// As they are.
    Plain,
    /// One zstd frame.
    Zstd,
}

/// What stands in front of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) codec: Codec,
    pub(super) raw_len: u32,
    pub(super) stored_len: u32,
    pub(super) crc: u32,
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Magic,
    Checksum,
    Version(u16),
}

/// The header that this version writes.
pub(super) fn header(abi_version: u32) -> [u8; HEAD_BYTES] {
    let [m0, m1] = MAJOR.to_le_bytes();
    let [n0, n1] = MINOR.to_le_bytes();
    let [a0, a1, a2, a3] = abi_version.to_le_bytes();
    let [g0, g1, g2, g3, g4, g5, g6, g7] = MAGIC;
    seal([
        g0, g1, g2, g3, g4, g5, g6, g7, m0, m1, n0, n1, a0, a1, a2, a3, 0, 0, 0, 0,
    ])
}

/// The ABI version in a header.
pub(super) fn parse_header(bytes: &[u8; HEAD_BYTES]) -> Result<u32, HeaderError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(HeaderError::Magic);
    }
    let Some([.., m0, m1, _, _, a0, a1, a2, a3, _, _, _, _]) = unseal(bytes) else {
        return Err(HeaderError::Checksum);
    };
    match u16::from_le_bytes([*m0, *m1]) {
        MAJOR => Ok(u32::from_le_bytes([*a0, *a1, *a2, *a3])),
        newer => Err(HeaderError::Version(newer)),
    }
}

impl Frame {
    pub(super) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let codec = match self.codec {
            Codec::Plain => 0,
            Codec::Zstd => 1,
        };
        let [r0, r1, r2, r3] = self.raw_len.to_le_bytes();
        let [s0, s1, s2, s3] = self.stored_len.to_le_bytes();
        let [c0, c1, c2, c3] = self.crc.to_le_bytes();
        seal([
            self.kind, codec, 0, 0, r0, r1, r2, r3, s0, s1, s2, s3, 0, 0, 0, 0, c0, c1, c2, c3,
        ])
    }

    /// `Err` says what is wrong with it.
    pub(super) fn parse(bytes: &[u8; HEAD_BYTES]) -> Result<Self, &'static str> {
        let Some(
            [
                kind,
                codec,
                _,
                _,
                r0,
                r1,
                r2,
                r3,
                s0,
                s1,
                s2,
                s3,
                _,
                _,
                _,
                _,
                c0,
                c1,
                c2,
                c3,
            ],
        ) = unseal(bytes)
        else {
            return Err("the checksum of a block's frame does not match");
        };
        let frame = Self {
            kind: *kind,
            codec: match codec {
                0 => Codec::Plain,
                1 => Codec::Zstd,
                _ => return Err("a block is stored in an unknown way"),
            },
            raw_len: u32::from_le_bytes([*r0, *r1, *r2, *r3]),
            stored_len: u32::from_le_bytes([*s0, *s1, *s2, *s3]),
            crc: u32::from_le_bytes([*c0, *c1, *c2, *c3]),
        };
        if frame.raw_len as usize > MAX_RAW || frame.stored_len as usize > MAX_STORED {
            return Err("a block is longer than blocks can be");
        }
        Ok(frame)
    }
}

/// Appends the checksum.
fn seal(bytes: [u8; HEAD_BYTES - 4]) -> [u8; HEAD_BYTES] {
    let mut sealed = [0; HEAD_BYTES];
    if let Some((front, back)) = sealed.split_last_chunk_mut::<4>() {
        front.copy_from_slice(&bytes);
        *back = crc32fast::hash(&bytes).to_le_bytes();
    }
    sealed
}

/// The bytes in front of the checksum, if it matches.
fn unseal(sealed: &[u8; HEAD_BYTES]) -> Option<&[u8; HEAD_BYTES - 4]> {
    let bytes = sealed.first_chunk()?;
    let crc = sealed.last_chunk::<4>()?;
    (crc32fast::hash(bytes) == u32::from_le_bytes(*crc)).then_some(bytes)
}
