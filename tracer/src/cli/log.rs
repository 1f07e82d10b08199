//! Where the program's own log lines go: standard error, more of them with `-v`.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging. `PYROBE_LOG` overrides `-v`, with the syntax of tracing's filters.
pub(super) fn start(verbose: u8) {
    // Our own lines and those of the eBPF programs; the libraries' only when they warn.
    let ours = match verbose {
        0 => "warn",
        1 => "warn,pyrobe=debug,pyrobe_ebpf=debug",
        _ => "info,pyrobe=trace,pyrobe_ebpf=trace",
    };
    let filter = match std::env::var("PYROBE_LOG") {
        Ok(filter) => EnvFilter::new(filter),
        Err(_) => EnvFilter::new(ours),
    };
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .try_init();
    // Fails only if something has started it before, which then serves.
    drop(started);
}

/// The level of the eBPF programs' own lines, as a number of `log::LevelFilter`.
pub(super) const fn program_level(verbose: u8) -> u8 {
    match verbose {
        0 => 0,
        1 => 4,
        _ => 5,
    }
}
