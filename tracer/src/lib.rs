//! pyrobe: what every Python process on a Linux host allocates, keeps and leaks, from outside.
//!
//! The stages, in the order in which data flows: `discover` -> `elf`, `python` -> `plan` -> `bpf` -> (kernel)
//! -> `ingest` -> `symbolize` -> `profile` -> `report`. A stage never reaches back. `replay` takes a capture from
//! `ingest` to `profile`; `cli` wires them.

pub mod bpf;
pub mod capture;
pub mod cli;
pub mod discover;
pub mod elf;
pub mod error;
pub mod images;
pub mod ingest;
pub mod mode;
pub mod plan;
pub mod profile;
pub mod python;
pub mod record;
pub mod replay;
pub mod report;
pub mod symbolize;
pub mod units;
