//! What is known about a recording besides its events: host, settings, images and their coverage.
//!
//! Plain data with serde, since a capture stores it and reports read it back. Invariant: fields are only added,
//! with a default, so that older captures still read.

use serde::{Deserialize, Serialize};

use crate::mode::Mode;

/// Everything about a recording that is no event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Context {
    /// Version of pyrobe that recorded.
    pub tool_version: String,
    /// Host name.
    pub host: String,
    /// Kernel release and machine.
    pub kernel: String,
    /// `heap` or `allocs`.
    pub mode: String,
    /// The command that was started, if one was.
    pub command: Vec<String>,
    /// Settings worth showing, as name and value.
    pub settings: Vec<(String, String)>,
    /// Wall clock at the start, nanoseconds since 1970.
    pub started_unix_ns: Option<u64>,
    /// How long was recorded; without it the events' own times count.
    pub duration_ns: Option<u64>,
    /// What one probe hit was measured to cost on this host, nanoseconds.
    pub cost_per_hit_ns: Option<f64>,
    /// Images, by their id.
    pub images: Vec<ImageInfo>,
    /// Anything else a reader should know, one sentence each.
    pub notes: Vec<String>,
}

/// One image (an ELF file with a CPython runtime).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageInfo {
    /// Its number in the process events.
    pub id: u32,
    /// Path, as the processes see it.
    pub path: String,
    /// CPython's version, `3.11.2`.
    pub version: String,
    /// Build id in hexadecimal, if the file has one.
    pub build_id: Option<String>,
    /// What the probes see of its allocator.
    pub coverage: Coverage,
    /// Where probes stand, and why not elsewhere.
    pub placement: Vec<String>,
    /// From the first exec of this image to its probes being in place, nanoseconds; `None` if they were there first.
    pub attach_gap_ns: Option<u64>,
}

/// How many of the places where an image allocates or frees are probed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Coverage {
    /// Places that are probed.
    pub resolved: u32,
    /// All places, inlined copies included.
    pub copies: u32,
}

impl Coverage {
    /// Resolved of all, 0 to 100; `None` if no place is known.
    pub fn percent(self) -> Option<f64> {
        (self.copies > 0).then(|| f64::from(self.resolved.min(self.copies)) * 100.0 / f64::from(self.copies))
    }

    /// Whether something is known to be missing.
    pub fn is_partial(self) -> bool {
        self.resolved < self.copies
    }
}

impl Context {
    /// What was looked at.
    pub fn mode(&self) -> Mode {
        if self.mode == Mode::Heap.name() {
            Mode::Heap
        } else {
            Mode::Allocs
        }
    }

    /// The image with this id.
    pub fn image(&self, id: u32) -> Option<&ImageInfo> {
        self.images.iter().find(|image| image.id == id)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use super::*;

    #[test]
    fn an_older_capture_without_a_field_still_reads() {
        let context: Context =
            serde_json::from_str(r#"{"host": "a", "images": [{"id": 3, "path": "/p"}]}"#).unwrap();
        assert_eq!(context.host, "a");
        assert_eq!(context.image(3).map(|image| image.path.as_str()), Some("/p"));
        assert_eq!(context.image(3).and_then(|image| image.coverage.percent()), None);
    }

    #[test]
    fn coverage_is_resolved_of_all() {
        assert_eq!(
            Coverage {
                resolved: 45,
                copies: 60
            }
            .percent(),
            Some(75.0)
        );
        assert!(
            Coverage {
                resolved: 45,
                copies: 60
            }
            .is_partial()
        );
    }
}
