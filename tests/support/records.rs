//! The records of a capture, one by one: what no report shows. The only place where the tests use pyrobe's own code.

use std::path::Path;

use pyrobe::{
    capture::{Block, Reader},
    ingest::{
        Decoder,
        event::{AllocSite, Event},
    },
};
use tracer_ebpf::limits::MOST_TICK_NS;

/// A stack as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentStack {
    pub(crate) pid: u32,
    pub(crate) id: u64,
    /// Code object and instruction of each frame, leaf first.
    pub(crate) frames: Vec<(u64, i32)>,
}

/// How many small blocks were seen in sampling windows, and how many outside of them, which should not be seen.
#[track_caller]
pub(crate) fn sampled_blocks(capture: &Path) -> (usize, usize) {
    let (mut windows, mut times) = (Vec::new(), Vec::new());
    for block in Reader::open(capture).expect("it is a capture") {
        match block {
            Block::Window(window) => windows.push(window.from.get() - MOST_TICK_NS..=window.to.get()),
            Block::Events { records, .. } => {
                let sampled = Decoder::new(&records).filter_map(|event| match event {
                    Event::Alloc(alloc) if alloc.site == AllocSite::Copy => Some(alloc.time.get()),
                    _ => None,
                });
                times.extend(sampled);
            }
            _ => {}
        }
    }
    let is_inside = |time: &u64| windows.iter().any(|window| window.contains(time));
    let inside = times.iter().filter(|time| is_inside(time)).count();
    (inside, times.len() - inside)
}

/// Every stack record of a capture, in order.
#[track_caller]
pub(crate) fn sent_stacks(capture: &Path) -> Vec<SentStack> {
    let mut sent = Vec::new();
    for block in Reader::open(capture).expect("it is a capture") {
        let Block::Events { records, .. } = block else {
            continue;
        };
        for event in Decoder::new(&records) {
            if let Event::Stack(stack) = event {
                sent.push(SentStack {
                    pid: stack.pid.get(),
                    id: stack.id.get(),
                    frames: stack
                        .frames()
                        .map(|frame| (frame.code.get(), frame.instr))
                        .collect(),
                });
            }
        }
    }
    sent
}
