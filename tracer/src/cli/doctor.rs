//! `pyrobe doctor`: what this host can do, and how to mend what it cannot.

use std::path::Path;

use serde::Serialize;

use super::{
    CommandResult,
    args::Listing,
    doctor_recordings::{self, Recording},
    output,
};
use crate::{
    bpf::{self, KernelFacts, Tracer},
    discover::{Search, well_known_images},
    error::Exit,
    images::Images,
    record::placement,
    symbolize::escape,
};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    found: String,
    /// How to mend it.
    hint: Option<String>,
}

/// An installed interpreter.
#[derive(Debug, Serialize)]
struct Interpreter {
    image: String,
    python: Option<String>,
    coverage: Option<f64>,
    placement: Vec<String>,
    why_not: Option<String>,
}

#[derive(Debug, Serialize)]
struct Findings {
    checks: Vec<Check>,
    /// Nanoseconds of a probe hit on this host; `null` if it could not be measured.
    hit_cost_ns: Option<f64>,
    /// Those of other pyrobes that run now.
    recordings: Vec<Recording>,
    /// Why they are not known; `null` if they are.
    recordings_unknown: Option<String>,
    interpreters: Vec<Interpreter>,
}

/// Capabilities that are needed, with their bits.
const NEEDED: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_PERFMON", 38), ("CAP_SYS_PTRACE", 19)];
const CAP_SYS_ADMIN: u32 = 21;

/// Looks at everything; exit code 2 if recording is not possible.
pub(super) fn run(args: &Listing) -> CommandResult {
    let mut checks = vec![kernel(), capabilities()];
    let mut hit_cost_ns = None;
    match KernelFacts::read() {
        Ok(kernel) => {
            checks.push(good("kernel type information (BTF)", "readable".to_owned()));
            let settings = bpf::Settings {
                mode: crate::mode::Mode::Heap,
                grouping: bpf::Grouping::Together,
                target: bpf::Target::Processes(Vec::new()),
                ring_bytes: 1 << 16,
                log_level: 0,
                links: None,
                work: bpf::Work::Record,
            };
            match Tracer::load(&kernel, &settings) {
                Ok(tracer) => {
                    checks.push(good("eBPF programs", "the kernel takes them".to_owned()));
                    let links = tracer.links();
                    let hint = match links {
                        bpf::LinkKind::Session => None,
                        bpf::LinkKind::Multi => Some("from kernel 6.13 on, calls cost less".to_owned()),
                        bpf::LinkKind::PerPoint => {
                            Some("from kernel 6.6 on, hits cost less and tracefs is not needed".to_owned())
                        }
                    };
                    checks.push(Check {
                        name: "links",
                        ok: true,
                        found: links.to_string(),
                        hint,
                    });
                    match bpf::hit_cost() {
                        Ok(cost) => {
                            hit_cost_ns = Some(cost);
                            checks.push(good(
                                "cost of a probe hit",
                                format!("{cost:.0} ns, with an empty program on an emulated instruction"),
                            ));
                        }
                        Err(_) if links == bpf::LinkKind::PerPoint => checks.push(good(
                            "cost of a probe hit",
                            "not measured: that takes links of kernel 6.6".to_owned(),
                        )),
                        // It says nothing of interpreters, which are other files than this program's.
                        Err(error) => checks.push(good(
                            "cost of a probe hit",
                            format!("not measured: {}", chain(&error)),
                        )),
                    }
                }
                Err(error) => checks.push(bad("eBPF programs", &error, error.hint())),
            }
        }
        Err(error) => checks.push(bad("kernel type information (BTF)", &error, error.hint())),
    }
    let all_well = checks.iter().all(|check| check.ok);
    let (recordings, recordings_unknown) = match doctor_recordings::running(hit_cost_ns) {
        Ok(recordings) => (recordings, None),
        Err(error) => (Vec::new(), Some(chain(&error))),
    };
    let findings = Findings {
        checks,
        hit_cost_ns,
        recordings,
        recordings_unknown,
        interpreters: interpreters(),
    };
    output::write(None, false, |out| {
        if args.json {
            serde_json::to_writer_pretty(&mut *out, &findings)?;
            return writeln!(out);
        }
        text(&findings, out)
    })?;
    Ok(if all_well { Exit::Done } else { Exit::Failed }.into())
}

