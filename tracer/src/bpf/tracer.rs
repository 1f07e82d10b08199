//! A tracer: the loaded programs, the images they are attached to, the tables and counters.

use std::{os::fd::AsFd as _, time::Duration};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{Program, RawTracePoint},
};
use aya_log::EbpfLogger;
use rustc_hash::FxHashSet;
use tracer_ebpf::{
    config::{Config, RuleKey, filter, target},
    layout::ImageLayout,
    limits::{MAX_IMAGES, MAX_SITES, SAMPLED_BLOCKS},
    process::ProcessState,
    reason::{REASONS, Reason},
    site::{
        PointKey, Role, Site,
        group::{self, GROUPS},
    },
};

use super::{
    BpfError, KernelFacts, LinkKind, RingReader,
    counters::{self, BYSTANDERS, LiveCounters, PROCESSES},
    groups::{Grouping, Groups},
    kernel,
    links::{Point, Probe, Programs, event_cookie},
    object::{self, POINTS, RING},
    rules::Rules,
};
use crate::{
    mode::Mode,
    plan::{Half, PlannedSite, group_of},
    units::{ImageId, Pid},
};

/// The programs' own log lines, read from the kernel with `flush` and handed to the `log` crate.
pub type ProgramLog = EbpfLogger<&'static dyn log::Log>;

/// Name of the map of what the kernel side is told.
pub(super) const CONFIG: &str = "CONFIG";

/// Which processes are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All that map a known image.
    WholeHost,
    /// These and their children.
    Processes(Vec<Pid>),
    /// Those that meet all the rules, and their children.
    Rules(Rules),
}

/// What the programs do at a hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// What they are for.
    #[default]
    Record,
    /// Nothing: for measuring what a hit costs without us.
    Nothing,
}

/// Groups of sites that do not stand from the start.
const fn waiting(mode: Mode) -> &'static [u32] {
    match mode {
        Mode::Heap => &[group::BLOCKS],
        Mode::Allocs => &[],
    }
}

/// How a tracer is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is looked at.
    pub mode: Mode,
    /// Whether groups of sites are to be taken off on their own.
    pub grouping: Grouping,
    /// Who is traced.
    pub target: Target,
    /// Bytes of the ring; a power of two, at least a page.
    pub ring_bytes: u32,
    /// Level of the programs' own log lines, `log::LevelFilter` as a number; 0 is off.
    pub log_level: u8,
    /// A way to attach other than the best one.
    pub links: Option<LinkKind>,
    /// What happens at a hit.
    pub work: Work,
}

/// The kernel's structures as values of maps.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: the types are `#[repr(C)]`, made of integers without padding (their sizes are asserted in the ABI).
unsafe impl Pod for Plain<Config> {}
// SAFETY: as above.
unsafe impl Pod for Plain<RuleKey> {}
// SAFETY: as above.
unsafe impl Pod for Plain<ImageLayout> {}
// SAFETY: as above.
unsafe impl Pod for Plain<Site> {}
// SAFETY: as above.
unsafe impl Pod for Plain<ProcessState> {}
// SAFETY: as above.
unsafe impl Pod for Plain<PointKey> {}

/// Loaded programs and what they are attached to. Dropping it takes every probe down.
pub struct Tracer {
    ebpf: Ebpf,
    programs: Programs,
    groups: Groups,
    config: Config,
    images: usize,
    sites: usize,
    /// Offsets of the points of each event, of whatever image.
    events: Vec<FxHashSet<u64>>,
}

impl Tracer {
    /// Loads everything and follows forks, execs and exits. Nothing is probed yet.
    pub fn load(kernel: &KernelFacts, settings: &Settings) -> Result<Self, BpfError> {
        Self::load_all(kernel, settings).map_err(|error| match kernel::release() {
            (release, true) => BpfError::TooOld {
                release,
                source: Box::new(error),
            },
            _ => error,
        })
    }

