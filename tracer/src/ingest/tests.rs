//! Round trips of every kind of event, and bytes that nobody should send.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use tracer_ebpf::{limits, reason::REASONS, record, site::group::GROUPS};

use super::{decode::RecordError, encode::encode, event::*, *};
use crate::units::{BootNs, ByteCount, ImageId, MonotonicNs, Pid, ProcAddr, StackId, Tid};

/// Owned contents of any event; `check` lends them.
#[derive(Clone, Debug)]
struct Material {
    variant: u8,
    numbers: [u64; 8],
    small: u8,
    first: Vec<u8>,
    second: Vec<u8>,
    losses: Vec<u64>,
}

fn material() -> impl Strategy<Value = Material> {
    (
        0u8..9,
        any::<[u64; 8]>(),
        any::<u8>(),
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(any::<u8>(), 0..limits::MAX_QUALNAME),
        prop::collection::vec(any::<u64>(), REASONS),
    )
        .prop_map(|(variant, numbers, small, first, second, losses)| Material {
            variant,
            numbers,
            small,
            first,
            second,
            losses,
        })
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap()
}

fn text(bytes: &[u8], small: u8) -> Text<'_> {
    let (kind, width) = match small % 5 {
        0 => (TextKind::Ascii, 1),
        1 => (TextKind::Latin1, 1),
        2 => (TextKind::Ucs2, 2),
        3 => (TextKind::Ucs4, 4),
        _ => (TextKind::Unreadable, usize::MAX),
    };
    Text {
        bytes: bytes.get(..bytes.len() / width * width).unwrap_or_default(),
        kind,
        cut: small >= 128,
    }
}

impl Material {
    #[expect(clippy::many_single_char_names, reason = "numbers without a meaning")]
    #[expect(clippy::too_many_lines, reason = "a case for each kind of event")]
    fn event(&self) -> Event<'_> {
        let [a, b, c, d, e, f, g, h] = self.numbers;
        let pid = Pid(low(a));
        let tid = Tid(low(b));
        let time = MonotonicNs(c);
        match self.variant {
            0 => Event::Process(Process {
                pid,
                time,
                start: BootNs(b),
                parent: Pid(low(d)),
                image: ImageId(low(e)),
                bias: f,
                uid: low(g),
                cgroup: h,
                comm: self
                    .second
                    .get(..self.second.len().min(16))
                    .unwrap()
                    .split(|byte| *byte == 0)
                    .next()
                    .unwrap(),
                command_line: &self.first,
            }),
            1 => Event::Gone(Gone {
                pid,
                reason: [GoneReason::Exec, GoneReason::Exit][usize::from(self.small % 2)],
                time,
                counters: Box::new(Counters {
                    allocs: d,
                    frees: e,
                    reallocs: f,
                    faults: g,
                    hits_by_group: [g; GROUPS],
                    run_ns_by_group: [a; GROUPS],
                    losses: self.losses.clone().try_into().unwrap(),
                }),
            }),
            2 => Event::Code(Code {
                pid,
                code: ProcAddr(b),
                first_line: low(c).cast_signed(),
                line_table_len: (!self.small.is_multiple_of(3)).then_some(low(d) >> 1),
                line_table: ProcAddr(e),
                version_hex: low(f),
                filename: text(&self.first, self.small),
                qualname: text(&self.second, self.small / 2),
            }),
            3 => Event::LineTable(LineTable {
                pid,
                code: ProcAddr(b),
                offset: low(d),
                data: &self.first,
            }),
            4 => Event::Stack(Stack {
                pid,
                id: StackId(c),
                end: [StackEnd::Complete, StackEnd::Truncated, StackEnd::Unreadable]
                    [usize::from(self.small % 3)],
                tid,
                raw_frames: self.first.get(..self.first.len() / 16 * 16).unwrap(),
            }),
            5 => Event::Alloc(Alloc {
                pid,
                tid,
                time,
                kind: [BlockKind::Pool, BlockKind::Raw, BlockKind::Mimalloc][usize::from(self.small % 3)],
                site: [AllocSite::Refill, AllocSite::Copy, AllocSite::Other][usize::from(self.small / 3 % 3)],
                addr: ProcAddr(d),
                size: ByteCount(e),
                stack: StackId(f),
            }),
            6 => Event::Free(Free {
                pid,
                tid,
                time,
                kind: [
                    BlockKind::Pool,
                    BlockKind::Raw,
                    BlockKind::Any,
                    BlockKind::Mimalloc,
                ][usize::from(self.small % 4)],
                addr: ProcAddr(d),
            }),
            7 => Event::Fault(Fault {
                pid,
                tid,
                time,
                kind: [FaultKind::Touch, FaultKind::Mapping, FaultKind::Room][usize::from(self.small % 3)],
                addr: ProcAddr(d),
                weight: low(e).max(1),
                stack: StackId(f),
            }),
            _ => Event::Realloc(Realloc {
                pid,
                tid,
                time,
                kind: [BlockKind::Raw, BlockKind::Any, BlockKind::Mimalloc][usize::from(self.small % 3)],
                old: (d != 0 && self.small >= 64).then_some(ProcAddr(d)),
                addr: ProcAddr(e),
                requested: ByteCount(f),
                raw_size: ByteCount(g),
                stack: StackId(h),
            }),
        }
    }
}

