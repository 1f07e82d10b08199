//! The commands of README.md are what can be typed: one that was renamed may not stay in it.
//!
//! Here and not with the black-box tests, because a command is checked to its last argument without being run.

use clap::Parser as _;

use super::args::Args;

const README: &str = include_str!("../../../README.md");

/// The words of each pyrobe command in the code blocks, which are indented by four spaces.
fn commands(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .filter_map(|line| line.strip_prefix("    "))
        .map(|line| line.strip_prefix("$ ").unwrap_or(line))
        .map(|line| line.strip_suffix(" &&").unwrap_or(line))
        .filter_map(|line| {
            // No argument has spaces in its quotes.
            let words: Vec<String> = line
                .split_whitespace()
                .map(|word| word.trim_matches('\'').to_owned())
                .collect();
            let program = words.first()?;
            (program == "pyrobe" || program.ends_with("/pyrobe")).then_some(words)
        })
        .collect()
}

/// What clap says of the commands that it refuses.
fn refused(text: &str) -> Vec<String> {
    let parsed = commands(text)
        .into_iter()
        .map(|words| Args::try_parse_from(&words).map_err(|error| format!("{}: {error}", words.join(" "))));
    parsed.filter_map(Result::err).collect()
}

#[test]
fn every_command_of_the_readme_can_be_typed() {
    assert!(commands(README).len() > 15, "the code blocks were not found");
    let refused = refused(README);
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn a_command_that_cannot_be_typed_is_found() {
    let text = "
    $ pyrobe record --no-such-option -- python3 app.py
    ./target/release/pyrobe report table --view no-such-view app.pyrobe &&
    pyrobe report flamegraph
    pyrobe ps --exe 'python3*'
    pyrobe record -- python3 app.py --no-such-option
pyrobe in a sentence
";
    assert_eq!(commands(text).len(), 5);
    assert_eq!(refused(text).len(), 3);
}
