//! Where the program's own log lines go: standard error, more of them with `-v`.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Starts logging. `PYROBE_LOG` overrides `-v`, with the syntax of tracing's filters.
pub(super) fn start(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder()
        .with_env_var("PYROBE_LOG")
        .with_default_directive(level.into())
        .from_env_lossy();
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
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
