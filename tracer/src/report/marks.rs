//! What a row is marked with: its figures are not exact, or not all of it was seen.
//!
//! Apart so that all tables use the same signs. Invariant: what a table marks, it explains.

use std::fmt;

/// The marks of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Something of the process was lost.
    pub(super) lossy: bool,
    /// The process was traced a part of the time (heap mode).
    pub(super) partial: bool,
}

impl Marks {
    /// A line for each mark that some row has.
    pub(super) fn legend(of_rows: impl Iterator<Item = Self>) -> String {
        let all = of_rows.fold(Self::default(), |all, of_row| Self {
            lossy: all.lossy | of_row.lossy,
            partial: all.partial | of_row.partial,
        });
        let mut out = String::new();
        if all.lossy {
            out += "(! something of this process was lost: its figures are not exact)\n";
        }
        if all.partial {
            out += "(~ this process was traced a part of the time: what was seen stands for the rest)\n";
        }
        out
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (is_set, sign) in [(self.lossy, '!'), (self.partial, '~')] {
            if is_set {
                write!(out, "{sign} ")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_is_explained() {
        let [none, lossy, both] =
            [(false, false), (true, false), (true, true)].map(|(lossy, partial)| Marks { lossy, partial });
        assert_eq!(
            [none, lossy, both].map(|marks| marks.to_string()),
            ["", "! ", "! ~ "]
        );
        assert_eq!(Marks::legend([none, none].into_iter()), "");
        assert_eq!(Marks::legend([none, lossy].into_iter()).lines().count(), 1);
        assert_eq!(Marks::legend([both, none].into_iter()).lines().count(), 2);
    }
}