    fn load_all(kernel: &KernelFacts, settings: &Settings) -> Result<Self, BpfError> {
        let kind = settings.links.unwrap_or_else(|| LinkKind::best(kernel));
        let points = match kind {
            LinkKind::PerPoint => number(MAX_SITES),
            _ => 1,
        };
        let mut ebpf = object::load_maps(settings.ring_bytes, points, settings.log_level)?;
        let (filter, (rules, keys)) = match &settings.target {
            Target::WholeHost => (filter::ALL, (0, Vec::new())),
            Target::Processes(_) => (filter::LISTED, (0, Vec::new())),
            Target::Rules(rules) => (filter::RULES, rules.table()),
        };
        let config = Config {
            filter,
            rules,
            wake_at: settings.ring_bytes / 4,
            wake_mask: wake_mask(settings.ring_bytes),
            own_pid: std::process::id(),
            sample_mask: match settings.mode {
                Mode::Allocs => 0,
                Mode::Heap => SAMPLED_BLOCKS - 1,
            },
            ..kernel.offsets
        };
        array::<Config>(&mut ebpf, CONFIG, 0, config)?;
        let programs = match settings.work {
            Work::Record => Programs::load(&ebpf, kernel, kind)?,
            Work::Nothing => Programs::empty()?,
        };
        let mut tracer = Self {
            ebpf,
            programs,
            groups: Groups::without(waiting(settings.mode), settings.grouping),
            config,
            images: 0,
            sites: 0,
            events: Vec::new(),
        };
        for key in keys {
            hash(
                &mut tracer.ebpf,
                "RULES",
                |map: &mut HashMap<_, Plain<RuleKey>, u32>| map.insert(Plain(key), 1, 0),
            )?;
        }
        if let Target::Processes(pids) = &settings.target {
            for &pid in pids {
                tracer.add_target(pid)?;
            }
        }
        for (name, tracepoint) in [
            ("on_fork", "sched_process_fork"),
            ("on_exec", "sched_process_exec"),
            ("on_exit", "sched_process_exit"),
        ] {
            tracer.follow(name, &[tracepoint])?;
        }
        if settings.mode == Mode::Heap && settings.work == Work::Record {
            let (faults, mappings) = match tracer.links() {
                LinkKind::Session => ("on_fault", "on_mapping"),
                LinkKind::Multi | LinkKind::PerPoint => ("on_fault_old", "on_mapping_old"),
            };
            tracer.follow(faults, &["page_fault_user", "page_fault_kernel"])?;
            tracer.follow(mappings, &["vm_unmapped_area"])?;
        }
        Ok(tracer)
    }

    /// How probes are attached.
    pub fn links(&self) -> LinkKind {
        self.programs.kind()
    }

    /// Traces one more process and its children to come.
    pub fn add_target(&mut self, pid: Pid) -> Result<(), BpfError> {
        hash(&mut self.ebpf, "TARGETS", |map: &mut HashMap<_, u32, u64>| {
            map.insert(pid.get(), target::SELECTED, 0)
        })
    }

    /// Whether this process is traced whatever it runs: it was selected, or a process that made it.
    pub fn is_selected(&mut self, pid: Pid) -> bool {
        let verdict = hash(&mut self.ebpf, "TARGETS", |map: &mut HashMap<_, u32, u64>| {
            map.get(&pid.get(), 0)
        });
        verdict.is_ok_and(|verdict| verdict == target::SELECTED)
    }

    /// Stops tracing a process that runs a program whose arguments are at this address, until it becomes another.
    pub fn reject(&mut self, pid: Pid, arguments: u64) -> Result<(), BpfError> {
        hash(&mut self.ebpf, "TARGETS", |map: &mut HashMap<_, u32, u64>| {
            map.insert(pid.get(), arguments, 0)
        })?;
        // Its next hit finds no state, and so asks whether it is traced. There is none if it has not been hit.
        let _ = hash(
            &mut self.ebpf,
            PROCESSES,
            |map: &mut HashMap<_, u32, Plain<ProcessState>>| map.remove(&pid.get()),
        );
        Ok(())
    }

