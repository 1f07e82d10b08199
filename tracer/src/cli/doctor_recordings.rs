//! The recordings that run on this host, for `pyrobe doctor`: hits, what they are estimated to cost, and what is not looked at
//! for the sake of that.
//!
//! Invariant: a cost is what the reports would say of it, so it is not known where a hit's cost is not.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tracer_ebpf::site::group::GROUPS;

use crate::{
    bpf::{self, BpfError, LiveCounters, Recorder},
    discover::{map_holders, process},
    ingest::event::Hits,
    plan::group_name,
    report::format::{count, duration, percent},
    units::{BootNs, Pid},
};

/// Most recordings that are told of: each has hundreds of probes, so nobody has more.
const MOST: usize = 64;

/// A recording.
#[derive(Debug, Serialize)]
pub(super) struct Recording {
    /// The recorder's.
    pid: Pid,
    mode: &'static str,
    /// Of the processes that run now.
    #[serde(flatten)]
    total: Cost,
    hits_by_group: BTreeMap<&'static str, u64>,
    /// The dearest first.
    processes: Vec<Process>,
    /// Of processes that are not recorded and run the same interpreters.
    others: Cost,
    /// What is not looked at now, over `--max-overhead`.
    off: Vec<&'static str>,
}

/// Hits, and what they took.
#[derive(Debug, Serialize)]
struct Cost {
    hits: u64,
    /// Nanoseconds; `null` if a hit's cost is not known.
    probe_ns: Option<f64>,
}

/// A process that is recorded.
#[derive(Debug, Serialize)]
struct Process {
    pid: Pid,
    #[serde(flatten)]
    cost: Cost,
    /// Of the time since the recording or the process began; `null` if it is not known.
    overhead_percent: Option<f64>,
}

/// All that run, but for this process; `hit_cost`: nanoseconds of a hit of an empty program, if that is known.
pub(super) fn running(hit_cost: Option<f64>) -> Result<Vec<Recording>, BpfError> {
    if !bpf::is_any_recorder()? {
        return Ok(Vec::new());
    }
    let now = now();
    let others = map_holders()
        .into_iter()
        .filter(|holder| holder.pid.get() != std::process::id());
    let recordings = others.filter_map(|holder| {
        let recorder = bpf::recorder(holder.own_pid, &holder.maps)?;
        let since = process(holder.pid).ok()?.start;
        Some(Recording::new(holder.pid, &recorder, since, now, hit_cost))
    });
    Ok(recordings.take(MOST).collect())
}

/// On the clock of start times.
fn now() -> BootNs {
    let now = clock_gettime(ClockId::Boottime);
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    BootNs(part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec))
}

impl Cost {
    fn of(hits: Hits, hit_cost: Option<f64>) -> Self {
        Self {
            hits: hits.count,
            probe_ns: hit_cost.map(|cost| hits.cost_ns(cost)),
        }
    }
}

fn sum(of: &[LiveCounters]) -> Hits {
    let each = of.iter().map(|process| process.counters.hits());
    each.fold(Hits::default(), Hits::plus)
}

impl Recording {
    /// `since` when the recorder runs.
    fn new(pid: Pid, recorder: &Recorder, since: BootNs, now: BootNs, hit_cost: Option<f64>) -> Self {
        let mut hits_by_group = BTreeMap::new();
        for (number, group) in (0..).zip(0..GROUPS) {
            let of_group = recorder
                .processes
                .iter()
                .map(|process| process.counters.hits_of(group));
            let hits = of_group.fold(Hits::default(), Hits::plus).count;
            if hits > 0 {
                let known: &mut u64 = hits_by_group.entry(group_name(number)).or_default();
                *known = known.saturating_add(hits);
            }
        }
        let each = recorder.processes.iter().map(|process| {
            let cost = Cost::of(process.counters.hits(), hit_cost);
            let seen = now.0.saturating_sub(process.start.max(since).0);
            let share = |ns: f64| (seen > 0).then(|| ns / seen as f64 * 100.0);
            Process {
                pid: process.pid,
                overhead_percent: cost.probe_ns.and_then(share),
                cost,
            }
        });
        let mut processes: Vec<Process> = each.collect();
        let dear = |process: &Process| process.overhead_percent.unwrap_or(0.0);
        processes.sort_by(|a, b| dear(b).total_cmp(&dear(a)).then(b.cost.hits.cmp(&a.cost.hits)));
        Self {
            pid,
            mode: recorder.mode.name(),
            total: Cost::of(sum(&recorder.processes), hit_cost),
            hits_by_group,
            processes,
            others: Cost::of(sum(&recorder.bystanders), hit_cost),
            off: recorder.off.iter().map(|&group| group_name(group)).collect(),
        }
    }

