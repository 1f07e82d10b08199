//! Collapsed stacks, read back: `command (pid);function (file:line);... VALUE`, root first.

use super::expected::ExpectedFrame;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stack {
    pub(crate) process: String,
    pub(crate) pid: u32,
    /// Root first.
    pub(crate) frames: Vec<Frame>,
    pub(crate) value: u64,
}

/// A frame; special ones (`[truncated]`) have a name only, and code without a line has no line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) function: String,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
}

/// All lines; fails at the first that has another form.
#[track_caller]
pub(crate) fn parse(text: &str) -> Vec<Stack> {
    text.lines()
        .map(|line| parse_line(line).unwrap_or_else(|| panic!("not a collapsed stack: {line:?}")))
        .collect()
}

fn parse_line(line: &str) -> Option<Stack> {
    let (stack, value) = line.rsplit_once(' ')?;
    let mut names = stack.split(';');
    let (process, pid) = names.next()?.rsplit_once(" (")?;
    Some(Stack {
        process: process.to_owned(),
        pid: pid.strip_suffix(')')?.parse().ok()?,
        frames: names.map(parse_frame).collect::<Option<_>>()?,
        value: value.parse().ok()?,
    })
}

fn parse_frame(name: &str) -> Option<Frame> {
    if name.starts_with('[') && name.ends_with(']') {
        return Some(Frame {
            function: name.to_owned(),
            file: None,
            line: None,
        });
    }
    let (function, place) = name.rsplit_once(" (")?;
    let place = place.strip_suffix(')')?;
    // A frame between two lines of the source has none.
    let (file, line) = match place.rsplit_once(':') {
        Some((file, line)) if line.parse::<u32>().is_ok() => (file, line.parse().ok()),
        _ => (place, None),
    };
    Some(Frame {
        function: function.to_owned(),
        file: Some(file.to_owned()),
        line,
    })
}

impl Stack {
    /// Whether its leaf end is this.
    pub(crate) fn ends_with(&self, expected: &[ExpectedFrame]) -> bool {
        let Some(first) = self.frames.len().checked_sub(expected.len()) else {
            return false;
        };
        self.frames
            .iter()
            .skip(first)
            .zip(expected)
            .all(|(frame, expected)| expected.is(frame))
    }

    /// Whether it has this special frame.
    pub(crate) fn has_special(&self, name: &str) -> bool {
        self.frames
            .iter()
            .any(|frame| frame.file.is_none() && frame.function == name)
    }
}

/// The sum over the stacks of a process that end so.
pub(crate) fn sum(stacks: &[Stack], pid: u32, expected: &[ExpectedFrame]) -> u64 {
    stacks
        .iter()
        .filter(|stack| stack.pid == pid && stack.ends_with(expected))
        .map(|stack| stack.value)
        .sum()
}

/// The heaviest stacks, for the message of a failure.
pub(crate) fn describe(stacks: &[Stack]) -> String {
    let mut heaviest: Vec<&Stack> = stacks.iter().collect();
    heaviest.sort_by_key(|stack| std::cmp::Reverse(stack.value));
    let lines: Vec<String> = heaviest
        .iter()
        .take(10)
        .map(|stack| format!("{stack:?}"))
        .collect();
    format!("the heaviest of {} stacks:\n{}", stacks.len(), lines.join("\n"))
}
