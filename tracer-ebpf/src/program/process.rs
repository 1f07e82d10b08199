//! Per-process state: found at every hit, made at the first, by the kernel side alone.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id},
    },
};
use tracer_ebpf::{
    config::{Config, RuleKey, filter, rule, target},
    limits::{MAX_CGROUP_DEPTH, MAX_COMMAND_LINE},
    process::{Mapped, ProcessState},
    reason::Reason,
    record::{Head, Process, chosen, kind},
    site::{Site, group::GROUPS},
};

use crate::{
    bystanders, clock,
    emit::{add, lose, lose_unattributed, reserve, submit_loudly},
    hit::Hit,
    loops::{Loops, Rounds},
    maps::{PROCESSES, RULES, TARGETS, config},
    memory::{self, Memory},
    opaque::forget,
    read,
};

/// The state of the current process, with the site's image mapped in it; `None` if the process is not traced, or the
/// site's group is muted. `ip` is the run-time address of the site.
#[inline(always)]
pub(crate) fn at_site<L: Loops>(hit: &Hit, ip: u64) -> Option<*mut ProcessState> {
    let (pid, site) = (hit.pid, hit.site);
    let bias = ip.wrapping_sub(site.address);
    let state = match PROCESSES.get_ptr_mut(pid) {
        Some(state) => state,
        None => match create::<L>(pid, site.image, bias) {
            Some(state) => state,
            None => {
                bystanders::count(pid, site.group);
                return None;
            }
        },
    };
    // SAFETY: a map value.
    if unsafe { (*state).unannounced } != 0 && announce_again::<L>(pid, site.image, bias) != 0 {
        // SAFETY: a map value.
        unsafe { (*state).unannounced = 0 };
    }
    count_hit(state, site);
    // SAFETY: a map value.
    let first = unsafe { (*state).images[0] };
    if first.id_plus_one != site.image + 1 || first.bias != bias {
        map_image(state, site.image, bias);
    }
    (!hit.is_muted()).then_some(state)
}

/// The state of the current process if it has one (the second half of a call).
#[inline(always)]
pub(crate) fn known(pid: u32, site: &Site) -> Option<*mut ProcessState> {
    let state = PROCESSES.get_ptr_mut(pid)?;
    count_hit(state, site);
    Some(state)
}

#[inline(always)]
fn count_hit(state: *mut ProcessState, site: &Site) {
    let group = site.group as usize & (GROUPS - 1);
    // SAFETY: a map value; the index is masked.
    add(unsafe { (&raw mut (*state).hits).cast::<u64>().add(group) }, 1);
}

/// Load bias of an image in a process.
#[inline(always)]
pub(crate) fn bias_of(state: *mut ProcessState, image: u32) -> u64 {
    // SAFETY: a map value.
    let images = unsafe { &(*state).images };
    if images[1].id_plus_one == image + 1 {
        images[1].bias
    } else {
        images[0].bias
    }
}

/// Notes where an image is mapped. A second image at most: an embedding program, or a static python that
/// loads libpython too.
#[inline(always)]
fn map_image(state: *mut ProcessState, image: u32, bias: u64) {
    // SAFETY: a map value.
    let images = unsafe { &mut (*state).images };
    let mapped = Mapped {
        id_plus_one: image + 1,
        reserved: 0,
        bias,
    };
    if images[0].id_plus_one == 0 || images[0].id_plus_one == image + 1 {
        images[0] = mapped;
    } else if images[1].id_plus_one == 0 || images[1].id_plus_one == image + 1 {
        images[1] = mapped;
    } else {
        lose(state, Reason::TooManyImages);
    }
}

/// One of [`chosen`]'s constants; `None` if the current process is not traced.
#[inline(always)]
fn wanted<L: Loops>(config: &Config, pid: u32) -> Option<u8> {
    if pid == config.own_pid {
        return None;
    }
    if config.filter == filter::ALL {
        return Some(chosen::SELECTED);
    }
    // SAFETY: a lookup; the value is copied at once.
    match unsafe { TARGETS.get(pid) }.copied() {
        Some(target::SELECTED) => return Some(chosen::SELECTED),
        Some(rejected) if arguments(config).is_some_and(|[start, _]| start == rejected) => return None,
        _ => {}
    }
    if config.filter == filter::LISTED || !meets_rules::<L>(config) {
        return None;
    }
    if config.rules & rule::EXECUTABLE != 0 {
        return Some(chosen::PROVISIONAL);
    }
    // What has been selected stays selected, and its children are.
    let _ = TARGETS.insert(pid, target::SELECTED, 0);
    Some(chosen::SELECTED)
}

/// Whether the current process meets every kind of rule that the kernel side can judge.
#[inline(always)]
fn meets_rules<L: Loops>(config: &Config) -> bool {
    let asked = |kind: u32| config.rules & kind != 0;
    if asked(rule::USER) && !listed(rule::USER, u64::from(effective_user(config))) {
        return false;
    }
    if !asked(rule::CGROUP | rule::CONTAINER) {
        return true;
    }
    let mut missing = config.rules & (rule::CGROUP | rule::CONTAINER);
    let mut level = 0;
    let mut rounds = Rounds::<L>::new(MAX_CGROUP_DEPTH, config.zero);
    while rounds.next() {
        // SAFETY: the helper has no preconditions; 0 where there is no such level.
        let group = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        level += 1;
        if group == 0 {
            break;
        }
        for kind in [rule::CGROUP, rule::CONTAINER] {
            if missing & kind != 0 && listed(kind, group) {
                missing &= !kind;
            }
        }
    }
    missing == 0
}

