//! Recorders that run on this host, by their maps: they need not write anything for it.
//!
//! Apart from `tracer`, which has made the maps that it reads. Invariant: any program can have maps of these names. None is
//! read before the kernel has said that it is of the kind and the size that a recorder's is, and what it holds is taken
//! for numbers.

use std::{io, os::fd::AsFd as _};

use aya::maps::{Array, Map, MapData, MapError, MapInfo, MapType, loaded_maps};
use tracer_ebpf::{
    config::Config,
    limits::{MAX_BYSTANDERS, MAX_PROCESSES},
    process::ProcessState,
    site::group::{self, GROUPS},
};

use super::{
    BpfError,
    counters::{self, BYSTANDERS, LiveCounters, PROCESSES},
    tracer::{CONFIG, Plain},
};
use crate::mode::Mode;

/// A recorder, as its maps tell.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// What it records.
    pub mode: Mode,
    /// Of the processes that it records and that run now.
    pub processes: Vec<LiveCounters>,
    /// Of those that it does not record and that run what it probes.
    pub bystanders: Vec<LiveCounters>,
    /// Groups of sites (`tracer_ebpf::site::group`) that are off, or about to be put in place.
    pub off: Vec<u32>,
}

/// What kind of map one of this name has to be: type, bytes of a key and of a value, entries.
fn shape(name: &str) -> Option<(MapType, usize, usize, usize)> {
    match name {
        CONFIG => Some((MapType::Array, 4, size_of::<Config>(), 1)),
        PROCESSES => Some((MapType::Hash, 4, size_of::<ProcessState>(), MAX_PROCESSES)),
        BYSTANDERS => {
            let most = usize::try_from(MAX_BYSTANDERS).ok()?;
            Some((MapType::LruHash, 4, size_of::<[u64; GROUPS]>(), most))
        }
        _ => None,
    }
}

/// Which of a recorder's maps this one looks like.
fn name(info: &MapInfo) -> Option<&str> {
    let name = info.name_as_str()?;
    let sizes = [info.key_size(), info.value_size(), info.max_entries()].map(usize::try_from);
    let [Ok(key), Ok(value), Ok(entries)] = sizes else {
        return None;
    };
    (shape(name)? == (info.map_type().ok()?, key, value, entries)).then_some(name)
}

/// Whether any map of this host looks like a recorder's.
pub fn is_any_recorder() -> Result<bool, BpfError> {
    for info in loaded_maps() {
        match info {
            Ok(info) if name(&info) == Some(CONFIG) => return Ok(true),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(source) => return Err(BpfError::Map { name: CONFIG, source }),
        }
    }
    Ok(false)
}

/// Maps go between being listed and being looked at.
fn is_gone(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::NotFound)
}

/// The recorder that holds these maps and knows itself by this process id; `None` if no recorder does, or one that is at its
/// end.
pub fn recorder(own_pid: u32, maps: &[u32]) -> Option<Recorder> {
    let (mut config, mut processes, mut bystanders) = (None, None, None);
    for map in maps.iter().filter_map(|id| MapData::from_id(*id).ok()) {
        let Ok(info) = map.info() else { continue };
        match name(&info) {
            Some(CONFIG) if config.is_none() => config = config_of(map),
            Some(PROCESSES) if processes.is_none() => {
                processes = counters::of_processes(map.fd().as_fd()).ok();
            }
            Some(BYSTANDERS) if bystanders.is_none() => {
                bystanders = counters::of_bystanders(map.fd().as_fd()).ok();
            }
            _ => {}
        }
    }
    let config = config.filter(|config| config.own_pid == own_pid && config.stopped == 0)?;
    let mode = match config.sample_mask {
        0 => Mode::Allocs,
        _ => Mode::Heap,
    };
    Some(Recorder {
        mode,
        processes: processes?,
        bystanders: bystanders?,
        off: off(&config, mode),
    })
}

fn config_of(map: MapData) -> Option<Config> {
    let map = Array::<_, Plain<Config>>::try_from(Map::Array(map)).ok()?;
    map.get(&0, 0).ok().map(|Plain(config)| config)
}

/// In heap mode small blocks are off between two windows, and nothing is missing for that.
fn off(config: &Config, mode: Mode) -> Vec<u32> {
    let groups = [group::POOLS, group::LARGE, group::BLOCKS, group::DOMAINS];
    let is_off =
        |group: &u32| config.muted >> group & 1 == 1 && (mode, *group) != (Mode::Heap, group::BLOCKS);
    groups.into_iter().filter(is_off).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(muted: &[u32], mode: Mode, expected: &[u32]) {
        let config = Config {
            muted: muted.iter().fold(0, |bits, group| bits | 1 << group),
            ..Config::default()
        };
        assert_eq!(off(&config, mode), expected);
    }

    #[test]
    fn what_is_silent_is_off_but_for_what_waits_for_a_window() {
        check(&[], Mode::Heap, &[]);
        check(&[group::BLOCKS], Mode::Heap, &[]);
        check(&[group::BLOCKS, group::LARGE], Mode::Heap, &[group::LARGE]);
        check(&[group::BLOCKS], Mode::Allocs, &[group::BLOCKS]);
    }

    #[test]
    fn maps_that_nobody_has_are_no_recorder() {
        assert!(recorder(1, &[u32::MAX, 0]).is_none());
        assert!(recorder(1, &[]).is_none());
    }
}
