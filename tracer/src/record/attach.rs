//! Which images are attached: those that run, those that a command will run, those that appear.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustc_hash::FxHashMap;
use rustix::time::{ClockId, clock_gettime};
use tracer_ebpf::site::Role;

use crate::{
    bpf::{BpfError, Tracer},
    capture::ImageRecord,
    discover::{FileIdentity, Mapping, Search, processes, resolve_command, well_known_images},
    elf::ImageKind,
    images::{Image, Images},
    mode::Mode,
    plan::{Placement, Plan, PlannedSite},
    units::{ImageId, MonotonicNs, Pid},
};

/// Now, on the clock of the events.
pub(super) fn now() -> MonotonicNs {
    let now = clock_gettime(ClockId::Monotonic);
    let nanos =
        u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
    MonotonicNs(nanos)
}

/// Interpreters that are installed are looked at before anything is recorded, up to this many: more take too long.
/// Beyond that it is done meanwhile, and what the first process of one may have done before is told.
const BEFORE_READY: usize = 12;

/// How an image came to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// As a file; no process is known that maps it.
    Installed,
    /// In a process that ran before.
    Running,
    /// When a process mapped it, then.
    Mapped(MonotonicNs),
}

/// An image that is to be attached.
pub(super) struct Found {
    image: Arc<Image>,
    seen: Seen,
}

impl Found {
    /// Whether there is something to probe.
    pub(super) fn can_be_traced(&self) -> bool {
        self.image.runtime.is_ok()
    }
}

/// Images and the numbers under which they are attached.
#[derive(Default)]
pub(super) struct Attached {
    mode: Mode,
    images: Images,
    /// By identity, because a file can be seen through several file systems. `None`: it cannot be traced.
    numbers: FxHashMap<FileIdentity, Option<ImageId>>,
    records: Vec<ImageRecord>,
    /// Of each of those.
    seen: Vec<Seen>,
    /// Files that are still being looked at; and when one of them was mapped first by a process that was gone before its
    /// file could be asked for.
    expected: FxHashMap<PathBuf, Option<MonotonicNs>>,
    problems: Vec<String>,
}

impl Attached {
    /// Nothing yet.
    pub(super) fn new(mode: Mode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// The images attached so far.
    pub(super) fn records(&self) -> &[ImageRecord] {
        &self.records
    }

    /// What went wrong since the last call.
    pub(super) fn take_problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }

    /// Finds what processes run; those in `only`, if it is given. Attaches nothing. The processes are those that
    /// run Python.
    pub(super) fn running(&mut self, only: Option<&[Pid]>) -> (Vec<Pid>, Vec<Found>) {
        self.images.begin_scan();
        let pids: Vec<Pid> = match only {
            Some(pids) => pids.to_vec(),
            None => processes()
                .map(|found| found.map(|process| process.pid).collect())
                .unwrap_or_default(),
        };
        let mut python = Vec::new();
        let mut all = Vec::new();
        for pid in pids {
            // It may be gone; then there is nothing to attach.
            let Ok(found) = self.images.of_process(pid) else {
                continue;
            };
            python.extend((!found.is_empty()).then_some(pid));
            all.extend(found.into_iter().map(|(image, _)| Found {
                image,
                seen: Seen::Running,
            }));
        }
        (python, all)
    }

    /// The attached image that a process maps, and its load bias there.
    pub(super) fn mapped(&mut self, pid: Pid) -> Option<(ImageId, u64)> {
        let found = self.images.of_process(pid).ok()?;
        found.iter().find_map(|(image, mapped)| {
            let number = self.numbers.get(&image.identity).copied().flatten()?;
            Some((number, image.bias(&mapped.ranges)?))
        })
    }

    /// Finds what a command line will run: the command, or one that stands behind wrappers such as `env`,
    /// `timeout` or `chroot DIR`. Where that cannot be told (a script that starts it), what is usually installed.
    pub(super) fn of_command(&mut self, command: &[OsString]) -> Vec<Found> {
        let path = std::env::var_os("PATH");
        let search = Search::host(std::env::var_os("LD_LIBRARY_PATH").as_deref());
        let roots = command
            .iter()
            .map(Path::new)
            .filter(|word| word.is_absolute() && word.is_dir());
        let inside: Vec<OsString> = roots
            .flat_map(|root| {
                let programs = command
                    .iter()
                    .map(Path::new)
                    .filter_map(|word| word.strip_prefix("/").ok());
                programs.map(|program| root.join(program).into_os_string())
            })
            .collect();
        for word in command.iter().chain(&inside) {
            let Ok(resolved) = resolve_command(word, path.as_deref(), &search) else {
                continue;
            };
            let files: Vec<PathBuf> = resolved
                .libpython
                .into_iter()
                .chain([resolved.executable])
                .collect();
            let found = self.files(&files);
            if found.iter().any(|found| found.image.runtime.is_ok()) {
                return found;
            }
        }
        self.files(&well_known_images(path.as_deref(), &search))
    }

