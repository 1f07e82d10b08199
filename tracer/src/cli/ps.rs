//! `pyrobe ps`: the Python processes of this host, and what can be traced of each.

use std::sync::Arc;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::{CommandResult, args::Ps, output, target};
use crate::{
    discover::{MappedFile, ProcessInfo, processes},
    error::{Exit, UserError},
    images::{Image, Images},
    mode::Mode,
    plan::{Coverage, Plan},
    python::Allocator,
    symbolize::escape,
    units::Pid,
};

/// A row; stable in JSON.
#[derive(Debug, Serialize)]
struct Row {
    pid: Pid,
    exe: Option<String>,
    /// Version.
    python: Option<String>,
    image: String,
    build_id: Option<String>,
    /// `pymalloc`, `malloc`, ...
    allocator: Option<&'static str>,
    modes: Vec<ModeRow>,
    /// Why it has no heap mode, if it is traced; `null` if it has.
    heap_why_not: Option<&'static str>,
    container: Option<String>,
    command: String,
    /// Why it is not traced; `null` if it is.
    why_not: Option<String>,
}

/// What a mode would see of a process.
#[derive(Debug, Serialize)]
struct ModeRow {
    mode: &'static str,
    /// Percent of the allocator's copies that are probed; `null` if it could not be told.
    coverage: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Listed {
    rows: Vec<Row>,
}

/// Lists them.
pub(super) fn run(args: &Ps) -> CommandResult {
    let selection = target::selection(&args.target)?;
    let mut images = Images::default();
    let mut rows = Vec::new();
    let mut unreadable = 0_usize;
    let all = processes()
        .map_err(|error| UserError::new("cannot list the processes of this host").caused_by(error))?;
    for process in all {
        let named = args.target.pid.is_empty() || args.target.pid.contains(&process.pid.get());
        if !named || !selection.matches(&process) {
            continue;
        }
        match images.of_process(process.pid) {
            Ok(found) => {
                rows.extend(found.iter().map(|(image, mapped)| row(&process, image, mapped)));
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => unreadable += 1,
            // It is gone.
            Err(_) => {}
        }
    }
    // Root is refused only where another security mechanism hides a process; nothing can be done about that.
    let hidden = unreadable > 0 && !rustix::process::geteuid().is_root();
    if hidden {
        output::say(&format!(
            "warning: {unreadable} process(es) cannot be looked into\nhint: run as root"
        ));
    }
    let partial = if hidden { Exit::Partial } else { Exit::Done };
    let exit = if rows.is_empty() {
        Exit::NothingToTrace
    } else {
        partial
    };
    output::write(None, false, |out| {
        if args.listing.json {
            serde_json::to_writer_pretty(&mut *out, &Listed { rows })?;
            return writeln!(out);
        }
        if rows.is_empty() {
            let which = if target::is_given(&args.target) {
                "no such Python process is running"
            } else {
                "no Python process is running"
            };
            return writeln!(out, "{which}");
        }
        writeln!(out, "{}", table(&rows))
    })?;
    Ok(if args.listing.json && exit == Exit::NothingToTrace {
        Exit::Done
    } else {
        exit
    }
    .into())
}

fn row(process: &ProcessInfo, image: &Arc<Image>, mapped: &MappedFile) -> Row {
    let (python, build_id, (modes, heap_why_not), why_not) = match &image.runtime {
        Ok(runtime) => (
            Some(runtime.facts.version.to_string()),
            runtime.facts.build_id.clone(),
            modes(&runtime.plan),
            None,
        ),
        Err(why) => (None, None, Default::default(), Some(why.to_string())),
    };
    let words: Vec<String> = process
        .command_line
        .iter()
        .map(|word| escape(&word.to_string_lossy()))
        .collect();
    Row {
        pid: process.pid,
        exe: process.exe.as_ref().map(|path| escape(&path.to_string_lossy())),
        python,
        image: escape(&mapped.path.to_string_lossy()),
        build_id,
        allocator: image.allocator(process.pid, mapped).map(Allocator::name),
        modes,
        heap_why_not,
        container: process.container.clone(),
        command: words.join(" "),
        why_not,
    }
}

/// The modes that a process of this image can be recorded in, and why heap mode is none of them.
fn modes(plan: &Plan) -> (Vec<ModeRow>, Option<&'static str>) {
    let (heap, why_not) = match plan.heap() {
        Ok(heap) => (Some(heap), None),
        Err(why) => (None, Some(why)),
    };
    let heap = heap.map(|heap| ModeRow {
        mode: Mode::Heap.name(),
        coverage: Some(heap.coverage.percent()),
    });
    let allocs = ModeRow {
        mode: Mode::Allocs.name(),
        coverage: plan.coverage.map(Coverage::percent),
    };
    (heap.into_iter().chain([allocs]).collect(), why_not)
}

/// What a mode sees, for people.
fn seen(row: &Row, mode: Mode) -> String {
    let of_mode = row.modes.iter().find(|known| known.mode == mode.name());
    match (&row.why_not, of_mode) {
        (Some(why), _) => format!("no: {why}"),
        (None, None) => row
            .heap_why_not
            .map_or_else(|| "no".to_owned(), |why| format!("no: {why}")),
        (None, Some(mode)) => mode
            .coverage
            .map_or_else(|| "?".to_owned(), |percent| format!("{}%", percent.floor())),
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "PID",
        "PYTHON",
        "ALLOCATOR",
        "HEAP",
        "ALLOCS",
        "CONTAINER",
        "IMAGE",
        "COMMAND",
    ]);
    if let Some(width) = output::width() {
        table
            .set_width(width)
            .set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    }
    for row in rows {
        let container = row
            .container
            .as_deref()
            .map_or("-", |id| id.get(..12).unwrap_or(id));
        table.add_row([
            row.pid.to_string(),
            row.python.clone().unwrap_or_else(|| "?".to_owned()),
            row.allocator.unwrap_or("?").to_owned(),
            seen(row, Mode::Heap),
            row.why_not
                .as_ref()
                .map_or_else(|| seen(row, Mode::Allocs), |_| "no".to_owned()),
            container.to_owned(),
            row.image.clone(),
            row.command.chars().take(60).collect(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use tracer_ebpf::site::{Operand, Role, flag};

    use super::*;
    use crate::{
        plan::{Half, Placement, PlannedSite},
        units::{FileOffset, VirtAddr},
    };

    /// What the column of heap mode says of an image with one site.
    #[track_caller]
    fn check(role: Role, flags: u32, expected: &str) {
        let site = PlannedSite {
            role,
            function: VirtAddr(1),
            address: VirtAddr(1),
            offset: FileOffset(1),
            placement: Placement::SingleStep,
            half: Half::EntryOnly,
            flags,
            operand: Operand::default(),
            second: Operand::default(),
        };
        let (modes, heap_why_not) = modes(&Plan {
            sites: vec![site],
            large_frees: Vec::new(),
            domains: Vec::new(),
            coverage: None,
            references: Vec::new(),
            notes: Vec::new(),
        });
        let row = Row {
            pid: Pid(1),
            exe: None,
            python: None,
            image: String::new(),
            build_id: None,
            allocator: None,
            modes,
            heap_why_not,
            container: None,
            command: String::new(),
            why_not: None,
        };
        assert_eq!(seen(&row, Mode::Heap), expected);
        assert_eq!(seen(&row, Mode::Allocs), "?");
    }

    #[test]
    fn why_an_image_has_no_heap_mode_is_said() {
        check(Role::PoolRefill, 0, "100%");
        check(
            Role::ObjMalloc,
            0,
            "no: where its pools are acquired is not known",
        );
        check(
            Role::ObjMalloc,
            flag::MIMALLOC,
            "no: its allocator, mimalloc, has no pools",
        );
    }
}
