//! The command line's contract: arguments, streams, files and exit codes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails with the reason"
)]

mod files;
mod reports;
#[path = "../support/mod.rs"]
#[allow(
    dead_code,
    reason = "shared with the end-to-end tests, which use another part of it"
)]
mod support;
mod usage;