    /// Finds the interpreters that are installed where people install them; with them, the files that are to be looked at
    /// later.
    pub(super) fn installed(&mut self) -> (Vec<Found>, Vec<PathBuf>) {
        let path = std::env::var_os("PATH");
        let search = Search::host(std::env::var_os("LD_LIBRARY_PATH").as_deref());
        let mut now = well_known_images(path.as_deref(), &search);
        let later = now.split_off(now.len().min(BEFORE_READY));
        self.expected = later.iter().map(|path| (path.clone(), None)).collect();
        (self.files(&now), later)
    }

    fn files(&mut self, files: &[PathBuf]) -> Vec<Found> {
        let images = self.images.of_files(files).into_iter();
        images
            .map(|image| Found {
                image,
                seen: Seen::Installed,
            })
            .collect()
    }

    /// Attaches an installed interpreter that was looked at meanwhile. Returns the new image's record, if there is one.
    pub(super) fn late(
        &mut self,
        tracer: &mut Tracer,
        image: &Arc<Image>,
    ) -> Result<Option<ImageRecord>, BpfError> {
        let mapped = self.expected.remove(&image.path).flatten();
        let before = self.records.len();
        self.attach(tracer, image, mapped.map_or(Seen::Installed, Seen::Mapped))?;
        Ok(self.records.get(before).cloned())
    }

    /// The interpreters that ran and were not looked at in time, with the time when one first ran.
    pub(super) fn missed(&self) -> impl Iterator<Item = (&Path, MonotonicNs)> {
        self.expected
            .iter()
            .filter_map(|(path, mapped)| Some((path.as_path(), (*mapped)?)))
    }

    /// If a process mapped an attached image before its probes stood, and that is heard of only now: the record that
    /// says so.
    fn mapped_before(&mut self, image: &Image, mapped: MonotonicNs) -> Option<ImageRecord> {
        let number = (*self.numbers.get(&image.identity)?)?;
        let mut known = self.records.iter_mut().zip(&self.seen);
        let (record, seen) = known.find(|(record, _)| record.id == number)?;
        let gap = record.attached.get().checked_sub(mapped.get());
        // What ran before the recording has missed more than that.
        if *seen == Seen::Running || gap <= record.attach_gap_ns.or(Some(0)) {
            return None;
        }
        record.attach_gap_ns = gap;
        Some(record.clone())
    }

    /// Attaches what was found.
    pub(super) fn attach_all(&mut self, tracer: &mut Tracer, found: &[Found]) -> Result<(), BpfError> {
        let before = self.records.len();
        tracer.gather();
        let done = found
            .iter()
            .try_for_each(|Found { image, seen }| self.attach(tracer, image, *seen).map(drop));
        // Those before one that has no room, too.
        let failed = tracer.attach_gathered();
        let attached = now();
        for record in self.records.iter_mut().skip(before) {
            record.attached = attached;
        }
        for (id, error) in failed {
            self.forget(id, &error);
        }
        done
    }

    /// An image turns out not to be attached.
    fn forget(&mut self, id: ImageId, error: &BpfError) {
        let Some(place) = self.records.iter().position(|record| record.id == id) else {
            return;
        };
        self.seen.remove(place);
        let record = self.records.remove(place);
        for number in self.numbers.values_mut().filter(|number| **number == Some(id)) {
            *number = None;
        }
        self.problems
            .push(cannot_be_probed(Path::new(&record.path), error));
    }

    /// Attaches what a process has just mapped. Returns the new image's record, if there is one.
    pub(super) fn mapping(
        &mut self,
        tracer: &mut Tracer,
        mapping: &Mapping,
    ) -> Result<Option<ImageRecord>, BpfError> {
        let Some(image) = self.images.of_mapping(mapping) else {
            if let Some(mapped) = self.expected.get_mut(&mapping.path) {
                mapped.get_or_insert(mapping.time);
            }
            return Ok(None);
        };
        if let Some(record) = self.mapped_before(&image, mapping.time) {
            return Ok(Some(record));
        }
        let before = self.records.len();
        self.attach(tracer, &image, Seen::Mapped(mapping.time))?;
        Ok(self.records.get(before).cloned())
    }

    /// Forgets which mapping showed which file.
    pub(super) fn begin_scan(&mut self) {
        self.images.begin_scan();
    }

