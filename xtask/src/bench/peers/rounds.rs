//! Rounds that are done, in a file: ten with all tools take more than an hour, and need not be without a break.
//!
//! Invariant: what one table is made of was measured with one tracer, one set of programs and one set of options.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::ErrorKind,
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::table::Cell;

/// By tool and program.
pub(super) type Cells = BTreeMap<(&'static str, &'static str), Cell>;

/// The file.
pub(super) struct Rounds {
    path: PathBuf,
    measured: u64,
}

#[derive(Deserialize, Serialize)]
struct Saved {
    measured: u64,
    done: usize,
    cells: Vec<(String, String, Cell)>,
}

impl Rounds {
    /// `files` are measured, with these options.
    pub(super) fn new(path: PathBuf, files: &[PathBuf], options: &[String]) -> Result<Self> {
        let mut hasher = DefaultHasher::new();
        for file in files {
            let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            bytes.hash(&mut hasher);
        }
        options.hash(&mut hasher);
        let measured = hasher.finish();
        Ok(Self { path, measured })
    }

    /// How many are done, and what came of them. Nothing of other files or options.
    pub(super) fn load(&self, tools: &[&'static str], programs: &[&'static str]) -> Result<(usize, Cells)> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("there are no rounds to go on with\nhint: without --go-on the first one is made")
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        };
        let saved: Saved = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no file of rounds", self.path.display()))?;
        if saved.measured != self.measured {
            bail!(
                "the rounds that are done are of another pyrobe, other programs or options\nhint: without --go-on they are made anew"
            );
        }
        let named = |known: &[&'static str], name: &str| known.iter().copied().find(|known| *known == name);
        let mut cells = Cells::new();
        for (tool, program, cell) in saved.cells {
            if let (Some(tool), Some(program)) = (named(tools, &tool), named(programs, &program)) {
                cells.insert((tool, program), cell);
            }
        }
        Ok((saved.done, cells))
    }

    /// So many are done.
    pub(super) fn save(&self, done: usize, cells: &Cells) -> Result<()> {
        let cells = cells
            .iter()
            .map(|(&(tool, program), cell)| (tool.to_owned(), program.to_owned(), cell.clone()));
        let saved = Saved {
            measured: self.measured,
            done,
            cells: cells.collect(),
        };
        // Not half a file, whenever it is interrupted.
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&saved)?)
            .and_then(|()| fs::rename(&new, &self.path))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn rounds(name: &str, options: &[&str]) -> Rounds {
        let path = std::env::temp_dir().join(format!("pyrobe-rounds-{}-{name}", std::process::id()));
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        Rounds::new(path, &[], &options).unwrap()
    }

    #[test]
    fn rounds_of_the_same_are_gone_on_with_and_others_are_not() {
        let first = rounds("same", &["a"]);
        assert!(first.load(&["tool"], &["program"]).is_err());
        let cell = Cell {
            estimates: vec![0.1, 1.0 / 3.0],
            ..Cell::default()
        };
        let cells = Cells::from([(("tool", "program"), cell.clone()), (("tool", "other"), cell)]);
        first.save(3, &cells).unwrap();
        let (done, loaded) = rounds("same", &["a"]).load(&["tool"], &["program"]).unwrap();
        assert_eq!(done, 3);
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[&("tool", "program")].estimates, [0.1, 1.0 / 3.0]);
        assert!(rounds("same", &["b"]).load(&["tool"], &["program"]).is_err());
        fs::remove_file(first.path).unwrap();
    }
}
