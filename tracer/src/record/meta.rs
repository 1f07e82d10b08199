//! What a capture says about the host and the settings it was made with.

use std::{collections::BTreeMap, time::SystemTime};

use rustix::{
    system::uname,
    time::{ClockId, clock_gettime},
};

use super::{Files, Settings, Target, attach::now};
use crate::{bpf::LinkKind, capture::Meta, units::BootNs};

/// Nanoseconds since the Unix epoch.
pub(super) fn unix_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Now, on the clock of processes' start times.
pub(super) fn boot_ns() -> BootNs {
    let now = clock_gettime(ClockId::Boottime);
    BootNs(u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// The first block of a capture.
pub(super) fn meta(settings: &Settings, links: LinkKind) -> Meta {
    let system = uname();
    let (target, command) = match &settings.target {
        Target::WholeHost => ("the whole host".to_owned(), Vec::new()),
        Target::Processes(pids) => {
            let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
            (format!("process {}", pids.join(", ")), Vec::new())
        }
        Target::Selected(selection) => (selection.to_string(), Vec::new()),
        Target::Command(command) => {
            let command: Vec<String> = command
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            (command.join(" "), command)
        }
    };
    let mut options = BTreeMap::from([
        ("ring-bytes".to_owned(), settings.ring_bytes.to_string()),
        ("links".to_owned(), links.to_string()),
        (
            "audit-interval".to_owned(),
            format!("{:?}", settings.audit_interval),
        ),
    ]);
    let bound = match settings.files {
        Files::Rotated { size, keep } => {
            options.insert("rotate".to_owned(), keep.to_string());
            Some(size)
        }
        Files::Aggregated { every } => {
            options.insert("save-interval".to_owned(), format!("{every:?}"));
            settings.max_size
        }
        Files::One => settings.max_size,
    };
    if let Some(bound) = bound {
        options.insert("max-size".to_owned(), bound.to_string());
    }
    Meta {
        pyrobe_version: env!("CARGO_PKG_VERSION").to_owned(),
        host: system.nodename().to_string_lossy().into_owned(),
        kernel: system.release().to_string_lossy().into_owned(),
        machine: system.machine().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism().map_or(0, |count| u32::try_from(count.get()).unwrap_or(0)),
        start_unix_ns: unix_ns(),
        start_monotonic: now(),
        start_boot: boot_ns(),
        mode: settings.mode.name().to_owned(),
        target,
        command,
        hit_cost_ns: None,
        settings: options,
        file: None,
        aggregated: false,
    }
}