    fn attach(
        &mut self,
        tracer: &mut Tracer,
        image: &Arc<Image>,
        seen: Seen,
    ) -> Result<Option<ImageId>, BpfError> {
        if let Some(known) = self.numbers.get(&image.identity) {
            return Ok(*known);
        }
        let runtime = match &image.runtime {
            Ok(runtime) => runtime,
            Err(why) => {
                let problem = format!("{} is not traced: {why}", image.path.display());
                match seen {
                    // Nobody asked for it.
                    Seen::Installed => tracing::debug!("{problem}"),
                    Seen::Running | Seen::Mapped(_) => self.problems.push(problem),
                }
                self.numbers.insert(image.identity, None);
                return Ok(None);
            }
        };
        let start = std::time::Instant::now();
        let sites = match sites(&runtime.plan, self.mode) {
            Ok(sites) => sites,
            Err(why) => {
                let path = image.path.display();
                self.problems
                    .push(format!("{path} has no heap mode, --mode allocs may do: {why}"));
                self.numbers.insert(image.identity, None);
                return Ok(None);
            }
        };
        let number = match tracer.attach(&image.kernel_path(), &runtime.facts.layout, &sites) {
            Ok(number) => number,
            Err(error @ BpfError::Attach { .. }) => {
                // One image that cannot be probed does not stop the others.
                self.problems.push(cannot_be_probed(&image.path, &error));
                self.numbers.insert(image.identity, None);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        tracing::debug!(
            "{}: probes in place in {:?}",
            image.path.display(),
            start.elapsed()
        );
        let attached = now();
        let gap = match seen {
            Seen::Mapped(appeared) => Some(attached.get().saturating_sub(appeared.get())),
            Seen::Installed | Seen::Running => None,
        };
        self.numbers.insert(image.identity, Some(number));
        self.records.push(record(image, number, attached, gap, self.mode));
        self.seen.push(seen);
        Ok(Some(number))
    }
}

fn cannot_be_probed(path: &Path, error: &BpfError) -> String {
    let cause = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    format!("{} cannot be probed: {cause}", path.display())
}

/// What is to be probed in a mode; why nothing is.
fn sites(plan: &Plan, mode: Mode) -> Result<Cow<'_, [PlannedSite]>, &'static str> {
    match mode {
        Mode::Allocs => Ok(Cow::Borrowed(&plan.sites)),
        Mode::Heap => {
            let heap = plan.heap()?;
            Ok(Cow::Owned([heap.sites, heap.windows].concat()))
        }
    }
}

fn record(image: &Image, id: ImageId, attached: MonotonicNs, gap: Option<u64>, mode: Mode) -> ImageRecord {
    let mut record = ImageRecord {
        id,
        path: image.path.to_string_lossy().into_owned(),
        attached,
        attach_gap_ns: gap,
        ..ImageRecord::default()
    };
    if let Ok(runtime) = &image.runtime {
        let facts = &runtime.facts;
        facts.version.to_string().clone_into(&mut record.version);
        record.version_hex = facts.version.hex();
        record.pool_bytes = facts.layout.pool_bytes;
        record.build_id = facts.build_id.clone().unwrap_or_default();
        record.kind = match facts.kind {
            ImageKind::SharedLibrary => "library".to_owned(),
            ImageKind::Executable | ImageKind::PositionIndependent => "executable".to_owned(),
        };
        record.placement = placement(runtime);
        let coverage = match mode {
            Mode::Allocs => runtime.plan.coverage,
            Mode::Heap => runtime.plan.heap().ok().map(|heap| heap.coverage),
        };
        if let Some(coverage) = coverage {
            record.coverage_resolved = coverage.resolved;
            record.coverage_copies = coverage.copies;
        }
    }
    record
}

/// Where the probes stand, in words: how many of each role, and each one that is dear.
pub(crate) fn placement(runtime: &crate::images::Runtime) -> Vec<String> {
    let sites = &runtime.plan.sites;
    let mut cheap: BTreeMap<Role, usize> = BTreeMap::new();
    for site in sites {
        if matches!(site.placement, Placement::Emulated { .. }) {
            *cheap.entry(site.role).or_default() += 1;
        }
    }
    let cheap = cheap.into_iter().map(|(role, count)| match count {
        1 => format!("{role:?}: on an emulated instruction"),
        _ => format!("{role:?}: {count} sites, on emulated instructions"),
    });
    let dear = sites
        .iter()
        .filter(|site| site.placement == Placement::SingleStep)
        .map(|site| format!("{:?} at {}: single step (dear)", site.role, site.address));
    cheap
        .chain(dear)
        .chain(runtime.plan.notes.iter().cloned())
        .chain(runtime.facts.notes.iter().cloned())
        .collect()
}
