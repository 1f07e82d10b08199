//! `pyrobe record`: settings from arguments, and a summary at the end.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use tracer_ebpf::limits::{DEFAULT_RING_BYTES, HEAP_RING_BYTES};

use super::{
    CommandResult,
    args::{self, Record},
    log::program_level,
    output::say,
    target,
};
use crate::{
    bpf::Work,
    capture::{EndReason, Overwrite},
    error::{Exit, UserError},
    mode::Mode,
    record::{self, Files, LEAST_SIZE, Outcome, Settings, Target},
    report::format::{count, size},
};

/// Most percent of a process's time that heap mode takes unless the user says otherwise.
const DEFAULT_MAX_OVERHEAD: f64 = 2.0;

/// Records, and says how it went.
pub(super) fn run(args: &Record, verbose: u8) -> CommandResult {
    let settings = settings(args, verbose)?;
    if settings.output == Path::new("-") && std::io::stdout().is_terminal() {
        return Err(
            UserError::new("a capture is not for a terminal").hint("-o names a file, or send it into a pipe")
        );
    }
    let outcome = record::run(&settings, say)?;
    summary(&settings, &outcome);
    Ok(match outcome.exit_code {
        // The command's own code is passed through.
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None if outcome.reason == EndReason::Full => Exit::Partial.into(),
        // Nothing came that was meant.
        None if outcome.events == 0 && matches!(settings.target, Target::Selected(_)) => {
            Exit::NothingToTrace.into()
        }
        None => Exit::Done.into(),
    })
}

fn settings(args: &Record, verbose: u8) -> Result<Settings, UserError> {
    let target = if args.command.is_empty() {
        target::to_record(&args.target)?
    } else {
        Target::Command(args.command.clone())
    };
    let output = args.output.clone().unwrap_or_else(|| default_output(&target));
    let files = files(args, &output)?;
    Ok(Settings {
        mode: match args.mode {
            args::Mode::Heap => Mode::Heap,
            args::Mode::Allocs => Mode::Allocs,
        },
        target,
        output,
        overwrite: if args.force {
            Overwrite::Force
        } else {
            Overwrite::Refuse
        },
        duration: args.duration,
        max_size: args.max_size,
        files,
        audit_interval: args.audit_interval,
        max_overhead: args
            .max_overhead
            .or(match args.mode {
                args::Mode::Heap => Some(DEFAULT_MAX_OVERHEAD),
                args::Mode::Allocs => None,
            })
            .filter(|&percent| percent > 0.0),
        ring_bytes: args.ring_bytes.unwrap_or(match args.mode {
            args::Mode::Heap => HEAP_RING_BYTES,
            args::Mode::Allocs => DEFAULT_RING_BYTES,
        }),
        links: args.links,
        work: if args.empty { Work::Nothing } else { Work::Record },
        log_level: program_level(verbose),
    })
}

/// How often tallies are written unless the user says otherwise.
const SAVE_INTERVAL: Duration = Duration::from_mins(1);

/// What can only be told to be wrong once everything is known.
fn files(args: &Record, output: &Path) -> Result<Files, UserError> {
    if args.aggregate {
        return Ok(Files::Aggregated {
            every: args.save_interval.unwrap_or(SAVE_INTERVAL),
        });
    }
    let Some(keep) = args.rotate else {
        return Ok(Files::One);
    };
    if keep < 2 {
        return Err(UserError::new(format!(
            "--rotate {keep} would keep nothing whenever a file begins"
        ))
        .hint("keep 2 files or more; without --rotate there is one"));
    }
    let Some(size) = args.max_size else {
        return Err(UserError::new("--rotate needs to know how large a file may be")
            .hint("--max-size 100M --rotate 5 keeps the last 400 to 500 MiB"));
    };
    if size < LEAST_SIZE {
        return Err(UserError::new(format!(
            "--max-size {size} is too small for --rotate: each file repeats the stacks that its events name"
        ))
        .hint(format!("--max-size {LEAST_SIZE} or more")));
    }
    if output == Path::new("-") {
        return Err(
            UserError::new("--rotate needs files, and standard output is none")
                .hint("-o names the files: FILE.0001, FILE.0002, ..."),
        );
    }
    Ok(Files::Rotated { size, keep })
}

/// Like memray's: named after what is traced.
fn default_output(target: &Target) -> PathBuf {
    let own = std::process::id();
    PathBuf::from(match target {
        Target::WholeHost => format!("pyrobe-host.{own}.pyrobe"),
        Target::Selected(_) => format!("pyrobe-selected.{own}.pyrobe"),
        Target::Processes(pids) => {
            let pid = pids.first().copied().unwrap_or_default();
            format!("pyrobe-{pid}.{own}.pyrobe")
        }
        Target::Command(command) => {
            // The script, if one is named; otherwise the program.
            let name = command
                .iter()
                .skip(1)
                .map(Path::new)
                .find(|path| path.extension().is_some_and(|extension| extension == "py"))
                .or_else(|| command.first().map(Path::new))
                .and_then(Path::file_name)
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            format!("pyrobe-{name}.{own}.pyrobe")
        }
    })
}

fn summary(settings: &Settings, outcome: &Outcome) {
    for problem in &outcome.problems {
        say(&format!("warning: {problem}"));
    }
    if outcome.lost > 0 {
        say(&format!(
            "warning: {} record(s) were lost or not understood; every report says which",
            outcome.lost
        ));
    }
    if let Some(pid) = outcome.still_running {
        say(&format!("the command still runs, untraced, as process {pid}"));
    }
    if outcome.reason == EndReason::Full {
        say("the capture has reached its greatest size");
    }
    let newest = outcome.files.last().unwrap_or(&settings.output);
    let file = newest.display();
    let before = match outcome.files.len().saturating_sub(1) {
        0 => String::new(),
        before => format!(
            ", after {before} file(s) from {}",
            outcome.files.first().unwrap_or(newest).display()
        ),
    };
    say(&format!(
        "{} events, {} in {file}{before}",
        count(outcome.events),
        size(outcome.written.get())
    ));
    if outcome.events == 0 {
        say("hint: no Python process allocated while it was traced; `pyrobe ps` lists what can be traced");
    } else if settings.output != Path::new("-") {
        say(&format!(
            "hint: `pyrobe report table {file}` or `pyrobe report flamegraph {file} -o out.svg` shows it"
        ));
    }
}
