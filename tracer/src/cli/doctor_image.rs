//! `pyrobe doctor --image FILE`: what is probed in a file, and the proof of what that covers.
//!
//! Needs no privilege and no kernel: it reads the file. Every reference to the allocator is listed with the
//! site that covers it or the reason why none does (all of them with `-v`, otherwise those that are not covered).

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

use comfy_table::{Table, presets};
use serde::Serialize;
use tracer_ebpf::site::{Role, group};

use super::{CommandResult, output};
use crate::{
    error::{Exit, UserError},
    images::Images,
    plan::{Covered, Plan, Reference, ReferenceKind, group_of},
    record::placement,
    symbolize::escape,
};

/// A file that was looked at.
#[derive(Debug, Serialize)]
struct Examined {
    image: String,
    python: String,
    build_id: Option<String>,
    /// Of the references that matter, those that a site covers, percent; `null` if there is no proof for this build.
    coverage: Option<f64>,
    sites: usize,
    references: Vec<Row>,
    placement: Vec<String>,
    /// What tells heap mode of acquisitions of pools, or why there is none.
    heap: String,
}

/// A reference to the allocator.
#[derive(Debug, Serialize)]
struct Row {
    /// Link-time address of the instruction that refers.
    address: String,
    kind: &'static str,
    /// `site`, `elsewhere` or `unmatched`.
    covered: &'static str,
    /// Link-time address of the site.
    site: Option<String>,
    why: Option<&'static str>,
}

/// Looks at the files; exit code 3 if something in one of them is not covered.
pub(super) fn run(files: &[PathBuf], json: bool, all: bool) -> CommandResult {
    let mut images = Images::default();
    let examined = files
        .iter()
        .map(|file| examine(&mut images, file))
        .collect::<Result<Vec<_>, _>>()?;
    let whole = examined
        .iter()
        .all(|image| image.coverage.is_some() && image.unmatched().next().is_none());
    output::write(None, false, |out| {
        if json {
            serde_json::to_writer_pretty(&mut *out, &serde_json::json!({ "images": examined }))?;
            return writeln!(out);
        }
        text(&examined, all, out)
    })?;
    Ok(if whole { Exit::Done } else { Exit::Partial }.into())
}

fn examine(images: &mut Images, file: &Path) -> Result<Examined, UserError> {
    let name = escape(&file.to_string_lossy());
    let image = images
        .of_file(file)
        .map_err(|error| UserError::new(format!("cannot read {name}")).caused_by(error))?
        .ok_or_else(|| {
            UserError::new(format!("{name} holds no Python runtime"))
                .hint("name the interpreter, or its libpython3.x.so if it has one")
        })?;
    let runtime = image
        .runtime
        .as_ref()
        .map_err(|why| UserError::new(format!("{name} is not traced: {why}")))?;
    Ok(Examined {
        image: name,
        python: runtime.facts.version.to_string(),
        build_id: runtime.facts.build_id.clone(),
        coverage: runtime
            .plan
            .coverage
            .filter(|_| !runtime.plan.references.is_empty())
            .map(crate::plan::Coverage::percent),
        sites: runtime.plan.sites.len(),
        references: rows(&runtime.plan),
        placement: placement(runtime),
        heap: heap(&runtime.plan),
    })
}

/// By which sites heap mode sees that pools are acquired.
fn heap(plan: &Plan) -> String {
    let sites = match plan.heap() {
        Ok(heap) => heap.sites,
        Err(why) => return format!("no heap mode: {why}"),
    };
    let mut counts: BTreeMap<Role, usize> = BTreeMap::new();
    for site in sites.iter().filter(|site| group_of(site.role) == group::POOLS) {
        *counts.entry(site.role).or_default() += 1;
    }
    let counts = counts
        .iter()
        .map(|(role, count)| format!("{count} {role:?} site(s)"));
    format!("heap mode: pools by {}", counts.collect::<Vec<_>>().join(", "))
}

fn rows(plan: &Plan) -> Vec<Row> {
    let row = |reference: &Reference| {
        let (covered, site, why) = match reference.covered {
            Covered::Site(site) => ("site", Some(site.to_string()), None),
            Covered::Elsewhere(why) => ("elsewhere", None, Some(why)),
            Covered::Unmatched(why) => ("unmatched", None, Some(why)),
        };
        Row {
            address: reference.address.to_string(),
            kind: name(reference.kind),
            covered,
            site,
            why,
        }
    };
    plan.references.iter().map(row).collect()
}

const fn name(kind: ReferenceKind) -> &'static str {
    match kind {
        ReferenceKind::Refill => "refill",
        ReferenceKind::Allocation => "allocation",
        ReferenceKind::Free => "free",
        ReferenceKind::Raw => "raw",
        ReferenceKind::ArenaTree => "arena tree",
        ReferenceKind::PoolList => "pool list",
    }
}

impl Examined {
    fn unmatched(&self) -> impl Iterator<Item = &Row> {
        self.references.iter().filter(|row| row.covered == "unmatched")
    }

    /// References of a kind that a site covers, and all that matter.
    fn matched(&self, kind: &str) -> String {
        let of = |covered| {
            let rows = self.references.iter();
            rows.filter(|row| row.kind == kind && row.covered == covered)
                .count()
        };
        let (sites, unmatched) = (of("site"), of("unmatched"));
        format!("{sites} of {}", sites + unmatched)
    }
}

fn text(examined: &[Examined], all: bool, out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header([
        "Image",
        "Python",
        "Refills",
        "Allocations",
        "Frees",
        "Pool lists",
        "Raw",
        "Sites",
        "Coverage",
    ]);
    for image in examined {
        let coverage = image.coverage.map_or("no proof".to_owned(), |percent| {
            format!("{:.1}%", (percent * 10.0).floor() / 10.0)
        });
        table.add_row([
            image.image.clone(),
            image.python.clone(),
            image.matched("refill"),
            image.matched("allocation"),
            image.matched("free"),
            image.matched("pool list"),
            image.matched("raw"),
            image.sites.to_string(),
            coverage,
        ]);
    }
    writeln!(out, "{table}")?;
    for image in examined {
        writeln!(out, "\n{} (Python {})", image.image, image.python)?;
        for line in image.placement.iter().chain([&image.heap]) {
            writeln!(out, "  {line}")?;
        }
        let mut elsewhere: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for row in &image.references {
            match (row.covered, &row.site, row.why) {
                ("elsewhere", _, Some(why)) if !all => *elsewhere.entry((row.kind, why)).or_default() += 1,
                ("site", ..) if !all => {}
                (covered, site, why) => writeln!(
                    out,
                    "  {} {}: {covered} {}",
                    row.address,
                    row.kind,
                    site.as_deref().or(why).unwrap_or_default()
                )?,
            }
        }
        for ((kind, why), count) in elsewhere {
            writeln!(out, "  {count} {kind} references: {why}")?;
        }
    }
    Ok(())
}