    /// Attaches the sites of an image to the file that `path` leads to. When this returns, every process that
    /// maps the file is traced, those to come too.
    pub fn attach(
        &mut self,
        path: &str,
        layout: &ImageLayout,
        sites: &[PlannedSite],
    ) -> Result<ImageId, BpfError> {
        if self.images >= MAX_IMAGES {
            return Err(BpfError::Full {
                what: "images",
                limit: MAX_IMAGES,
            });
        }
        if self.sites + sites.len() > MAX_SITES {
            return Err(BpfError::Full {
                what: "sites",
                limit: MAX_SITES,
            });
        }
        let image = ImageId(number(self.images));
        array(&mut self.ebpf, "IMAGES", image.get(), *layout)?;
        let mut points = Vec::with_capacity(sites.len());
        for (index, planned) in (self.sites..).zip(sites) {
            array(&mut self.ebpf, "SITES", number(index), planned.site(image))?;
            let mut event = 0;
            if self.links() == LinkKind::PerPoint {
                event = self.event_for(planned.offset.get());
                let key = PointKey {
                    cookie: event_cookie(event),
                    offset: planned.offset.get(),
                };
                hash(
                    &mut self.ebpf,
                    POINTS,
                    |map: &mut HashMap<_, Plain<PointKey>, u32>| map.insert(Plain(key), number(index), 0),
                )?;
            }
            let point = Point {
                offset: planned.offset.get(),
                cookie: index as u64,
                event,
                probe: probe(planned),
            };
            points.push((group_of(planned.role), point));
        }
        // The numbers are used up even if the links fail: a part of them may have been hit.
        self.images += 1;
        self.sites += sites.len();
        self.groups.add(&self.programs, path, image, points)?;
        Ok(image)
    }

