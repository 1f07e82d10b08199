//! Ratios of paired runs, and the table of them.

use std::fmt::Write as _;

use super::session::Took;

/// The middle of paired ratios, and where the middle half of them lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratio {
    pub(super) median: f64,
    low: f64,
    high: f64,
}

impl Ratio {
    /// Nothing of no pairs.
    pub(super) fn of(mut ratios: Vec<f64>) -> Option<Self> {
        ratios.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&ratios, 0.5)?,
            low: quantile(&ratios, 0.25)?,
            high: quantile(&ratios, 0.75)?,
        })
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ({:.3} to {:.3})", self.median, self.low, self.high)
    }
}

/// Between the two sorted values that it lies between.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = part * sorted.len().checked_sub(1)? as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list"
    )]
    let index = place as usize;
    let low = *sorted.get(index)?;
    let high = sorted.get(index + 1).copied().unwrap_or(low);
    Some((high - low).mul_add(place.fract(), low))
}

/// What came of one tool on one program.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
pub(super) struct Cell {
    /// Without, with.
    pub(super) pairs: Vec<(Took, Took)>,
    /// What pyrobe says of itself: estimated seconds that its probes took from the program.
    pub(super) estimates: Vec<f64>,
    /// Why there are no more.
    pub(super) failure: Option<String>,
}

impl Cell {
    /// The ratio of one of a run's times: each two pairs that follow each other count as one, by their geometric mean. In them two copies of
    /// an interpreter change places, of which one can be faster by a percent, and a median would be of one or the other. One
    /// that is left over does not count, unless it is the only one.
    pub(super) fn ratio(&self, time: fn(&Took) -> f64) -> Option<Ratio> {
        let ratios = self
            .pairs
            .iter()
            .map(|(without, with)| time(with) / time(without));
        let ratios: Vec<f64> = ratios.collect();
        if let [only] = *ratios {
            return Ratio::of(vec![only]);
        }
        let (twos, _) = ratios.as_chunks::<2>();
        Ratio::of(twos.iter().map(|[one, other]| (one * other).sqrt()).collect())
    }
}

impl Cell {
    /// What probes took from the program by the tool's own estimate, against the processor time of its work without them.
    pub(super) fn estimated(&self) -> Option<Ratio> {
        let of_pair = |(seconds, (without, _)): (&f64, &(Took, Took))| 1.0 + seconds / without.cpu;
        Ratio::of(self.estimates.iter().zip(&self.pairs).map(of_pair).collect())
    }
}

/// A row: a tool's title and its cells, one for each program.
pub(super) struct Row<'a> {
    pub(super) title: String,
    pub(super) cells: Vec<&'a Cell>,
}

/// The table in Markdown. The whole command's time has no meaning where a process was attached to: those rows are `inner_only`.
pub(super) fn markdown(programs: &[&str], rows: &[Row], inner_only: &[String]) -> String {
    let mut text = String::from("| run under |");
    for program in programs {
        let _ = write!(text, " {program}: time | CPU time | whole run |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(3 * programs.len()));
    for row in rows {
        let _ = write!(text, "\n| `{}` |", row.title);
        for cell in &row.cells {
            let whole = !inner_only.contains(&row.title);
            match (&cell.failure, cell.ratio(|took| took.wall)) {
                (Some(reason), _) => {
                    let _ = write!(text, " failed: {} | | |", escaped(reason));
                }
                (None, None) => text.push_str(" | | |"),
                (None, Some(wall)) => {
                    let _ = write!(text, " {} |", shown(Some(wall)));
                    let _ = write!(text, " {} |", shown(cell.ratio(|took| took.cpu)));
                    let shown = if whole {
                        shown(cell.ratio(|took| took.whole))
                    } else {
                        "-".to_owned()
                    };
                    let _ = write!(text, " {shown} |");
                }
            }
        }
    }
    text.push('\n');
    text
}

/// Two places behind the point are what is known of small ones, one of large ones.
fn shown(ratio: Option<Ratio>) -> String {
    let Some(Ratio { median, low, high }) = ratio else {
        return String::new();
    };
    if median < 1.5 {
        format!("{median:.3}x ({low:.3}-{high:.3})")
    } else {
        format!("{median:.1}x ({low:.1}-{high:.1})")
    }
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(wall: f64) -> Took {
        Took {
            wall,
            cpu: wall,
            whole: wall + 1.0,
        }
    }

    #[test]
    fn a_ratio_is_the_median_of_pairs_and_not_the_pair_of_medians() {
        let cell = Cell {
            pairs: vec![
                (took(1.0), took(1.5)),
                (took(2.0), took(3.0)),
                (took(4.0), took(5.0)),
                (took(1.0), took(5.0)),
                (took(2.0), took(1.0)),
                (took(1.0), took(2.0)),
                (took(1.0), took(9.0)),
            ],
            estimates: vec![0.25, 0.5, 4.0],
            failure: None,
        };
        let estimated = cell.estimated().map(|ratio| ratio.median);
        assert_eq!(estimated, Some(1.25));
        // Of two that follow each other: 1.5, 2.5 and 1.
        let ratio = cell.ratio(|took| took.wall);
        let expected = Ratio {
            median: 1.5,
            low: 1.25,
            high: 2.0,
        };
        assert_eq!(ratio, Some(expected));
        let one = Cell {
            pairs: vec![(took(1.0), took(3.0))],
            ..Cell::default()
        };
        assert_eq!(one.ratio(|took| took.wall).map(|ratio| ratio.median), Some(3.0));
        assert_eq!(Cell::default().ratio(|took| took.wall), None);
    }

    #[test]
    fn what_failed_says_why_in_its_place() {
        let good = Cell {
            pairs: vec![(took(1.0), took(2.0))],
            ..Cell::default()
        };
        let bad = Cell {
            failure: Some("a | b".to_owned()),
            ..Cell::default()
        };
        let row = |title: &str, cell| Row {
            title: title.to_owned(),
            cells: vec![cell],
        };
        let rows = [row("good", &good), row("bad", &bad), row("attached", &good)];
        let text = markdown(&["mix"], &rows, &["attached".to_owned()]);
        let expected = "\
| run under | mix: time | CPU time | whole run |
|---|---|---|---|
| `good` | 2.0x (2.0-2.0) | 2.0x (2.0-2.0) | 1.5x (1.5-1.5) |
| `bad` | failed: a \\| b | | |
| `attached` | 2.0x (2.0-2.0) | 2.0x (2.0-2.0) | - |
";
        assert_eq!(text, expected);
    }
}
