//! The embedded eBPF object: maps and tracepoints through aya, probe programs through `raw`.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_insn;

use super::{
    BpfError, KernelFacts,
    raw::{self, Attach},
};

#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../tracer-ebpf/object/pyrobe-x86_64.o");

/// Name of the ring's map.
pub(super) const RING: &str = "RING";

/// Name of the map from probes of events to sites.
pub(super) const POINTS: &str = "POINTS";

/// Number of an opcode's `call`.
const CALL: u8 = 0x85;
/// `src_reg` of a call to a kernel function.
const PSEUDO_KFUNC_CALL: u8 = 2;

/// CRC-32 of the embedded object, to tell in a bug report which one it was.
pub fn object_checksum() -> u32 {
    crc32fast::hash(OBJECT)
}

/// Creates the maps, one of them with room for so many probes of events, and parses the programs that aya is to load.
pub(super) fn load_maps(ring_bytes: u32, points: u32, log_level: u8) -> Result<Ebpf, BpfError> {
    let mut loader = EbpfLoader::new();
    // No BTF: the programs have none, and parsing the kernel's would cost twice.
    loader.btf(None);
    loader.override_global("AYA_LOG_LEVEL", &log_level, false);
    loader.map_max_entries(RING, ring_bytes);
    loader.map_max_entries(POINTS, points);
    loader
        .load(OBJECT)
        .map_err(|error| BpfError::Object { source: error.into() })
}

/// Loads one program in a way that aya has not.
pub(super) fn load_program(
    ebpf: &Ebpf,
    kernel: &KernelFacts,
    name: &'static str,
    attach: Attach,
) -> Result<OwnedFd, BpfError> {
    let mut object =
        aya_obj::Object::parse(OBJECT).map_err(|error| BpfError::Object { source: error.into() })?;
    let text_sections: HashSet<usize> = object.functions.keys().map(|&(section, _)| section).collect();
    let maps: Vec<_> = object
        .maps
        .drain()
        .filter_map(|(name, map)| {
            let fd = map_fd(ebpf, &name)?;
            Some((name, fd, map))
        })
        .collect();
    object
        .relocate_maps(
            maps.iter().map(|(name, fd, map)| (name.as_str(), *fd, map)),
            &text_sections,
        )
        .and_then(|()| object.relocate_calls(&text_sections))
        .map_err(|error| BpfError::Object { source: error.into() })?;
    let missing = BpfError::Missing {
        what: "program",
        name,
    };
    let program = object.programs.get(name).ok_or(missing)?;
    let function = object
        .functions
        .get(&program.function_key())
        .ok_or(BpfError::Missing {
            what: "program",
            name,
        })?;
    let mut instructions = function.instructions.clone();
    resolve_kfuncs(&mut instructions, kernel);
    raw::load(name, &instructions, &program.license, attach).map_err(|(source, log)| BpfError::Refused {
        program: name,
        verdict: last_lines(&log),
        source,
    })
}

/// The descriptor of a map that aya made.
fn map_fd(ebpf: &Ebpf, name: &str) -> Option<i32> {
    use aya::maps::Map;
    let (Map::Array(map)
    | Map::HashMap(map)
    | Map::LruHashMap(map)
    | Map::PerCpuArray(map)
    | Map::RingBuf(map)) = ebpf.map(name)?
    else {
        return None;
    };
    Some(map.fd().as_fd().as_raw_fd())
}

/// Puts kernel functions in the place of the numbers that stand for them.
fn resolve_kfuncs(instructions: &mut [bpf_insn], kernel: &KernelFacts) {
    for instruction in instructions {
        if instruction.code != CALL || instruction.src_reg() != 0 {
            continue;
        }
        let found = kernel
            .kfuncs
            .iter()
            .find(|(number, _)| i32::try_from(*number) == Ok(instruction.imm));
        if let Some((_, Some(id))) = found {
            instruction.set_src_reg(PSEUDO_KFUNC_CALL);
            instruction.imm = id.cast_signed();
        }
    }
}

/// The verifier says at the end what it does not like.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(12).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
