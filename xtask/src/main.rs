//! `cargo xtask COMMAND`: everything a maintainer runs.

fn main() {}