fn encoded(events: &[Event<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in events {
        encode(event, &mut bytes);
    }
    bytes
}

fn a_free() -> Event<'static> {
    Event::Free(Free {
        pid: Pid(7),
        tid: Tid(8),
        time: MonotonicNs(9),
        kind: BlockKind::Any,
        addr: ProcAddr(10),
    })
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_again(all in prop::collection::vec(material(), 0..20)) {
        let events: Vec<_> = all.iter().map(Material::event).collect();
        let bytes = encoded(&events);
        let mut decoder = Decoder::new(&bytes);
        let decoded: Vec<_> = decoder.by_ref().collect();
        prop_assert_eq!(&decoded, &events);
        prop_assert_eq!(decoder.tally(), Tally { events: events.len() as u64, ..Tally::default() });
    }

    #[test]
    fn any_bytes_are_decoded_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let mut decoder = Decoder::new(&bytes);
        while decoder.next().is_some() {}
        prop_assert!(bytes.is_empty() || decoder.tally() != Tally::default());
    }

    #[test]
    fn changed_records_never_panic(
        all in prop::collection::vec(material(), 1..8),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16),
    ) {
        let events: Vec<_> = all.iter().map(Material::event).collect();
        let mut bytes = encoded(&events);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            *bytes.get_mut(at).unwrap() = value;
        }
        for event in Decoder::new(&bytes) {
            if let Event::Stack(stack) = event {
                prop_assert!(stack.frames().len() <= usize::from(u16::MAX) / 16);
            }
        }
    }

    #[test]
    fn a_cut_block_gives_the_records_before_the_cut(
        all in prop::collection::vec(material(), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let events: Vec<_> = all.iter().map(Material::event).collect();
        let bytes = encoded(&events);
        let bytes = bytes.get(..cut.index(bytes.len())).unwrap();
        let mut decoder = Decoder::new(bytes);
        let decoded: Vec<_> = decoder.by_ref().collect();
        prop_assert_eq!(decoded.as_slice(), events.get(..decoded.len()).unwrap());
        let whole = encoded(&decoded).len();
        prop_assert_eq!(decoder.tally().lost_bytes, (bytes.len() - whole) as u64);
    }
}

#[test]
fn an_impossible_length_costs_the_rest_of_the_block() {
    for len in [0u16, 4, 33, 40_000] {
        let mut bytes = encoded(&[a_free(), a_free(), a_free()]);
        bytes[34..36].copy_from_slice(&len.to_le_bytes());
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(decoder.by_ref().collect::<Vec<_>>(), [a_free()], "length {len}");
        assert_eq!(
            decoder.tally(),
            Tally {
                events: 1,
                lost_bytes: 64,
                ..Tally::default()
            }
        );
    }
}

#[test]
fn an_unknown_kind_and_a_short_record_cost_only_themselves() {
    let mut bytes = encoded(&[a_free(), a_free(), a_free()]);
    bytes[0] = 200;
    bytes[32] = record::kind::ALLOC;
    let mut decoder = Decoder::new(&bytes);
    assert_eq!(decoder.by_ref().collect::<Vec<_>>(), [a_free()]);
    assert_eq!(
        decoder.tally(),
        Tally {
            events: 1,
            unknown: 1,
            malformed: 1,
            lost_bytes: 0
        }
    );
}

#[test]
fn a_stack_deeper_than_its_record_is_malformed() {
    let mut bytes = Vec::new();
    encode(
        &Event::Stack(Stack {
            pid: Pid(1),
            id: StackId(999),
            end: StackEnd::Complete,
            tid: Tid(1),
            raw_frames: &[1; 64],
        }),
        &mut bytes,
    );
    let at = core::mem::offset_of!(record::StackHead, depth);
    assert_eq!(bytes[at], 4);
    bytes[at] = 5;
    assert_eq!(decode::decode(&bytes), Err(RecordError::Malformed));
}

#[test]
fn a_text_longer_than_its_place_is_cut() {
    let mut bytes = Vec::new();
    let long = [b'x'; limits::MAX_FILE_NAME];
    encode(
        &Event::Code(Code {
            pid: Pid(1),
            code: ProcAddr(2),
            first_line: 3,
            line_table_len: None,
            line_table: ProcAddr(4),
            version_hex: 5,
            filename: Text {
                bytes: &long,
                kind: TextKind::Ascii,
                cut: false,
            },
            qualname: Text {
                bytes: b"f",
                kind: TextKind::Ascii,
                cut: false,
            },
        }),
        &mut bytes,
    );
    let at = core::mem::offset_of!(record::Code, filename_text.len);
    bytes[at..at + 2].copy_from_slice(&u16::MAX.to_le_bytes());
    let Ok(Event::Code(code)) = decode::decode(&bytes) else {
        panic!("not a code object");
    };
    assert_eq!(code.filename.bytes, long);
    assert!(code.filename.cut);
    assert_eq!(code.line_table_len, None);
}
