//! What a workload says of itself (`tests/workloads/_expected.py`), one line of JSON for each of its processes.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::collapsed::Frame;

/// What one process made.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Expected {
    pub(crate) pid: u32,
    /// The workload's file as the interpreter names it.
    pub(crate) file: String,
    /// Every function of the file with its lines.
    pub(crate) places: Vec<Place>,
    pub(crate) stacks: Vec<ExpectedStack>,
    /// What only this workload says.
    #[serde(flatten)]
    pub(crate) more: Map<String, Value>,
}

/// A function and all lines that its code can be at.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Place {
    pub(crate) function: String,
    pub(crate) lines: Vec<u32>,
}

/// Blocks made at one stack.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ExpectedStack {
    /// Root first; frames nearer to the root may be left out.
    pub(crate) frames: Vec<ExpectedFrame>,
    pub(crate) count: u64,
    /// Bytes occupied.
    pub(crate) bytes: u64,
}

/// A frame; no file means any.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ExpectedFrame {
    pub(crate) function: String,
    pub(crate) file: Option<String>,
    pub(crate) line: u32,
}

/// The lines that a workload and its children wrote.
#[track_caller]
pub(crate) fn parse(stdout: &str) -> Vec<Expected> {
    let parsed: Vec<Expected> = stdout
        .lines()
        .map(|line| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("a workload wrote something else: {error}\n{line}"))
        })
        .collect();
    assert!(!parsed.is_empty(), "the workload said nothing of itself");
    parsed
}

impl ExpectedFrame {
    /// Whether a reported frame is this one.
    pub(crate) fn is(&self, frame: &Frame) -> bool {
        frame.function == self.function
            && frame.line == Some(self.line)
            && self
                .file
                .as_deref()
                .is_none_or(|file| frame.file.as_deref() == Some(file))
    }
}

impl Expected {
    /// A number that only this workload says.
    #[track_caller]
    pub(crate) fn number(&self, key: &str) -> u64 {
        let value = self.more.get(key).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("the workload says no number {key:?}: {:?}", self.more))
    }

    /// A frame that only this workload names.
    #[track_caller]
    pub(crate) fn frame(&self, key: &str) -> ExpectedFrame {
        let value = self.more.get(key).cloned().unwrap_or_default();
        serde_json::from_value(value)
            .unwrap_or_else(|error| panic!("the workload names no frame {key:?}: {error}: {:?}", self.more))
    }
}
