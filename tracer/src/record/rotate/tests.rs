//! Files of a rotation, each read by itself: what was allocated, delivered, lost and produced adds up to the whole.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

mod gaps;

use std::collections::BTreeMap;

use proptest::prelude::*;
use tracer_ebpf::reason::{REASONS, Reason};

use super::*;
use crate::{
    capture::{Block, Ended, Reader},
    ingest::{
        encode::encode,
        event::{Counters, Event, GoneReason},
    },
    profile::{Operations, ProfileSettings, Snapshot, testing::Story},
    replay::Replay,
    report::format,
    units::Pid,
};

const PID: u32 = 7;
/// Enough for any test to decide by itself where a file ends.
const LARGE: ByteCount = ByteCount(1 << 30);

fn bytes(event: &Event<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(event, &mut out);
    out
}

fn rotation(name: &Path, limit: ByteCount, keep: usize) -> Rotation {
    let meta = Meta {
        start_monotonic: now(),
        ..Meta::default()
    };
    Rotation::create(name, Overwrite::Refuse, limit, keep, &meta).unwrap()
}

/// Every file there is, read by itself.
fn read(files: &[PathBuf]) -> Vec<Snapshot> {
    let read = |path: &PathBuf| {
        let mut reader = Reader::open(path).unwrap();
        let mut replay = Replay::new(ProfileSettings::default());
        for block in reader.by_ref() {
            replay.block(block);
        }
        assert_eq!(reader.ended(), Some(&Ended::Complete), "{}", path.display());
        replay.snapshot(reader.ended())
    };
    files.iter().map(read).collect()
}

/// Bytes and blocks allocated by each stack of each process, by names.
fn allocated(snapshots: &[Snapshot]) -> BTreeMap<(Pid, String), (u64, u64)> {
    let mut sums = BTreeMap::new();
    for snapshot in snapshots {
        for process in &snapshot.processes {
            for (stack, tally) in &process.stacks {
                let frames = snapshot.stacks.root_first(*stack);
                let names: Vec<_> = frames
                    .into_iter()
                    .map(|frame| format::frame(snapshot, frame))
                    .collect();
                let sum: &mut (u64, u64) = sums.entry((process.info.key.pid, names.join(";"))).or_default();
                sum.0 += tally.allocated_bytes;
                sum.1 += tally.allocated_count;
            }
        }
    }
    sums
}

fn delivered(snapshots: &[Snapshot]) -> Operations {
    snapshots.iter().fold(Operations::default(), |sum, snapshot| {
        sum.plus(snapshot.losses.delivered)
    })
}

/// What of one process the kernel side counted.
#[derive(Default)]
struct Kernel {
    counters: Counters,
}

impl Kernel {
    fn count(&mut self, event: &Event<'_>) {
        self.counters.hits_by_group[0] += 2;
        match event {
            Event::Alloc(_) => self.counters.allocs += 1,
            Event::Free(_) => self.counters.frees += 1,
            Event::Realloc(_) => self.counters.reallocs += 1,
            _ => {}
        }
    }

    fn lose(&mut self) {
        self.counters.allocs += 3;
        self.counters.frees += 2;
        self.counters.losses[Reason::RingFullAlloc as usize] += 3;
        self.counters.losses[Reason::RingFullFree as usize] += 2;
        self.counters.losses[Reason::CallUnseen as usize] += 1;
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(u64, usize),
    Realloc(u64, u64, usize),
    Free(u64),
    /// A code object dies, and another takes its address; all stacks are sent again.
    Reuse,
    Gone(GoneReason),
    Lose,
    Counters,
    Cut,
    Flush,
}

const STACKS: [&str; 6] = [
    "main:1",
    "main:1 work:2",
    "main:3 work:2 deep:9",
    "",
    "?",
    "lost:1 work:5",
];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u64..8, 0..STACKS.len()).prop_map(|(addr, stack)| Step::Alloc(addr * 64 + 64, stack)),
        2 => (0_u64..8, 0_u64..8, 0..STACKS.len()).prop_map(|(old, new, stack)| {
            Step::Realloc(old * 64, new * 64 + 64, stack)
        }),
        4 => (0_u64..8).prop_map(|addr| Step::Free(addr * 64 + 64)),
        1 => Just(Step::Reuse),
        1 => prop_oneof![Just(Step::Gone(GoneReason::Exit)), Just(Step::Gone(GoneReason::Exec))],
        1 => Just(Step::Lose),
        2 => Just(Step::Counters),
        3 => Just(Step::Cut),
        1 => Just(Step::Flush),
    ]
}