    fn text(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "  pid {}, {} mode: {} in {} process(es)",
            self.pid,
            self.mode,
            self.total.text(),
            self.processes.len()
        )?;
        let groups = self.hits_by_group.iter();
        let groups: Vec<String> = groups
            .map(|(name, hits)| format!("{name} {}", count(*hits)))
            .collect();
        if !groups.is_empty() {
            writeln!(out, "      {}", groups.join(", "))?;
        }
        if let Some((dearest, overhead)) = self
            .processes
            .first()
            .and_then(|first| Some((first, first.overhead_percent?)))
        {
            writeln!(
                out,
                "      most in {}: about {} of its time",
                dearest.pid,
                percent(overhead)
            )?;
        }
        if self.others.hits > 0 {
            writeln!(
                out,
                "      {} in processes that are not recorded",
                self.others.text()
            )?;
        }
        if !self.off.is_empty() {
            writeln!(out, "      off now, over --max-overhead: {}", self.off.join(", "))?;
        }
        Ok(())
    }
}

impl Cost {
    fn text(&self) -> String {
        let hits = count(self.hits);
        match self.probe_ns {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a positive estimate; `as` saturates"
            )]
            Some(ns) => format!("{hits} probe hits, about {}", duration(ns as u64)),
            None => format!("{hits} probe hits, at a cost that is not known"),
        }
    }
}

/// For people.
pub(super) fn text(recordings: &[Recording], unknown: Option<&str>, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nrecordings that run")?;
    match unknown {
        Some(why) => writeln!(out, "  not known: {why}"),
        None if recordings.is_empty() => writeln!(out, "  none"),
        None => recordings.iter().try_for_each(|recording| recording.text(out)),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::expect_used, reason = "a test fails by panicking")]

    use tracer_ebpf::site::group;

    use super::*;
    use crate::{ingest::event::Counters, mode::Mode};

    const SECOND: u64 = 1_000_000_000;

    /// A process that started then, with so many hits of large blocks and page faults, of a microsecond each.
    fn process(pid: u32, start: u64, large: u64, faults: u64) -> LiveCounters {
        let mut counters = Counters::default();
        for (group, hits) in [(group::LARGE, large), (group::FAULTS, faults)] {
            counters.hits_by_group[group as usize] = hits;
            counters.run_ns_by_group[group as usize] = hits.saturating_mul(1000);
        }
        LiveCounters {
            pid: Pid(pid),
            start: BootNs(start),
            counters,
        }
    }

    #[track_caller]
    fn check(recorder: &Recorder, hit_cost: Option<f64>, expected: &str) {
        let recording = Recording::new(
            Pid(7),
            recorder,
            BootNs(100 * SECOND),
            BootNs(110 * SECOND),
            hit_cost,
        );
        let mut out = Vec::new();
        text(&[recording], None, &mut out).expect("memory takes all");
        assert_eq!(
            String::from_utf8_lossy(&out),
            format!("\nrecordings that run\n{expected}")
        );
    }

    fn recorder() -> Recorder {
        Recorder {
            mode: Mode::Heap,
            // The second began a second ago.
            processes: vec![process(1, 0, 20_000, 5), process(2, 109 * SECOND, 10_000, 0)],
            bystanders: Vec::new(),
            off: Vec::new(),
        }
    }

    #[test]
    fn hits_and_their_cost_are_told_and_who_pays_most() {
        check(
            &recorder(),
            Some(800.0),
            "  pid 7, heap mode: 30,005 probe hits, about 90.0ms in 2 process(es)\n      \
             large blocks 30,000, page faults 5\n      \
             most in 2: about 3.0% of its time\n",
        );
    }

    #[test]
    fn what_is_off_and_what_others_pay_is_told() {
        let recorder = Recorder {
            bystanders: vec![process(3, 0, 12, 0)],
            off: vec![group::LARGE, group::POOLS],
            ..recorder()
        };
        check(
            &recorder,
            None,
            "  pid 7, heap mode: 30,005 probe hits, at a cost that is not known in 2 process(es)\n      \
             large blocks 30,000, page faults 5\n      \
             12 probe hits, at a cost that is not known in processes that are not recorded\n      \
             off now, over --max-overhead: large blocks, acquisitions of pools\n",
        );
    }

    #[test]
    fn numbers_of_a_foreign_map_are_numbers_only() {
        let all = |number| {
            let mut process = process(u32::MAX, number, number, number);
            process.counters.run_ns_by_group = [number; GROUPS];
            process
        };
        let recorder = Recorder {
            processes: vec![all(u64::MAX), all(0)],
            bystanders: vec![all(u64::MAX)],
            ..recorder()
        };
        let recording = Recording::new(Pid(7), &recorder, BootNs(u64::MAX), BootNs(5), Some(800.0));
        text(&[recording], None, &mut Vec::new()).expect("memory takes all");
    }

    #[test]
    fn nobody_records_or_it_is_not_known() {
        for (unknown, expected) in [(None, "none"), (Some("why"), "not known: why")] {
            let mut out = Vec::new();
            text(&[], unknown, &mut out).expect("memory takes all");
            let out = String::from_utf8_lossy(&out);
            assert!(out.ends_with(&format!("  {expected}\n")), "{out}");
        }
    }
}
