//! Numbers and frames as people read them.
//!
//! Apart so that every report writes the same thing the same way. Sizes are binary (1 KiB = 1024 bytes), since
//! allocators count in powers of two. Invariant: all of it is plain text without control characters.

use crate::{
    profile::{ProcessSummary, Snapshot},
    symbolize::FrameId,
};

/// A size: `0B`, `512B`, `1.5KiB`, `12.3MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.into_iter();
    let mut unit = units.next().unwrap_or_default();
    // At 1023.95 one decimal would show 1024.0.
    while value >= 1023.95 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1}{unit}")
}

/// A number with its thousands apart: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time: `850ns`, `12.3ms`, `4.56s`, `2m 05s`.
pub fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => format!("{:.1}us", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}ms", ns as f64 / 1e6),
        1_000_000_000..60_000_000_000 => format!("{:.2}s", ns as f64 / 1e9),
        _ => format!("{}m {:02}s", ns / 60_000_000_000, ns / 1_000_000_000 % 60),
    }
}

/// A percentage: `100%`, `87.5%`. Never rounded up to 100 or down to 0.
pub fn percent(value: f64) -> String {
    let text = if value > 0.0 && value < 100.0 {
        format!("{:.1}", value.clamp(0.1, 99.9))
    } else {
        format!("{value:.0}")
    };
    format!("{text}%")
}

/// A frame: `function (file:line)`; the name alone for a special frame.
pub fn frame(snapshot: &Snapshot, id: FrameId) -> String {
    let Some(symbol) = snapshot.frames.symbol(id) else {
        return String::new();
    };
    let (function, file) = (
        snapshot.frames.str(symbol.function),
        snapshot.frames.str(symbol.file),
    );
    match (file, symbol.line) {
        ("", _) => function.to_owned(),
        (_, 0) => format!("{function} ({file})"),
        (_, line) => format!("{function} ({file}:{line})"),
    }
}

/// A process: `command (pid)`.
pub fn process(process: &ProcessSummary) -> String {
    format!("{} ({})", process.info.name, process.info.key.pid)
}

/// Shortens to `width` characters, keeping the start.
pub fn keep_start(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(3)).collect();
    format!("{kept}...")
}

/// Shortens to `width` characters, keeping the end.
pub fn keep_end(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().skip(length - width.saturating_sub(3)).collect();
    format!("...{kept}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_never_show_1024() {
        let shown = [0, 1023, 1024, 1536, 1_048_575, 1_048_576, 12_897_485, u64::MAX].map(size);
        assert_eq!(
            shown,
            [
                "0B", "1023B", "1.0KiB", "1.5KiB", "1.0MiB", "1.0MiB", "12.3MiB", "16.0EiB"
            ]
        );
    }

    #[test]
    fn numbers_times_and_percentages_are_readable() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        let shown = [850, 1_500, 12_300_000, 4_560_000_000, 125_000_000_000].map(duration);
        assert_eq!(shown, ["850ns", "1.5us", "12.3ms", "4.56s", "2m 05s"]);
        assert_eq!(
            [0.0, 0.01, 87.5, 99.99, 100.0].map(percent),
            ["0%", "0.1%", "87.5%", "99.9%", "100%"]
        );
    }

    #[test]
    fn long_names_lose_the_less_telling_end() {
        assert_eq!(keep_start("abcdefgh", 6), "abc...");
        assert_eq!(keep_end("abcdefgh", 6), "...fgh");
        assert_eq!(keep_end("abc", 3), "abc");
    }
}