#[inline(always)]
fn listed(kind: u32, value: u64) -> bool {
    let key = RuleKey {
        kind,
        reserved: 0,
        value,
    };
    // SAFETY: a lookup; the value is not kept.
    unsafe { RULES.get(key) }.is_some()
}

/// Effective user of the current process, in the initial user namespace.
#[inline(always)]
fn effective_user(config: &Config) -> u32 {
    read::kernel::<u64>(read::task() + u64::from(config.task_cred))
        .and_then(|cred| read::kernel::<u32>(cred + u64::from(config.cred_euid)))
        .unwrap_or(u32::MAX)
}

/// Where the arguments of the current process begin and end.
#[inline(always)]
fn arguments(config: &Config) -> Option<[u64; 2]> {
    let mm = read::kernel::<u64>(read::task() + u64::from(config.task_mm))?;
    read::kernel(mm + u64::from(config.mm_arg_start))
}

/// Start time of the current process.
#[inline(always)]
fn start_ns(config: &Config) -> Option<u64> {
    let leader: u64 = read::kernel(read::task() + u64::from(config.task_group_leader))?;
    read::kernel(leader + u64::from(config.task_start))
}

/// Two functions, one after the other: the stacks of one call chain must not take more than 512 bytes together, and
/// kernels before 6.13 count those of the probe program in.
#[inline(always)]
fn create<L: Loops>(pid: u32, image: u32, bias: u64) -> Option<*mut ProcessState> {
    let start = admit::<L>(pid);
    if start == 0 {
        return None;
    }
    insert(pid, image, bias, start);
    PROCESSES.get_ptr_mut(pid)
}

/// Sends the record of the current process, as often as it takes: no event of the process precedes it. Two threads may
/// both send one: they are equal. Returns not 0 if it was sent.
///
/// That is no constant: the compiler would tell it from the reservation by a second comparison with null, and kernels
/// like 6.1 do not know that it comes out as the first did.
#[inline(never)]
fn announce_again<L: Loops>(pid: u32, image: u32, bias: u64) -> u64 {
    let Some(config) = config() else {
        return 0;
    };
    let (Some(chosen), Some(start)) = (wanted::<L>(config, pid), start_ns(config)) else {
        return 0;
    };
    announce(config, pid, image, bias, start, chosen)
}

/// Start time of the current process; 0 if it is not traced.
#[inline(never)]
fn admit<L: Loops>(pid: u32) -> u64 {
    let Some(config) = config() else {
        return 0;
    };
    if wanted::<L>(config, pid).is_none() {
        return 0;
    }
    start_ns(config).unwrap_or(0)
}

/// Puts the state of a new process in the table. It is made in a place for working memory: it takes most of a program's
/// stack, and nobody may find it half made.
#[inline(never)]
fn insert(pid: u32, image: u32, bias: u64, start: u64) {
    let Some(memory) = memory::take(bpf_get_current_pid_tgid()) else {
        lose_unattributed(Reason::NoWorkplace);
        return;
    };
    // SAFETY: the place was taken, nothing else uses its room, and zeros are a state.
    let failed = unsafe {
        let state = Memory::room::<ProcessState>(memory);
        state.write_bytes(0, 1);
        (*state).start_ns = start;
        (*state).epoch = start;
        (*state).unannounced = 1;
        (*state).images[0] = Mapped {
            id_plus_one: image + 1,
            reserved: 0,
            bias,
        };
        PROCESSES.insert(pid, &*state, u64::from(BPF_NOEXIST)).is_err()
    };
    // SAFETY: as above; nothing uses it from here on.
    unsafe { Memory::give_back(memory) };
    if failed && PROCESSES.get_ptr(pid).is_none() {
        lose_unattributed(Reason::ProcessTableFull);
    }
}

/// Sends the record of a new process.
#[inline(always)]
fn announce(config: &Config, pid: u32, image: u32, bias: u64, start: u64, chosen: u8) -> u64 {
    let Some(mut entry) = reserve::<Process>() else {
        return 0;
    };
    let record = entry.as_mut_ptr();
    let task = read::task();
    let parent = read::kernel::<u64>(task + u64::from(config.task_real_parent))
        .and_then(|parent| read::kernel::<u32>(parent + u64::from(config.task_tgid)))
        .unwrap_or(0);
    // SAFETY: `record` is reserved ring memory of exactly this type.
    unsafe {
        (*record).head = Head {
            kind: kind::PROCESS,
            flags: chosen,
            len: size_of::<Process>() as u16,
            pid,
        };
        (*record).time_ns = clock::now();
        (*record).start_ns = start;
        (*record).parent = parent;
        (*record).image = image;
        (*record).bias = bias;
        (*record).uid = effective_user(config);
        (*record).cgroup = bpf_get_current_cgroup_id();
        (*record).comm = bpf_get_current_comm().unwrap_or([0; 16]);
        (*record).command_line_len = command_line(config, &raw mut (*record).command_line);
    }
    // What userspace adds to it, it reads while the process lives.
    submit_loudly(entry);
    forget(1, config.nothing)
}

/// Copies the process's arguments; bytes copied. What is behind them is left as it is.
#[inline(always)]
unsafe fn command_line(config: &Config, to: *mut [u8; MAX_COMMAND_LINE]) -> u32 {
    let Some([start, end]) = arguments(config) else {
        return 0;
    };
    let mut len = end.wrapping_sub(start);
    if len > MAX_COMMAND_LINE as u64 {
        len = MAX_COMMAND_LINE as u64;
    }
    // SAFETY: `len` is at most the size of `to`.
    unsafe { read::user_bytes(to.cast(), len as u32, start) }
}
