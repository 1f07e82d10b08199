//! Captures written and read back, cut at any byte, damaged at any byte, refused, full.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::{
    format::{Codec, Frame, HEAD_BYTES},
    *,
};
use crate::units::{BootNs, ByteCount, ImageId, MonotonicNs, Pid};

/// A sink that others can look into.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

fn meta() -> Meta {
    Meta {
        host: "büro".to_owned(),
        kernel: "6.18.0".to_owned(),
        mode: "allocs".to_owned(),
        hit_cost_ns: Some(612.5),
        start_monotonic: MonotonicNs(5),
        ..Meta::default()
    }
}

fn counters() -> ProcessCounters {
    ProcessCounters {
        pid: Pid(4),
        start: BootNs(7),
        allocs: 10,
        losses: vec![1, 2],
        ..ProcessCounters::default()
    }
}

/// A capture with every kind of block, and the blocks that must come out of it.
fn sample(ring_events: &[(u32, Vec<u8>)]) -> (Vec<u8>, Vec<Block>) {
    let sink = Shared::default();
    let mut writer = Writer::stream(Box::new(sink.clone()), &meta()).unwrap();
    let mut blocks = vec![Block::Meta(meta())];
    let image = ImageRecord {
        id: ImageId(3),
        path: "/usr/bin/python3.11".to_owned(),
        placement: vec!["on the entry".to_owned()],
        ..ImageRecord::default()
    };
    writer.image(&image).unwrap();
    blocks.push(Block::Image(image));
    let process = ProcessRecord {
        pid: Pid(4),
        start: BootNs(7),
        command_line: vec!["python3".to_owned(), "a\nb".to_owned()],
        ..ProcessRecord::default()
    };
    writer.process(&process).unwrap();
    blocks.push(Block::Process(process));
    for (ring, records) in ring_events {
        writer.events(*ring, records).unwrap();
        writer.flush().unwrap();
        if !records.is_empty() {
            blocks.push(Block::Events {
                ring: *ring,
                records: records.clone().into(),
            });
        }
    }
    let audit = Audit {
        pid: Pid(4),
        start: BootNs(7),
        began: MonotonicNs(100),
        ended: MonotonicNs(101),
        since_start: true,
        complete: true,
        pools: 2,
        used: vec![0, 7],
    };
    writer.audit(&audit).unwrap();
    blocks.push(Block::Audit(audit));
    let gap = Gap {
        from: MonotonicNs(1),
        to: MonotonicNs(2),
        reason: "attach".to_owned(),
        ..Gap::default()
    };
    writer.gap(&gap).unwrap();
    blocks.push(Block::Gap(gap));
    let end = End {
        reason: EndReason::Duration,
        exit_code: Some(1),
        ..End::default()
    };
    let written = writer.finish(&[counters()], end.clone()).unwrap();
    blocks.push(Block::Counters(vec![counters()]));
    blocks.push(Block::End(end));
    let bytes = sink.bytes();
    assert_eq!(written, ByteCount(bytes.len() as u64));
    (bytes, blocks)
}

fn read(bytes: &[u8]) -> (Vec<Block>, Ended) {
    let mut reader = Reader::new(bytes).unwrap();
    let blocks = reader.by_ref().collect();
    (blocks, reader.ended().unwrap().clone())
}

/// Where each block of a sound capture ends.
fn ends(bytes: &[u8]) -> Vec<usize> {
    let mut at = HEAD_BYTES;
    let mut ends = Vec::new();
    while let Some(head) = bytes[at..].first_chunk() {
        at += HEAD_BYTES + Frame::parse(head).unwrap().stored_len as usize;
        ends.push(at);
    }
    ends
}

fn ring_events() -> impl Strategy<Value = Vec<(u32, Vec<u8>)>> {
    let records = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        (any::<u8>(), 0usize..3000).prop_map(|(byte, len)| vec![byte; len]),
    ];
    prop::collection::vec((0u32..4, records), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_read(events in ring_events()) {
        let (bytes, blocks) = sample(&events);
        prop_assert_eq!(read(&bytes), (blocks, Ended::Complete));
    }

    #[test]
    fn any_bytes_after_a_header_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut capture = format::header(tracer_ebpf::ABI_VERSION).to_vec();
        capture.extend_from_slice(&bytes);
        let (blocks, ended) = read(&capture);
        prop_assert_eq!(blocks, []);
        prop_assert_ne!(ended, Ended::Complete);
    }

    #[test]
    fn a_forged_block_with_good_checksums_never_panics(
        kind in any::<u8>(),
        zstd in any::<bool>(),
        raw_len in prop_oneof![any::<u32>(), 0u32..5000],
        stored in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let frame = Frame {
            kind,
            codec: if zstd { Codec::Zstd } else { Codec::Plain },
            raw_len,
            stored_len: u32::try_from(stored.len()).unwrap(),
            crc: crc32fast::hash(&stored),
        };
        let mut capture = format::header(tracer_ebpf::ABI_VERSION).to_vec();
        capture.extend_from_slice(&frame.to_bytes());
        capture.extend_from_slice(&stored);
        let (_, ended) = read(&capture);
        prop_assert_ne!(ended, Ended::Complete);
    }
}

