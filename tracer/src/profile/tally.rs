//! What one stack of one process allocated, holds and held: the numbers, and the views that choose among them.
//!
//! Apart because reports need it without knowing how it is counted. Invariant: `allocated = freed + live` in
//! bytes and in blocks; a block whose free was lost counts as freed once that is known.

use serde::{Deserialize, Serialize};

/// Bytes and blocks, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Bytes ever allocated.
    pub allocated_bytes: u64,
    /// Blocks ever allocated.
    pub allocated_count: u64,
    /// Bytes live now, or when the process exited.
    pub live_bytes: u64,
    /// Blocks live now, or when the process exited.
    pub live_count: u64,
    /// Bytes live when the process held the most.
    pub peak_bytes: u64,
    /// Blocks live when the process held the most.
    pub peak_count: u64,
    /// Bytes of blocks freed before the same thread allocated another.
    pub temporary_bytes: u64,
    /// Such blocks.
    pub temporary_count: u64,
    /// In heap mode, how many acquisitions of pools and page faults the live figures rest on beside what is exact.
    pub samples: u64,
    /// In heap mode, what of large blocks is allocated and not resident, bytes: not in `live_bytes`.
    pub untouched_bytes: u64,
}

/// Which blocks a report is about. The names are what users type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum View {
    /// All that was allocated, freed or not (pprof's `alloc_space` and `alloc_objects`).
    #[default]
    Allocated,
    /// What is live at the end of the recording, or was when the process exited (pprof's `inuse_*`).
    InUse,
    /// What was live when the process held the most: its high-water mark.
    Peak,
    /// What was never freed. The same blocks as `in-use` for now: without knowing what an exit would have
    /// freed, every block that is left is a candidate.
    Leaked,
    /// What was freed before the same thread allocated anything else.
    Temporary,
}

/// What of the blocks is summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Bytes that the blocks occupy.
    #[default]
    Bytes,
    /// Their number.
    Count,
}

impl Tally {
    /// Adds another's numbers.
    pub fn add(&mut self, other: &Self) {
        let sum = |a: &mut u64, b: u64| *a = a.saturating_add(b);
        sum(&mut self.allocated_bytes, other.allocated_bytes);
        sum(&mut self.allocated_count, other.allocated_count);
        sum(&mut self.live_bytes, other.live_bytes);
        sum(&mut self.live_count, other.live_count);
        sum(&mut self.peak_bytes, other.peak_bytes);
        sum(&mut self.peak_count, other.peak_count);
        sum(&mut self.temporary_bytes, other.temporary_bytes);
        sum(&mut self.temporary_count, other.temporary_count);
        sum(&mut self.samples, other.samples);
        sum(&mut self.untouched_bytes, other.untouched_bytes);
    }

    /// Blocks freed: allocated and not live.
    pub fn freed_count(&self) -> u64 {
        self.allocated_count.saturating_sub(self.live_count)
    }

    /// Bytes and blocks of a view.
    pub fn of(&self, view: View) -> (u64, u64) {
        match view {
            View::Allocated => (self.allocated_bytes, self.allocated_count),
            View::InUse | View::Leaked => (self.live_bytes, self.live_count),
            View::Peak => (self.peak_bytes, self.peak_count),
            View::Temporary => (self.temporary_bytes, self.temporary_count),
        }
    }

    /// One number of a view.
    pub fn value(&self, view: View, metric: Metric) -> u64 {
        let (bytes, count) = self.of(view);
        match metric {
            Metric::Bytes => bytes,
            Metric::Count => count,
        }
    }
}

impl View {
    /// All views, in the order in which a help text lists them.
    pub const ALL: [Self; 5] = [
        Self::Allocated,
        Self::InUse,
        Self::Peak,
        Self::Leaked,
        Self::Temporary,
    ];

    /// The name that users type and JSON shows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocated => "allocated",
            Self::InUse => "in-use",
            Self::Peak => "peak",
            Self::Leaked => "leaked",
            Self::Temporary => "temporary",
        }
    }

    /// What it shows, for a heading.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Allocated => "all allocations",
            Self::InUse => "memory in use at the end",
            Self::Peak => "memory at each process's high-water mark",
            Self::Leaked => "memory never freed",
            Self::Temporary => "temporary allocations",
        }
    }
}

impl Metric {
    /// The name that users type and JSON shows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Count => "count",
        }
    }
}

impl std::str::FromStr for View {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let known = Self::ALL.into_iter().find(|view| view.name() == name);
        known.ok_or_else(|| UnknownName {
            what: "view",
            name: name.to_owned(),
            known: names(),
        })
    }
}

impl std::str::FromStr for Metric {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "bytes" => Ok(Self::Bytes),
            "count" => Ok(Self::Count),
            _ => Err(UnknownName {
                what: "metric",
                name: name.to_owned(),
                known: "bytes, count".to_owned(),
            }),
        }
    }
}

/// A name that is none of those that exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {what} {name:?}; there are: {known}")]
pub struct UnknownName {
    /// What kind of thing was named.
    pub what: &'static str,
    /// The name that was given.
    pub name: String,
    /// The names that exist.
    pub known: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use super::*;

    #[test]
    fn every_view_is_found_by_its_name_and_serialised_as_it() {
        for view in View::ALL {
            assert_eq!(view.name().parse(), Ok(view));
            assert_eq!(serde_json::to_value(view).unwrap(), view.name());
        }
        let error = "live".parse::<View>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no view \"live\"; there are: allocated, in-use, peak, leaked, temporary"
        );
    }
}