fn good(name: &'static str, found: String) -> Check {
    Check {
        name,
        ok: true,
        found,
        hint: None,
    }
}

fn bad(name: &'static str, error: &dyn std::error::Error, hint: &str) -> Check {
    Check {
        name,
        ok: false,
        found: chain(error),
        hint: Some(hint.to_owned()),
    }
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut found = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        found.push_str(": ");
        found.push_str(&error.to_string());
        cause = error.source();
    }
    found
}

fn kernel() -> Check {
    let (release, too_old) = bpf::release();
    if !too_old {
        return good("kernel", release);
    }
    Check {
        name: "kernel",
        ok: false,
        found: release,
        hint: Some(format!(
            "{}.{} is the oldest that offers attach cookies",
            bpf::OLDEST.0,
            bpf::OLDEST.1
        )),
    }
}

fn capabilities() -> Check {
    let Ok(set) = rustix::thread::capabilities(None) else {
        return Check {
            name: "capabilities",
            ok: false,
            found: "unknown".to_owned(),
            hint: None,
        };
    };
    let bits = set.effective.bits();
    let has = |bit: u32| bits >> bit & 1 == 1;
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(_, bit)| !has(*bit) && !has(CAP_SYS_ADMIN))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return good("capabilities", "all that are needed".to_owned());
    }
    Check {
        name: "capabilities",
        ok: false,
        found: format!("without {}", missing.join(", ")),
        hint: Some("run as root, or give the program these capabilities".to_owned()),
    }
}

fn interpreters() -> Vec<Interpreter> {
    let mut images = Images::default();
    let path = std::env::var_os("PATH");
    let search = Search::host(std::env::var_os("LD_LIBRARY_PATH").as_deref());
    let files = well_known_images(path.as_deref(), &search);
    files
        .iter()
        .filter_map(|file| interpreter(&mut images, file))
        .collect()
}

fn interpreter(images: &mut Images, file: &Path) -> Option<Interpreter> {
    let image = images.of_file(file).ok()??;
    let path = escape(&file.to_string_lossy());
    Some(match &image.runtime {
        Ok(runtime) => Interpreter {
            image: path,
            python: Some(runtime.facts.version.to_string()),
            coverage: runtime.plan.coverage.map(crate::plan::Coverage::percent),
            placement: placement(runtime),
            why_not: None,
        },
        Err(why) => Interpreter {
            image: path,
            python: None,
            coverage: None,
            placement: Vec::new(),
            why_not: Some(why.to_string()),
        },
    })
}

fn text(findings: &Findings, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    for check in &findings.checks {
        writeln!(
            out,
            "{} {}: {}",
            if check.ok { "ok  " } else { "FAIL" },
            check.name,
            check.found
        )?;
        if let Some(hint) = &check.hint {
            writeln!(out, "     hint: {hint}")?;
        }
    }
    doctor_recordings::text(&findings.recordings, findings.recordings_unknown.as_deref(), out)?;
    writeln!(out, "\ninstalled interpreters")?;
    if findings.interpreters.is_empty() {
        writeln!(out, "  none on PATH")?;
    }
    for interpreter in &findings.interpreters {
        match (&interpreter.python, &interpreter.why_not) {
            (Some(python), _) => {
                let coverage = interpreter
                    .coverage
                    .map_or("unknown".to_owned(), |percent| format!("{}%", percent.floor()));
                writeln!(
                    out,
                    "  {} (Python {python}): allocs mode sees {coverage} of the allocator's copies",
                    interpreter.image
                )?;
                for line in &interpreter.placement {
                    writeln!(out, "      {line}")?;
                }
            }
            (None, why) => {
                writeln!(
                    out,
                    "  {}: not traced: {}",
                    interpreter.image,
                    why.as_deref().unwrap_or("unknown")
                )?;
            }
        }
    }
    Ok(())
}
