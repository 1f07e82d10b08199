//! What processes held that had exited when the recording ended, beside those that ran on.
//!
//! Of a process that ends, what it held at last is shown: a report on a program that has run would be empty otherwise. Where others
//! run on, the sum is more than was ever there at one time. Invariant: it is said wherever such a sum is shown.

use super::format::{count, size};
use crate::profile::{End, Snapshot};

/// A sentence that says so; `None` if it is not so.
pub(super) fn note(snapshot: &Snapshot) -> Option<String> {
    let processes = &snapshot.processes;
    if !processes.iter().any(|process| process.info.end == End::Running) {
        return None;
    }
    let exited = processes
        .iter()
        .filter(|process| process.info.end != End::Running && process.total.live_bytes > 0);
    let (mut number, mut bytes) = (0_u64, 0_u64);
    for process in exited {
        number += 1;
        bytes = bytes.saturating_add(process.total.live_bytes);
    }
    (number > 0).then(|| {
        format!(
            "{} of what is shown as live is what {} process(es) held when they ended; `--running` leaves them out",
            size(bytes),
            count(number)
        )
    })
}
