//! Bounds what a profile keeps of processes that are gone: past it the oldest become one row.
//!
//! For a recorder that counts for days on a host where programs come and go; a report on a capture does not need it.
//! Invariant: sums over all processes are not changed.

use rustc_hash::FxHashMap;

use super::{apply::Profile, process::ProcessState};

impl Profile {
    /// Keeps processes that are gone in about `most` tallies.
    pub fn fold_gone(&mut self, most: usize) {
        let gone = |process: &ProcessState| !process.is_running();
        let mut cost: usize = self
            .processes
            .iter()
            .filter(|process| gone(process))
            .map(ProcessState::cost)
            .sum();
        if cost <= most {
            return;
        }
        let (folded, count) = self
            .folded
            .get_or_insert_with(|| (Box::new(ProcessState::folded(self.mode)), 0));
        let mut places = FxHashMap::default();
        let mut kept = Vec::with_capacity(self.processes.len());
        for (index, process) in std::mem::take(&mut self.processes).into_iter().enumerate() {
            if gone(&process) && cost > most / 2 {
                cost = cost.saturating_sub(process.cost());
                folded.absorb(&process);
                *count += 1;
            } else {
                places.insert(index, kept.len());
                kept.push(process);
            }
        }
        folded.info.name = format!("[{count} earlier processes]");
        self.processes = kept;
        self.forget_places(&places);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use tracer_ebpf::reason::Reason;

    use crate::profile::testing::{Story, counters};

    #[test]
    fn processes_that_are_gone_become_one_row_and_no_sum_changes() {
        let mut story = Story::default();
        for pid in 1..=30 {
            story.process(pid, "python3 job.py");
            story.alloc(pid, 64, 32, "main:1 work:2");
            story.alloc(pid, 128, 64, "main:1");
            story.free(pid, 128);
            story.free(pid, 256);
            story.exit(pid, &counters(2, 2, 0, &[(Reason::CallUnseen, 1)]));
        }
        story.process(77, "python3 app.py").alloc(77, 64, 32, "main:1");
        let whole = story.snapshot();
        let mut profile = story.profile();
        profile.fold_gone(1000);
        // What came before is folded only once, and goes on being so.
        for pid in 31..=60 {
            let mut more = Story::default();
            more.process(pid, "python3 job.py").alloc(pid, 64, 32, "main:1");
            more.exit(pid, &counters(1, 0, 0, &[]));
            for event in &more.events {
                profile.apply(event);
            }
            profile.fold_gone(1000);
        }
        let mut more = Story::default();
        more.alloc(77, 128, 32, "main:1");
        more.events.iter().for_each(|event| profile.apply(event));
        let folded = profile.snapshot();
        assert!(folded.processes.len() < 20, "{}", folded.processes.len());
        let first = folded.processes.first().unwrap();
        assert!(
            first.info.name.ends_with("earlier processes]"),
            "{}",
            first.info.name
        );
        let more = 30 + 1;
        assert_eq!(
            folded.totals.tally.allocated_count,
            whole.totals.tally.allocated_count + more
        );
        assert_eq!(
            folded.totals.tally.live_bytes,
            whole.totals.tally.live_bytes + 32 * more
        );
        assert_eq!(
            folded.totals.tally.peak_bytes,
            whole.totals.tally.peak_bytes + 32 * more
        );
        assert_eq!(
            folded.totals.tally.temporary_count,
            whole.totals.tally.temporary_count
        );
        assert_eq!(folded.totals.peak_bytes, whole.totals.peak_bytes);
        assert_eq!(folded.losses.by_reason, whole.losses.by_reason);
        assert_eq!(folded.losses.unmatched_frees, whole.losses.unmatched_frees);
        assert_eq!(folded.losses.delivered.sum(), whole.losses.delivered.sum() + more);
        assert!(
            folded
                .processes
                .iter()
                .any(|process| process.info.name == "app.py" && process.total.live_count == 2)
        );
    }
}