/// Plays the steps into a rotation and, as they are, into one profile.
fn play(steps: &[Step], name: &Path) -> (Vec<Snapshot>, Snapshot, Counters) {
    let mut rotation = rotation(name, LARGE, 1000);
    let mut whole = Replay::new(ProfileSettings::default());
    let (mut kernel, mut total) = (Kernel::default(), Counters::default());
    let mut story = Story::default();
    let mut reuses = 0;
    story.process(PID, "python3 app.py");
    let counters = |kernel: &Kernel| ProcessCounters::new(Pid(PID), BootNs(1000), &kernel.counters);
    for step in steps {
        match step {
            Step::Alloc(addr, stack) => {
                story.alloc(PID, *addr, 32, STACKS[*stack]);
            }
            Step::Realloc(old, addr, stack) => {
                story.realloc(PID, *old, *addr, 100, STACKS[*stack]);
            }
            Step::Free(addr) => {
                story.free(PID, *addr);
            }
            Step::Reuse => {
                reuses += 1;
                story.forget(PID);
                let name = format!("reborn{reuses}");
                story.code(PID, crate::profile::testing::number("work"), &name, "/srv/app.py");
            }
            Step::Gone(reason) => {
                add(&mut total, &kernel.counters);
                story.gone(PID, *reason, &kernel.counters);
                kernel = Kernel::default();
                story.process(PID, "python3 app.py");
            }
            Step::Lose => kernel.lose(),
            Step::Counters => rotation.counters(&[counters(&kernel)]).unwrap(),
            Step::Cut => {
                rotation.flush().unwrap();
                rotation.next_file().unwrap();
            }
            Step::Flush => rotation.flush().unwrap(),
        }
        for event in std::mem::take(&mut story.events) {
            kernel.count(&event);
            rotation.events(&bytes(&event)).unwrap();
            whole.events(&bytes(&event));
        }
    }
    add(&mut total, &kernel.counters);
    let files = rotation.files();
    rotation.finish(&[counters(&kernel)], End::default()).unwrap();
    whole.block(Block::Counters(vec![counters(&kernel)]));
    (read(&files), whole.snapshot(None), total)
}

fn add(sum: &mut Counters, counters: &Counters) {
    sum.allocs += counters.allocs;
    sum.frees += counters.frees;
    sum.reallocs += counters.reallocs;
    for (sum, loss) in sum.losses.iter_mut().zip(counters.losses) {
        *sum += loss;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_sums_over_the_files_are_those_of_one(steps in prop::collection::vec(step(), 0..120)) {
        let directory = tempfile::tempdir().unwrap();
        let (files, whole, total) = play(&steps, &directory.path().join("a"));
        let (mut files_sum, mut whole_sum) = (allocated(&files), allocated(std::slice::from_ref(&whole)));
        if steps.iter().any(|step| matches!(step, Step::Realloc(..))) {
            // What a block occupies that was reallocated follows from the old one, which may be in an earlier file.
            let sums = files_sum.values_mut().chain(whole_sum.values_mut());
            sums.for_each(|(bytes, _)| *bytes = 0);
        }
        prop_assert_eq!(files_sum, whole_sum);
        prop_assert_eq!(delivered(&files), whole.losses.delivered);
        let mut losses = [0; REASONS];
        let mut produced = Operations::default();
        for file in &files {
            prop_assert_eq!(file.losses.unknown_stacks, 0);
            for process in &file.processes {
                prop_assert!(process.info.parent.is_some(), "a file without the start of its process");
                let of = &process.losses;
                if let Some(made) = of.produced {
                    produced = produced.plus(made);
                    let lost = Operations {
                        allocs: of.by_reason[Reason::RingFullAlloc as usize],
                        frees: of.by_reason[Reason::RingFullFree as usize],
                        reallocs: of.by_reason[Reason::RingFullRealloc as usize],
                        faults: of.by_reason[Reason::RingFullFault as usize],
                    };
                    prop_assert_eq!(of.delivered.plus(lost), made);
                }
                for (sum, loss) in losses.iter_mut().zip(of.by_reason) {
                    *sum += loss;
                }
            }
        }
        prop_assert_eq!(losses, total.losses);
        prop_assert_eq!(produced, Operations { allocs: total.allocs, frees: total.frees, reallocs: total.reallocs, faults: 0 });
    }
}

/// Allocations that do not compress to nothing.
fn busy(count: u64, stack: &str) -> Vec<Vec<u8>> {
    let mut story = Story::default();
    story.process(PID, "python3 app.py");
    let mut seed = 1_u64;
    for _ in 0..count {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        story.alloc(PID, seed, seed >> 40, stack);
    }
    story.events.iter().map(bytes).collect()
}

#[test]
fn files_do_not_pass_their_size_and_the_oldest_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("a");
    let limit = ByteCount(256 << 10);
    let mut rotation = rotation(&name, limit, 3);
    let image = ImageRecord {
        path: "/usr/bin/python3".to_owned(),
        ..ImageRecord::default()
    };
    rotation.image(&image).unwrap();
    let events = busy(100_000, "main:1 work:2");
    for batch in events.chunks(1000) {
        rotation.events(&batch.concat()).unwrap();
    }
    let files = rotation.files();
    rotation.finish(&[], End::default()).unwrap();
    assert_eq!(files.len(), 3);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    for file in &files {
        let len = std::fs::metadata(file).unwrap().len();
        assert!(len <= limit.get(), "{len}");
        let blocks: Vec<Block> = Reader::open(file).unwrap().collect();
        assert!(blocks.contains(&Block::Image(image.clone())));
        let Some(Block::Meta(meta)) = blocks.first() else {
            panic!("no meta in {}", file.display());
        };
        assert!(
            file.to_str()
                .unwrap()
                .ends_with(&format!("{:04}", meta.file.unwrap()))
        );
    }
    for (index, snapshot) in read(&files).iter().enumerate() {
        let text = snapshot.notes.join("\n");
        assert!(text.contains("of a recording in several"), "{text}");
        assert_eq!(text.contains("goes on in the next"), index < 2, "{text}");
    }
}

