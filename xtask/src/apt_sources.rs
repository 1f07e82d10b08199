//! Where this machine gets Debian's packages: the first mirror of the main archive in apt's sources.
//!
//! Both formats are read: one-line (`*.list`) and deb822 (`*.sources`). See sources.list(5).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

const APT: &str = "/etc/apt";

/// The mirror of Debian's main archive.
pub(crate) fn debian_mirror() -> Result<String> {
    let parts = fs::read_dir(Path::new(APT).join("sources.list.d"))
        .map(|entries| {
            let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            files.sort();
            files
        })
        .unwrap_or_default();
    [Path::new(APT).join("sources.list")]
        .into_iter()
        .chain(parts)
        .find_map(|file| mirror_in(&file, &fs::read_to_string(&file).ok()?))
        .with_context(|| {
            format!("no mirror of Debian's main archive in {APT}/sources.list and sources.list.d")
        })
}

fn mirror_in(file: &Path, text: &str) -> Option<String> {
    match file.extension()?.to_str()? {
        "list" => text.lines().find_map(one_line),
        "sources" => text.split("\n\n").find_map(deb822),
        _ => None,
    }
}

/// `deb [options] URI SUITE COMPONENT...`
fn one_line(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    (is_main_archive(uri, suite) && words.any(|word| word == "main")).then(|| uri.to_owned())
}

/// A paragraph of `Key: value` lines.
fn deb822(paragraph: &str) -> Option<String> {
    let field = |name: &str| {
        paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let has =
        |name: &str, word: &str| field(name).is_some_and(|value| value.split_whitespace().any(|w| w == word));
    let uri = field("URIs")?.split_whitespace().next()?;
    let suite = field("Suites")?.split_whitespace().next()?;
    let enabled = field("Enabled").is_none_or(|value| value != "no");
    (enabled && has("Types", "deb") && has("Components", "main") && is_main_archive(uri, suite))
        .then(|| uri.to_owned())
}

/// Other archives (security, backports, other vendors') do not have the suite `sid`.
fn is_main_archive(uri: &str, suite: &str) -> bool {
    uri.trim_end_matches('/').ends_with("/debian") && !suite.contains('-') && !suite.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, text: &str, expected: Option<&str>) {
        assert_eq!(mirror_in(Path::new(name), text).as_deref(), expected);
    }

    #[test]
    fn one_line_sources_are_read() {
        let main = "# a comment\ndeb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm main contrib\n";
        check("sources.list", main, Some("http://mirror.test/debian"));
        check("a.list", "deb http://other.test/nodesource nodistro main\n", None);
        check(
            "a.list",
            "deb-src http://mirror.test/debian bookworm main\n",
            None,
        );
        check(
            "a.list",
            "deb http://mirror.test/debian bookworm-security main\n",
            None,
        );
        check("a.list.disabled", main, None);
    }

    #[test]
    fn deb822_sources_are_read() {
        let paragraph = "Types: deb\n# comment\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n\
                         Components: main\n";
        check("a.sources", paragraph, Some("http://mirror.test/debian"));
        check("a.sources", &format!("{paragraph}Enabled: no\n"), None);
        let security = paragraph
            .replace("/debian", "/debian-security")
            .replace("bookworm ", "bookworm-security ");
        check("a.sources", &security, None);
        check(
            "a.sources",
            &format!("{security}\n{paragraph}"),
            Some("http://mirror.test/debian"),
        );
    }
}
