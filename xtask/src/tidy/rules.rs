//! The rules: which module may do what, how long a file may be, what must stand at its head.
//!
//! ARCHITECTURE.md says why; a rule that changes changes there too.

use std::path::Path;

use super::code::{lines_naming, lines_with_word, without_comments, without_tests};

/// Lines of a source file from which it should be split, and from which it must be.
const SOFT_LINES: usize = 400;
const HARD_LINES: usize = 600;

/// Whether a finding makes the check fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// To be thought about.
    Warning,
    /// To be mended.
    Failure,
}

/// A place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) line: usize,
    pub(super) level: Level,
    pub(super) text: String,
}

/// What names the machine that the check runs on, and must not be in the repository.
pub(super) struct Machine {
    paths: Vec<String>,
}

impl Machine {
    /// The machine with this checkout and this home directory.
    pub(super) fn here(checkout: &Path, home: &Path) -> Self {
        let paths = [Some(checkout), Some(home), checkout.parent()];
        let paths = paths
            .into_iter()
            .flatten()
            .map(|path| format!("{}/", path.display()));
        // Directories that every machine has name none.
        let common = [
            "/", "//", "/tmp/", "/usr/", "/var/", "/opt/", "/home/", "/srv/", "/etc/",
        ];
        Self {
            paths: paths.filter(|path| !common.contains(&path.as_str())).collect(),
        }
    }
}

/// All findings in one file.
pub(super) fn check(file: &str, text: &str, machine: &Machine) -> Vec<Finding> {
    let mut findings = machine_paths(text, machine);
    if file == "Cargo.lock" {
        findings.extend(foreign_registries(text));
    }
    let path = Path::new(file);
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    if matches!(extension, "rs" | "py" | "c")
        && !text
            .lines()
            .next()
            .is_some_and(|line| line.contains("@generated"))
    {
        findings.extend(length(text));
    }
    match extension {
        "rs" => {
            findings.extend(rust_head(text));
            findings.extend(boundaries(file, text));
        }
        "py" => findings.extend(python_head(text)),
        _ => {}
    }
    findings
}

fn failure(line: usize, text: impl Into<String>) -> Finding {
    Finding {
        line,
        level: Level::Failure,
        text: text.into(),
    }
}

fn length(text: &str) -> Option<Finding> {
    let lines = text.lines().count();
    let (level, limit) = if lines > HARD_LINES {
        (Level::Failure, HARD_LINES)
    } else if lines > SOFT_LINES {
        (Level::Warning, SOFT_LINES)
    } else {
        return None;
    };
    Some(Finding {
        line: lines,
        level,
        text: format!("{lines} lines; a file should have one concern and at most {limit}"),
    })
}

fn rust_head(text: &str) -> Option<Finding> {
    (!text.starts_with("//! ")).then(|| failure(1, "a file starts with `//!`: what it is, why it is apart"))
}

fn python_head(text: &str) -> Option<Finding> {
    let start = text
        .strip_prefix("#!")
        .and_then(|rest| rest.split_once('\n'))
        .map_or(text, |(_, rest)| rest);
    (!start.starts_with("\"\"\"")).then(|| failure(1, "a program starts with a docstring: its one behaviour"))
}

/// Paths of the machine, in a text that has to be true everywhere.
fn machine_paths(text: &str, machine: &Machine) -> Vec<Finding> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| machine.paths.iter().any(|path| line.contains(path)))
        .map(|(index, _)| failure(index + 1, "a path of this machine"))
        .collect()
}

/// Sources of dependencies other than crates.io under its public name.
fn foreign_registries(lock: &str) -> Vec<Finding> {
    lock.lines()
        .enumerate()
        .filter(|(_, line)| {
            line.starts_with("source = ") && !line.contains("//github.com/rust-lang/crates.io-index")
        })
        .map(|(index, line)| {
            failure(
                index + 1,
                format!("a dependency that is not from crates.io: {line}"),
            )
        })
        .collect()
}

/// What the stages may name and do.
fn boundaries(file: &str, text: &str) -> Vec<Finding> {
    let Some(file) = file.strip_prefix("tracer/src/") else {
        return Vec::new();
    };
    let in_any = |places: &[&str]| places.iter().any(|place| file.starts_with(place));
    let code = without_comments(text);
    let product = if is_test_file(file) {
        ""
    } else {
        without_tests(&code)
    };
    let mut findings = Vec::new();

    if !in_any(&["bpf/"]) {
        let lines = lines_with_word(&code, |word| word == "aya" || word.starts_with("aya_"));
        findings.extend(
            lines
                .into_iter()
                .map(|line| failure(line, "aya is named in bpf/ only")),
        );
    }
    if !in_any(&["discover/", "symbolize/"]) {
        // What a process says of itself is no target.
        let of_others = |line: &str| line.replace("/proc/self/", "").contains("/proc/");
        let lines = product.lines().enumerate().filter(|(_, line)| of_others(line));
        let text = "/proc and target memory are read in discover/ and symbolize/ only";
        findings.extend(lines.map(|(index, _)| failure(index + 1, text)));
    }
    if in_any(&["plan/", "profile/", "report/", "python/layout"]) {
        for name in ["fs", "net", "process"] {
            let lines = lines_naming(product, "std", name);
            let text = format!("this stage does no input or output: std::{name}");
            findings.extend(lines.into_iter().map(|line| failure(line, text.clone())));
        }
    }
    if in_any(&["report/", "live/", "daemon/"]) {
        for name in ["ingest", "bpf"] {
            let lines = lines_naming(product, "crate", name);
            let text = format!("reports read a snapshot, they never see an event: crate::{name}");
            findings.extend(lines.into_iter().map(|line| failure(line, text.clone())));
        }
    }
    findings
}