    /// Number of an event that has no point at this offset yet, and has one now.
    fn event_for(&mut self, offset: u64) -> u32 {
        let free = self.events.iter().position(|taken| !taken.contains(&offset));
        let number = free.unwrap_or(self.events.len());
        if free.is_none() {
            self.events.push(FxHashSet::default());
        }
        if let Some(taken) = self.events.get_mut(number) {
            taken.insert(offset);
        }
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Images that are attached from here on may wait for [`Tracer::attach_gathered`].
    pub fn gather(&mut self) {
        self.groups.gather(self.programs.kind());
    }

    /// Attaches the images that wait; those that cannot be attached are returned.
    pub fn attach_gathered(&mut self) -> Vec<(ImageId, BpfError)> {
        self.groups.attach_gathered(&self.programs)
    }

    /// Puts a group of sites in place, in the images that are `wanted` at once. It is silent until [`Tracer::listen`].
    pub fn put_on(&mut self, group: u32, wanted: impl Fn(ImageId) -> bool) -> Result<(), BpfError> {
        self.mute(group, true);
        self.groups.put_on(&self.programs, group, wanted)
    }

    /// Hits of this group count from here on, everywhere at the same moment.
    pub fn listen(&mut self, group: u32) {
        self.mute(group, false);
    }

    /// Puts a group of sites that stands in place in all other images.
    pub fn complete(&mut self, group: u32) -> Result<(), BpfError> {
        self.groups.complete(&self.programs, group)
    }

    /// No hit of this group tells of a block from here on, but for calls that have begun; they are counted while its probes stand.
    pub fn silence(&mut self, group: u32) {
        self.mute(group, true);
    }

    /// Takes a group of sites off, in all images, silent from the first moment; the processor time that it took.
    pub fn take_off(&mut self, group: u32) -> Duration {
        self.silence(group);
        self.groups.take_off(group)
    }

    fn mute(&mut self, group: u32, is_muted: bool) {
        let bit = 1 << (group & (number(GROUPS) - 1));
        let muted = self.config.muted;
        self.config.muted = if is_muted { muted | bit } else { muted & !bit };
        if self.config.muted != muted {
            self.configure();
        }
    }

    /// Tells the kernel side what has changed: words that it reads one by one.
    fn configure(&mut self) {
        if let Err(error) = array::<Config>(&mut self.ebpf, CONFIG, 0, self.config) {
            tracing::warn!("the kernel side does not know what is wanted of it: {error}");
        }
    }

    /// The ring; can be taken once.
    pub fn take_ring(&mut self) -> Result<RingReader, BpfError> {
        let map = self.ebpf.take_map(RING).ok_or(BpfError::Missing {
            what: "map",
            name: RING,
        })?;
        RingBuf::<MapData>::try_from(map)
            .map(RingReader::new)
            .map_err(|source| BpfError::Map { name: RING, source })
    }

    /// The programs' log lines; can be taken once.
    pub fn take_log(&mut self) -> Option<ProgramLog> {
        EbpfLogger::init(&mut self.ebpf).ok()
    }

    /// Counters of the processes that run, and of those whose end could not be told.
    pub fn counters(&self) -> Result<Vec<LiveCounters>, BpfError> {
        let name = PROCESSES;
        let Some(Map::HashMap(map)) = self.ebpf.map(name) else {
            return Err(BpfError::Missing { what: "map", name });
        };
        counters::of_processes(map.fd().as_fd()).map_err(|error| BpfError::Map {
            name,
            source: MapError::IoError(error),
        })
    }

    /// Hits of processes that are not recorded and run what is probed; nothing else of them is counted.
    pub fn bystanders(&self) -> Result<Vec<LiveCounters>, BpfError> {
        if self.config.filter == filter::ALL {
            return Ok(Vec::new());
        }
        let name = BYSTANDERS;
        let Some(Map::LruHashMap(map)) = self.ebpf.map(name) else {
            return Err(BpfError::Missing { what: "map", name });
        };
        counters::of_bystanders(map.fd().as_fd()).map_err(|error| BpfError::Map {
            name,
            source: MapError::IoError(error),
        })
    }

    /// Losses that no process could be charged with, by reason.
    pub fn unattributed(&self) -> Result<[u64; REASONS], BpfError> {
        let name = "UNATTRIBUTED";
        let map = self
            .ebpf
            .map(name)
            .ok_or(BpfError::Missing { what: "map", name })?;
        let map = PerCpuArray::<_, u64>::try_from(map).map_err(|source| BpfError::Map { name, source })?;
        let mut sums = [0; REASONS];
        for (reason, sum) in Reason::ALL.into_iter().zip(&mut sums) {
            let values = map
                .get(&(reason as u32), 0)
                .map_err(|source| BpfError::Map { name, source })?;
            *sum = values.iter().sum();
        }
        Ok(sums)
    }

    /// Takes every probe down. The counters and the ring can still be read.
    ///
    /// From one moment on none has an effect, whichever is taken down first: an end without its beginning, or a block
    /// without its free, would be wrong figures.
    pub fn detach(&mut self) {
        self.config.stopped = 1;
        self.configure();
        self.groups.clear();
    }

    fn follow(&mut self, name: &'static str, tracepoints: &[&str]) -> Result<(), BpfError> {
        let program: &mut RawTracePoint = match self.ebpf.program_mut(name) {
            Some(Program::RawTracePoint(program)) => program,
            _ => {
                return Err(BpfError::Missing {
                    what: "program",
                    name,
                });
            }
        };
        program
            .load()
            .and_then(|()| {
                tracepoints
                    .iter()
                    .try_for_each(|tracepoint| program.attach(tracepoint).map(drop))
            })
            .map_err(|error| BpfError::Object { source: error.into() })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.detach();
    }
}

/// The program that a site is for.
fn probe(site: &PlannedSite) -> Probe {
    let needs_no_stack = matches!(
        site.role,
        Role::ObjFree
            | Role::RawFree
            | Role::CodeDealloc
            | Role::GuardedFree
            | Role::LibcFree
            | Role::LibcRealloc
            | Role::Untrack
    );
    match site.half {
        _ if needs_no_stack => Probe::Entry,
        Half::Within | Half::EntryOnly => Probe::Within,
        Half::EntryAndReturn => Probe::Call,
        Half::ReturnOnly => Probe::Return,
    }
}

/// How seldom a free looks at how full the ring is: often enough that several look between the mark and the end, even
/// in the smallest ring, and not more often than every 64th.
fn wake_mask(ring_bytes: u32) -> u32 {
    /// Bytes of its record in the ring.
    const EVENT: u32 = 48;
    (ring_bytes / EVENT / 16).clamp(1, 64).next_power_of_two() - 1
}

/// Does something with a hash map.
fn hash<'a, K: Pod, V: Pod, T>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    work: impl FnOnce(&mut HashMap<&'a mut MapData, K, V>) -> Result<T, MapError>,
) -> Result<T, BpfError> {
    let map = ebpf
        .map_mut(name)
        .ok_or(BpfError::Missing { what: "map", name })?;
    HashMap::try_from(map)
        .and_then(|mut map| work(&mut map))
        .map_err(|source| BpfError::Map { name, source })
}

/// Table sizes fit 32 bits; a number that does not is refused by the map.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn array<T: Copy + 'static>(ebpf: &mut Ebpf, name: &'static str, index: u32, value: T) -> Result<(), BpfError>
where
    Plain<T>: Pod,
{
    let map: &mut Map = ebpf
        .map_mut(name)
        .ok_or(BpfError::Missing { what: "map", name })?;
    Array::<_, Plain<T>>::try_from(map)
        .and_then(|mut map| map.set(index, Plain(value), 0))
        .map_err(|source| BpfError::Map { name, source })
}
