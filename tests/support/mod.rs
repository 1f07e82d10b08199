//! What all black-box tests share: running pyrobe, real interpreters, workloads, and reading reports.
//!
//! The tests know pyrobe only as a program: its arguments, streams, exit codes and files. Nothing here sleeps
//! to wait for something: targets and recordings say when they are ready.

pub(crate) mod arenas;
pub(crate) mod capture;
pub(crate) mod collapsed;
pub(crate) mod embedding;
pub(crate) mod expected;
pub(crate) mod groups;
pub(crate) mod interpreters;
pub(crate) mod recording;
pub(crate) mod records;
pub(crate) mod run;
pub(crate) mod skip;
pub(crate) mod target;