#[test]
fn a_capture_cut_at_any_byte_gives_the_whole_blocks_before_the_cut() {
    let (bytes, blocks) = sample(&[(0, vec![7; 900]), (2, (0..=255).collect())]);
    let ends = ends(&bytes);
    for cut in 0..bytes.len() {
        let part = &bytes[..cut];
        if cut < HEAD_BYTES {
            assert!(
                matches!(Reader::new(part), Err(OpenError::HeaderCut)),
                "cut at {cut}"
            );
            continue;
        }
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let (found, ended) = read(part);
        assert_eq!(found, blocks[..whole], "cut at {cut}");
        let last = whole.checked_sub(1).map_or(HEAD_BYTES, |index| ends[index]);
        assert!(
            matches!(ended, Ended::Cut { at, .. } if at == last as u64),
            "cut at {cut}: {ended:?}"
        );
    }
}

#[test]
fn any_damaged_byte_is_noticed() {
    let (bytes, blocks) = sample(&[(1, vec![9; 500])]);
    let ends = ends(&bytes);
    for at in 0..bytes.len() {
        for flip in [1u8, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let Ok(mut reader) = Reader::new(damaged.as_slice()) else {
                assert!(at < HEAD_BYTES, "byte {at}");
                continue;
            };
            let whole = ends.iter().filter(|end| **end <= at).count();
            assert_eq!(reader.by_ref().collect::<Vec<_>>(), blocks[..whole], "byte {at}");
            assert!(
                matches!(reader.ended(), Some(Ended::Corrupt { .. })),
                "byte {at}: {:?}",
                reader.ended()
            );
        }
    }
}

#[test]
fn more_after_the_end_is_corrupt() {
    let (mut bytes, _) = sample(&[]);
    bytes.push(0);
    assert!(matches!(read(&bytes).1, Ended::Corrupt { .. }));
}

#[test]
fn other_files_and_versions_are_refused_with_a_reason() {
    let open = |bytes: &[u8]| Reader::new(bytes).err().unwrap();
    assert!(matches!(
        open(b"not a capture, but a longer text"),
        OpenError::NotACapture
    ));
    assert!(matches!(open(b"short"), OpenError::NotACapture));
    assert!(matches!(open(b""), OpenError::HeaderCut));
    let error = open(&format::header(tracer_ebpf::ABI_VERSION + 1));
    assert!(matches!(error, OpenError::Abi { .. }) && error.hint().is_some());
    let mut newer = format::header(tracer_ebpf::ABI_VERSION);
    newer[8] = 2;
    let crc = crc32fast::hash(&newer[..20]).to_le_bytes();
    newer[20..].copy_from_slice(&crc);
    let error = open(&newer);
    assert!(matches!(error, OpenError::Format { found: 2, .. }) && error.hint().is_some());
}

#[test]
fn blocks_of_unknown_kinds_are_skipped_and_counted() {
    let (bytes, blocks) = sample(&[]);
    let first = ends(&bytes)[0];
    let frame = Frame {
        kind: 99,
        codec: Codec::Plain,
        raw_len: 3,
        stored_len: 3,
        crc: crc32fast::hash(b"new"),
    };
    let mut capture = bytes[..first].to_vec();
    capture.extend_from_slice(&frame.to_bytes());
    capture.extend_from_slice(b"new");
    capture.extend_from_slice(&bytes[first..]);
    let mut reader = Reader::new(capture.as_slice()).unwrap();
    assert_eq!(reader.by_ref().collect::<Vec<_>>(), blocks);
    assert_eq!((reader.skipped(), reader.ended()), (1, Some(&Ended::Complete)));
}

#[test]
fn unknown_fields_and_reasons_of_newer_versions_are_read() {
    let end: End = serde_json::from_str(r#"{"reason": "bored", "mood": [1, {}]}"#).unwrap();
    assert_eq!(end.reason, EndReason::Other);
    assert_eq!(counters().counters().losses[..3], [1, 2, 0]);
}

#[test]
fn an_existing_file_is_replaced_only_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pyrobe");
    fs::write(&path, "precious").unwrap();
    let error = Writer::create(&path, Overwrite::Refuse, &meta()).err().unwrap();
    assert!(matches!(error, WriteError::Exists { .. }));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let writer = Writer::create(&path, Overwrite::Force, &meta()).unwrap();
    writer.finish(&[], End::default()).unwrap();
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!(reader.by_ref().count(), 2);
    assert_eq!(reader.ended(), Some(&Ended::Complete));
}

