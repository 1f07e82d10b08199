//! `report flamegraph`: an SVG that stands alone.
//!
//! Drawn by inferno from the collapsed stacks; apart from it because a flame graph also must say what was lost
//! (subtitle, and a mark at the processes' names) and must exist when there is nothing to draw.
//! Invariant: the result is well-formed XML for any snapshot.

use std::io::{self, Write};

use inferno::flamegraph::{
    Direction, Options, Palette, TextTruncateDirection,
    color::{BackgroundColor, BasicPalette},
    from_lines,
};

use super::{
    collapsed::{CollapsedOptions, stacks},
    footer, format,
    table::capital,
};
use crate::profile::{Metric, ProcessSummary, Snapshot, View};

/// How the flame graph is drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlamegraphOptions {
    /// Which blocks.
    pub view: View,
    /// Bytes or blocks.
    pub metric: Metric,
    /// Title; `None` for one that says what the view is.
    pub title: Option<String>,
    /// Which way it grows.
    pub orientation: Orientation,
}

/// Which way a flame graph grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Orientation {
    /// Roots at the bottom.
    #[default]
    Flames,
    /// Roots at the top.
    Icicles,
}

/// Writes the SVG.
pub fn write(snapshot: &Snapshot, options: &FlamegraphOptions, out: &mut dyn Write) -> io::Result<()> {
    let collapsed = CollapsedOptions {
        view: options.view,
        metric: options.metric,
    };
    let lines: Vec<String> = stacks(snapshot, collapsed, root_name)
        .into_iter()
        .map(|(stack, value)| format!("{stack} {value}"))
        .collect();
    let title = options
        .title
        .as_deref()
        .map_or_else(|| capital(options.view.title()), crate::symbolize::escape);
    let subtitle = subtitle(snapshot);
    if lines.is_empty() {
        return write_empty(&title, &subtitle, out);
    }
    let mut drawing = Options::default();
    drawing.title = title;
    drawing.subtitle = Some(subtitle);
    options.metric.name().clone_into(&mut drawing.count_name);
    "Frame:".clone_into(&mut drawing.name_type);
    drawing.colors = Palette::Basic(BasicPalette::Mem);
    drawing.bgcolors = Some(BackgroundColor::Grey);
    drawing.deterministic = true;
    // A label is "function (file:line)": what is left of a short one has to be the function.
    drawing.text_truncate_direction = TextTruncateDirection::Right;
    drawing.direction = match options.orientation {
        Orientation::Flames => Direction::Straight,
        Orientation::Icicles => Direction::Inverted,
    };
    from_lines(&mut drawing, lines.iter().map(String::as_str), out)
}

/// A comment sign would make inferno skip the line.
fn root_name(process: &ProcessSummary) -> String {
    let name = format::process(process);
    let mark = if process.is_lossy() { " [losses]" } else { "" };
    format!("{}{mark}", name.trim_start_matches('#'))
}

fn subtitle(snapshot: &Snapshot) -> String {
    let mut parts = footer::warnings(snapshot);
    if snapshot.losses.total() == 0 && snapshot.lossy().next().is_none() {
        parts.insert(0, "no losses".to_owned());
    }
    parts.push(format!(
        "{} probe hits",
        format::count(snapshot.totals.hits.count)
    ));
    if let Some(covered) = snapshot.coverage_percent() {
        parts.push(format!("coverage {}", format::percent(covered)));
    }
    parts.join("; ")
}

fn write_empty(title: &str, subtitle: &str, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "<?xml version=\"1.0\" standalone=\"no\"?>\n\
         <svg version=\"1.1\" width=\"1200\" height=\"90\" viewBox=\"0 0 1200 90\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#f4f4f4\"/>\n\
         <g font-family=\"monospace\" font-size=\"14\" text-anchor=\"middle\">\n\
         <text x=\"600\" y=\"28\">{}</text>\n\
         <text x=\"600\" y=\"50\">{}</text>\n\
         <text x=\"600\" y=\"74\">Nothing to show: no block is in this view.</text>\n\
         </g>\n</svg>",
        xml(title),
        xml(subtitle)
    )
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
