//! The records of a capture, one by one: what no report shows. The only place where the tests use pyrobe's own code.

use std::path::Path;

use pyrobe::{
    capture::{Block, Reader},
    ingest::{Decoder, event::Event},
};

/// A stack as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentStack {
    pub(crate) pid: u32,
    pub(crate) id: u64,
    /// Code object and instruction of each frame, leaf first.
    pub(crate) frames: Vec<(u64, i32)>,
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