/// Files that are in the program only when it is tested.
fn is_test_file(file: &str) -> bool {
    let stem = Path::new(file)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    stem == "testing" || stem == "tests" || stem.ends_with("_tests") || file.contains("/tests/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine::here(Path::new("/builds/pyrobe"), Path::new("/users/me"))
    }

    /// The lines that fail, or warn, in a file with a proper head.
    #[track_caller]
    fn check_lines(file: &str, body: &str, expected: &[usize]) {
        let findings = check(file, &format!("//! Head.\n{body}"), &machine());
        let lines: Vec<usize> = findings.iter().map(|finding| finding.line).collect();
        assert_eq!(lines, expected, "{findings:?}");
    }

    #[test]
    fn aya_is_named_in_one_module() {
        check_lines("tracer/src/bpf/load.rs", "use aya::Ebpf;", &[]);
        check_lines("tracer/src/cli/record.rs", "use aya::Ebpf;", &[2]);
        check_lines(
            "tracer/src/cli/record.rs",
            "// aya does that\nuse aya_obj::Object;",
            &[3],
        );
        check_lines("xtask/src/ebpf.rs", "use aya::Ebpf;", &[]);
    }

    #[test]
    fn proc_is_read_in_two_modules() {
        check_lines("tracer/src/discover/maps.rs", "open(\"/proc/1/maps\")", &[]);
        check_lines("tracer/src/cli/ps.rs", "open(\"/proc/self/fd/3\")", &[]);
        check_lines("tracer/src/cli/ps.rs", "\nopen(\"/proc/1/maps\")", &[3]);
        check_lines(
            "tracer/src/cli/ps.rs",
            "// reads /proc/1/maps\nopen(\"/sys/kernel\")",
            &[],
        );
        check_lines(
            "tracer/src/cli/ps.rs",
            "#[cfg(test)]\nmod tests { open(\"/proc/1/maps\") }",
            &[],
        );
    }

    #[test]
    fn pure_stages_do_no_input_or_output() {
        check_lines("tracer/src/plan/sites.rs", "use std::{fmt, fs::File};", &[2]);
        check_lines("tracer/src/profile/live.rs", "std::net::connect()", &[2]);
        check_lines("tracer/src/python/layout_table.rs", "use std::fs;", &[2]);
        check_lines("tracer/src/python/version.rs", "use std::fs;", &[]);
        check_lines("tracer/src/report/table.rs", "use std::{fmt, io::Write};", &[]);
        check_lines("tracer/src/report/tests.rs", "use std::fs;", &[]);
    }

    #[test]
    fn reports_never_see_an_event() {
        check_lines(
            "tracer/src/report/rows.rs",
            "use crate::{ingest::Event, profile::Snapshot};",
            &[2],
        );
        check_lines("tracer/src/report/rows.rs", "use crate::bpf::Tracer;", &[2]);
        check_lines("tracer/src/profile/apply.rs", "use crate::ingest::Event;", &[]);
    }

    #[test]
    fn every_file_has_a_head() {
        let heads = |file: &str, text: &str| check(file, text, &machine()).len();
        assert_eq!(heads("xtask/src/a.rs", "fn main() {}"), 1);
        assert_eq!(heads("xtask/src/a.rs", "//! Head.\nfn main() {}"), 0);
        assert_eq!(heads("tests/workloads/a.py", "import os"), 1);
        assert_eq!(
            heads("examples/a.py", "#!/usr/bin/env python3\n\"\"\"Head.\"\"\""),
            0
        );
    }

    #[test]
    fn long_files_are_told_and_too_long_ones_fail() {
        let level = |lines: usize| {
            let text = format!("//! Head.\n{}", "\n".repeat(lines - 1));
            check("xtask/src/a.rs", &text, &machine())
                .first()
                .map(|finding| finding.level)
        };
        assert_eq!(level(400), None);
        assert_eq!(level(401), Some(Level::Warning));
        assert_eq!(level(601), Some(Level::Failure));
    }

    #[test]
    fn nothing_names_the_machine_it_was_made_on() {
        check_lines("README.md", "run /builds/pyrobe/target/pyrobe", &[2]);
        check_lines("README.md", "see /users/me/notes", &[2]);
        check_lines("README.md", "see /usr/bin/python3", &[]);
        let lock = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\nsource = \"registry+https://x\"";
        assert_eq!(check("Cargo.lock", lock, &machine()).len(), 1);
    }
}