#[test]
fn a_place_that_does_not_exist_is_an_error() {
    let error = Writer::create(Path::new("/nowhere/at/all"), Overwrite::Refuse, &meta())
        .err()
        .unwrap();
    assert!(matches!(error, WriteError::Create { .. }));
}

#[test]
fn a_full_disk_is_an_error() {
    let error = Writer::create(Path::new("/dev/full"), Overwrite::Force, &meta())
        .err()
        .unwrap();
    let WriteError::Write { source, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn many_events_become_several_blocks_in_order() {
    let sink = Shared::default();
    let mut writer = Writer::stream(Box::new(sink.clone()), &meta()).unwrap();
    let mut expected = [Vec::new(), Vec::new()];
    for index in 0..5000u32 {
        let ring = index % 2;
        let piece = [index.to_le_bytes(); 256].concat();
        writer.events(ring, &piece).unwrap();
        expected[ring as usize].extend(piece);
    }
    writer.finish(&[], End::default()).unwrap();
    let mut found = [Vec::new(), Vec::new()];
    let mut blocks = 0;
    for block in Reader::new(sink.bytes().as_slice()).unwrap() {
        if let Block::Events { ring, records } = block {
            found[ring as usize].extend_from_slice(&records);
            blocks += 1;
        }
    }
    assert_eq!(found, expected);
    assert!((4..20).contains(&blocks), "{blocks} blocks");
}

#[test]
fn what_is_flushed_is_in_the_file_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pyrobe");
    let mut writer = Writer::create(&path, Overwrite::Refuse, &meta()).unwrap();
    writer.events(3, &[1; 64]).unwrap();
    assert_eq!(Reader::open(&path).unwrap().count(), 1);
    writer.flush().unwrap();
    let mut reader = Reader::open(&path).unwrap();
    assert_eq!(reader.by_ref().count(), 2);
    assert!(matches!(reader.ended(), Some(Ended::Cut { .. })));
}

#[test]
fn the_limit_holds_for_events_and_not_for_the_end() {
    let sink = Shared::default();
    let mut writer = Writer::stream(Box::new(sink.clone()), &meta()).unwrap();
    writer.set_limit(Some(ByteCount(70_000)));
    let noise: Vec<u8> = (0..20_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    writer.events(0, &noise).unwrap();
    assert!(matches!(writer.flush(), Err(WriteError::Full { .. })));
    let written = writer.finish(&[counters()], End::default()).unwrap();
    assert!(written.get() < 70_000);
    let (blocks, ended) = read(&sink.bytes());
    assert_eq!(ended, Ended::Complete);
    assert_eq!(
        blocks.last(),
        Some(&Block::End(End {
            unwritten: ByteCount(noise.len() as u64),
            ..End::default()
        }))
    );
}

#[test]
fn a_small_file_system_that_fills_up_keeps_its_whole_blocks() {
    // A file size limit gives the same short write as a full disk, without a file system of its own; it is
    // per process, so a child runs this test's other half.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pyrobe");
    if std::env::var_os("PYROBE_TEST_SHORT").is_none() {
        let status = std::process::Command::new("sh")
            .arg("-c")
            .arg("ulimit -f 100; trap '' XFSZ; exec \"$0\" --exact capture::tests::a_small_file_system_that_fills_up_keeps_its_whole_blocks")
            .arg(std::env::current_exe().unwrap())
            .env("PYROBE_TEST_SHORT", "1")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let mut writer = Writer::create(&path, Overwrite::Refuse, &meta()).unwrap();
    let mut seed = 1u32;
    let mut failed = false;
    for _ in 0..100 {
        let noise: Vec<u8> = (0..20_000)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                seed.to_le_bytes()[3]
            })
            .collect();
        writer.events(0, &noise).unwrap();
        if let Err(error) = writer.flush() {
            assert!(matches!(error, WriteError::Write { .. }), "{error}");
            failed = true;
            break;
        }
    }
    assert!(failed);
    let whole = writer.written().get();
    assert_eq!(fs::metadata(&path).unwrap().len(), whole);
    let end = writer.finish(&[], End::default());
    let mut reader = Reader::open(&path).unwrap();
    assert!(reader.by_ref().count() > 2);
    // The end is small enough to fit where the last block of events did not.
    assert!(end.is_ok() && reader.ended() == Some(&Ended::Complete), "{end:?}");
}
