//! Tests that cannot run here: said, counted, and not allowed unless `PYROBE_ALLOW_MISSING` is set.
//!
//! `cargo xtask test` gives a file in `PYROBE_SKIP_LOG` and prints how many lines the tests left in it.

use std::{env, fs::OpenOptions, io::Write as _};

/// Says that the running test cannot run here; fails where everything has to be there.
#[track_caller]
pub(crate) fn missing(what: &str) {
    missing_from(what, "cargo xtask setup");
}

/// The same for what another command makes.
#[track_caller]
pub(crate) fn missing_from(what: &str, command: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        env::var_os("PYROBE_ALLOW_MISSING").is_some(),
        "missing: {what}\nhint: run `{command}`, or set PYROBE_ALLOW_MISSING=1 to skip what needs it"
    );
    note(&format!("{test}: missing {what}"));
}

/// Says that the running test does not apply here, whatever is installed.
pub(crate) fn not_applicable(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    note(&format!("{test}: {why}"));
}

#[allow(
    clippy::print_stderr,
    reason = "a skipped test says so to whoever reads the log"
)]
fn note(line: &str) {
    eprintln!("skipped: {line}");
    if let Some(file) = env::var_os("PYROBE_SKIP_LOG") {
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)
            .expect("the file that PYROBE_SKIP_LOG names can be written");
        log.write_all(format!("{line}\n").as_bytes())
            .expect("the skip log can be written");
    }
}

/// Whether the tests run as root, which tracing needs.
pub(crate) fn have_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    missing("root");
    false
}
