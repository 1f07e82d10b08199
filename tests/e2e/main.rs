//! End-to-end tests: pyrobe, as root, on real interpreters that run real programs.
//!
//! Each test compares with a truth that does not come from pyrobe: what the program knows of itself, what
//! tracemalloc says, or what the kernel shows.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails with the reason"
)]

mod attach;
mod audit;
mod bounded;
mod budget;
mod census;
mod crowd;
mod doctor;
mod domains;
mod embedding;
mod faults;
mod heap;
mod held;
mod host;
mod images;
mod lifecycle;
mod links;
mod losses;
mod matrix;
mod resident;
mod slow;
mod stacks;
#[path = "../support/mod.rs"]
#[allow(
    dead_code,
    reason = "shared with the command line tests, which use another part of it"
)]
mod support;
mod target;
mod truth;
