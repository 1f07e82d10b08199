//! What the programs must know of the running kernel, from its own type information (BTF).
//!
//! Rust eBPF has no CO-RE relocations, so offsets are looked up here and handed over in a map.

use btf_rs::{Backend, Btf, BtfType as _, Type};
use tracer_ebpf::{config::Config, kfunc};

use super::BpfError;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const PROBE_OFFSET: &str = "trace_uprobe.offset";

/// The oldest kernel: attach cookies.
pub const OLDEST: (u32, u32) = (5, 15);

/// The running kernel's release, and whether it is older than [`OLDEST`]. Vendors backport: only what does not work
/// is a reason to refuse it.
pub fn release() -> (String, bool) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let too_old = version(&release) < OLDEST;
    (release, too_old)
}

/// The first two numbers of a release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Offsets of kernel structures, and the ids of kernel functions.
#[derive(Clone, Debug)]
pub struct KernelFacts {
    /// The offsets, in the form the programs take; filter and marks are not filled in. Those for probe events are 0 on a
    /// kernel that has no such structures.
    pub offsets: Config,
    /// BTF id of each of `tracer_ebpf::kfunc::ALL`, where the kernel has it.
    pub kfuncs: Vec<(u32, Option<u32>)>,
}

impl KernelFacts {
    /// Reads the running kernel's BTF.
    pub fn read() -> Result<Self, BpfError> {
        let btf = open().map_err(|error| BpfError::NoBtf {
            path: VMLINUX,
            source: error.into(),
        })?;
        let thread = member(&btf, "task_struct", "thread", "task_struct.thread")?;
        let fs_base = member(&btf, "thread_struct", "fsbase", "thread_struct.fsbase")?;
        let task = |name, field| member(&btf, "task_struct", name, field);
        let offsets = Config {
            task_fs_base: thread + fs_base,
            task_group_leader: task("group_leader", "task_struct.group_leader")?,
            // Named real_start_time before 5.5.
            task_start: task("start_boottime", "task_struct.start_boottime")?,
            task_real_parent: task("real_parent", "task_struct.real_parent")?,
            task_tgid: task("tgid", "task_struct.tgid")?,
            task_pid: task("pid", "task_struct.pid")?,
            task_mm: task("mm", "task_struct.mm")?,
            task_signal: task("signal", "task_struct.signal")?,
            task_cred: task("cred", "task_struct.cred")?,
            cred_euid: member(&btf, "cred", "euid", "cred.euid")?,
            signal_live: member(&btf, "signal_struct", "live", "signal_struct.live")?,
            mm_arg_start: member(&btf, "mm_struct", "arg_start", "mm_struct.arg_start")?,
            unmapped_area_length: member(
                &btf,
                "vm_unmapped_area_info",
                "length",
                "vm_unmapped_area_info.length",
            )?,
            task_utask: task("utask", "task_struct.utask").unwrap_or(0),
            utask_vaddr: member(&btf, "uprobe_task", "vaddr", "uprobe_task.vaddr").unwrap_or(0),
            probe_offset: member(&btf, "trace_uprobe", "offset", PROBE_OFFSET).unwrap_or(0),
            ..Config::default()
        };
        let kfuncs = kfunc::ALL
            .iter()
            .map(|&(number, name)| (number, function(&btf, name)))
            .collect();
        Ok(Self { offsets, kfuncs })
    }

    /// Whether a probe of an event can be told from the others.
    pub fn check_events(&self) -> Result<(), BpfError> {
        let Config {
            task_utask,
            utask_vaddr,
            probe_offset,
            ..
        } = self.offsets;
        // None of them is the first of its structure.
        if [task_utask, utask_vaddr, probe_offset].contains(&0) {
            return Err(BpfError::NoField { field: PROBE_OFFSET });
        }
        Ok(())
    }

    /// Whether session programs can be loaded: the kernel has all that they call.
    pub fn has_session_functions(&self) -> bool {
        self.kfuncs.iter().all(|(_, id)| id.is_some())
    }
}

/// In place where the kernel can map it (6.16 and newer): a copy is parsed whole, which takes some 100 ms.
fn open() -> Result<Btf, btf_rs::Error> {
    Btf::from_file_with_backend(VMLINUX, Backend::Mmap).or_else(|_| Btf::from_file(VMLINUX))
}

/// BTF id of a kernel function.
fn function(btf: &Btf, name: &str) -> Option<u32> {
    let ids = btf.resolve_ids_by_name(name).ok()?;
    ids.into_iter()
        .find(|&id| matches!(btf.resolve_type_by_id(id), Ok(Type::Func(_))))
}

/// Byte offset of a member of a structure, members of anonymous structures and unions included.
fn member(btf: &Btf, structure: &str, name: &str, field: &'static str) -> Result<u32, BpfError> {
    let missing = BpfError::NoField { field };
    let Ok(types) = btf.resolve_types_by_name(structure) else {
        return Err(missing);
    };
    types
        .iter()
        .find_map(|found| match found {
            Type::Struct(found) if !found.members.is_empty() => member_of(btf, &found.members, name, 0, 0),
            _ => None,
        })
        .ok_or(missing)
}

/// Anonymous members nest a few levels at most.
const MAX_NESTING: u32 = 8;

fn member_of(btf: &Btf, members: &[btf_rs::Member], name: &str, base: u32, nesting: u32) -> Option<u32> {
    if nesting > MAX_NESTING {
        return None;
    }
    members.iter().find_map(|member| {
        let offset = base + member.bit_offset() / 8;
        match btf.resolve_name(member) {
            Ok(found) if found == name => Some(offset),
            Ok(found) if !found.is_empty() => None,
            _ => match btf.resolve_type_by_id(member.get_type_id()?) {
                Ok(Type::Struct(inner) | Type::Union(inner)) => {
                    member_of(btf, &inner.members, name, offset, nesting + 1)
                }
                _ => None,
            },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_version() {
        assert_eq!(version("5.10.0-32-cloud-amd64"), (5, 10));
        assert_eq!(version("6.18.44-fc-v595"), (6, 18));
        assert_eq!(version("7.2.13+deb14-amd64"), (7, 2));
        assert_eq!(version("6.1-rc1"), (6, 1));
        assert_eq!(version("unknown"), (0, 0));
    }
}