#[test]
fn a_file_is_not_filled_by_what_is_no_event() {
    let directory = tempfile::tempdir().unwrap();
    let mut rotation = rotation(&directory.path().join("a"), ByteCount(128 << 10), 2);
    let counters: Vec<ProcessCounters> = (0..200_u32)
        .map(|pid| {
            let counters = Counters {
                hits_by_group: [u64::from(pid) * 977; 8],
                ..Counters::default()
            };
            ProcessCounters::new(Pid(pid + 1), BootNs(u64::from(pid)), &counters)
        })
        .collect();
    for _ in 0..400 {
        rotation.counters(&counters).unwrap();
    }
    let files = rotation.files();
    rotation.finish(&[], End::default()).unwrap();
    assert_eq!(files.len(), 2);
    for file in &files {
        assert!(std::fs::metadata(file).unwrap().len() < 128 << 10);
    }
}

#[test]
fn what_is_kept_is_bounded_and_what_was_given_up_is_counted() {
    let mut kept = Kept::new(100_000);
    let mut out = Vec::new();
    let mut story = Story::default();
    story.process(PID, "python3 app.py");
    for file in 1..10 {
        kept.begin(file);
        for index in 0..100 {
            story.alloc(PID, 64, 32, &format!("main:{file} work:{index}"));
        }
        for event in std::mem::take(&mut story.events) {
            let record = bytes(&event);
            kept.write(&event, &record, &mut out);
            kept.learn(&event, &record);
        }
    }
    assert_eq!(kept.missed(), 0);
    // The newest are still there: a new file gets them.
    kept.begin(10);
    story.alloc(PID, 64, 32, "main:9 work:99");
    let event = story.events.pop().unwrap();
    out.clear();
    kept.write(&event, &bytes(&event), &mut out);
    assert!(out.len() > 1000, "{}", out.len());
    // The oldest are not, and that is counted.
    story.alloc(PID, 64, 32, "main:1 work:0");
    let event = story.events.pop().unwrap();
    kept.write(&event, &bytes(&event), &mut out);
    assert_eq!(kept.missed(), 1);
}

#[test]
fn a_file_cut_at_any_byte_gives_what_stands_before_the_cut() {
    let directory = tempfile::tempdir().unwrap();
    let mut rotation = rotation(&directory.path().join("a"), LARGE, 9);
    let events = busy(200, "main:1 work:2");
    rotation.events(&events.concat()).unwrap();
    rotation.flush().unwrap();
    rotation.next_file().unwrap();
    let mut story = Story::default();
    story.alloc(PID, 64, 32, "main:1 work:2");
    // It was sent in the first file.
    rotation.events(&bytes(story.events.last().unwrap())).unwrap();
    let file = rotation.files().pop().unwrap();
    rotation.finish(&[], End::default()).unwrap();
    let whole = std::fs::read(&file).unwrap();
    let mut seen = 0;
    for cut in 24..whole.len() {
        let mut replay = Replay::new(ProfileSettings::default());
        let mut reader = Reader::new(&whole[..cut]).unwrap();
        for block in reader.by_ref() {
            replay.block(block);
        }
        let snapshot = replay.snapshot(reader.ended());
        assert!(snapshot.truncated.is_some(), "cut at {cut}");
        assert_eq!(snapshot.losses.unknown_stacks, 0, "cut at {cut}");
        seen = seen.max(snapshot.totals.tally.allocated_count);
    }
    assert_eq!(seen, 1);
}
