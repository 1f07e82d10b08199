//! Every interpreter on this machine; one that is missing is named, and one at least must be there.

use std::{fmt::Write as _, path::PathBuf};

use proptest::prelude::*;
use tracer_ebpf::layout::tstate;

use super::*;
use crate::plan::{Plan, function_sites, instruction_at, plan};

/// What is known of an interpreter from elsewhere: its version as it prints it, and its layout as debuggers see it.
struct Known {
    image: &'static str,
    version: &'static str,
    access: u32,
    /// `thread_id`, frame, code, back, instr, first line, file name, name, line table, first instruction, ASCII data.
    offsets: [u32; 11],
}

/// The offsets are from debug information of these builds, as a debugger prints them; not from this program's table.
const KNOWN: &[Known] = &[
    Known {
        image: "python3.9",
        version: "3.9.",
        access: tstate::RUNTIME,
        offsets: [176, 24, 32, 24, 104, 40, 104, 112, 120, 0, 48],
    },
    Known {
        image: "python3.10",
        version: "3.10.",
        access: tstate::RUNTIME,
        offsets: [176, 24, 32, 24, 96, 40, 104, 112, 120, 0, 48],
    },
    Known {
        image: "python3.11",
        version: "3.11.",
        access: tstate::RUNTIME,
        offsets: [152, 56, 32, 48, 56, 72, 112, 128, 136, 184, 48],
    },
    Known {
        image: "python3.12",
        version: "3.12.",
        access: tstate::DTV,
        offsets: [136, 56, 0, 8, 56, 68, 112, 128, 136, 192, 40],
    },
    Known {
        image: "python3.13",
        version: "3.13.",
        access: tstate::DTV,
        offsets: [152, 72, 0, 8, 56, 68, 112, 128, 136, 200, 40],
    },
    Known {
        image: "python3.14",
        version: "3.14.",
        access: tstate::DTV,
        offsets: [152, 72, 0, 8, 56, 68, 112, 128, 136, 208, 40],
    },
    Known {
        image: "python3.15",
        version: "3.15.",
        access: tstate::DTV,
        offsets: [176, 72, 0, 8, 56, 68, 112, 128, 136, 208, 40],
    },
];

/// Directories in which interpreters and their libraries are looked for: the system's, other roots' (a colon
/// separated list in `PYROBE_TEST_ROOTS`), pyenv's.
pub(crate) fn images() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = Vec::new();
    let roots = std::env::var_os("PYROBE_TEST_ROOTS").unwrap_or_default();
    for root in std::iter::once(PathBuf::from("/")).chain(std::env::split_paths(&roots)) {
        directories
            .extend(["usr/bin", "usr/local/lib", "usr/lib/x86_64-linux-gnu"].map(|part| root.join(part)));
    }
    let pyenv = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let pyenv = pyenv.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv")));
    let versions = pyenv.and_then(|root| std::fs::read_dir(root.join("versions")).ok());
    directories.extend(
        versions
            .into_iter()
            .flatten()
            .flatten()
            .map(|version| version.path().join("lib")),
    );
    let is_image = |name: &str| {
        let name = name.strip_prefix("lib").unwrap_or(name);
        let Some(rest) = name.strip_prefix("python3.") else {
            return false;
        };
        rest.strip_suffix(".so.1.0")
            .unwrap_or(rest)
            .bytes()
            .all(|byte| byte.is_ascii_digit())
    };
    let mut images: Vec<PathBuf> = directories
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.is_file()
                && path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(is_image)
        })
        .collect();
    images.sort();
    images
}

/// All runtimes found that are supported, with the bytes of their files.
pub(crate) fn runtimes() -> Vec<(PathBuf, Vec<u8>, ImageFacts)> {
    let mut found = Vec::new();
    for path in images() {
        let data = std::fs::read(&path).unwrap();
        match examine(&data) {
            Ok(facts) => found.push((path, data, facts)),
            Err(why @ (WhyNot::NotRuntime | WhyNot::TooOld { .. })) => println!("{}: {why}", path.display()),
            Err(why) => panic!("{}: {why}", path.display()),
        }
    }
    assert!(!found.is_empty(), "no CPython 3.9 to 3.15 on this machine");
    found
}

#[test]
fn every_interpreter_has_the_layout_that_debuggers_see() {
    for (path, _, facts) in runtimes() {
        let layout = &facts.layout;
        let is_shared = facts.kind == ImageKind::SharedLibrary;
        let name = format!("python3.{}", facts.version.minor);
        assert!(
            path.to_string_lossy().contains(&name),
            "{} says {}",
            path.display(),
            facts.version
        );
        assert_eq!(layout.version_hex, facts.version.hex());
        let known = KNOWN.iter().find(|known| known.image == name).unwrap();
        assert!(facts.version.to_string().starts_with(known.version));
        let window = layout.frame_window;
        let offsets = [
            layout.tstate_window + layout.tstate_thread_id,
            layout.tstate_window + layout.tstate_frame,
            layout.frame_code + window,
            layout.frame_back + window,
            layout.frame_instr + window,
            layout.code_first_line,
            layout.code_filename,
            layout.code_qualname,
            layout.code_line_table,
            layout.code_first_instr,
            layout.str_ascii_data,
        ];
        assert_eq!(offsets, known.offsets, "{}", path.display());
        match (known.access, is_shared) {
            (tstate::DTV, true) => assert!(
                [tstate::DTV, tstate::DTV_LOCAL].contains(&layout.tstate_access),
                "{}: {}",
                path.display(),
                layout.tstate_access
            ),
            (tstate::DTV, false) => {
                assert_eq!(layout.tstate_access, tstate::FS_OFFSET);
                assert!(layout.tstate_arg < 0, "below the thread pointer");
            }
            (access, _) => assert_eq!(layout.tstate_access, access),
        }
    }
}

#[test]
fn frames_fit_the_window_and_owners_are_known_since_3_12() {
    for (path, _, facts) in runtimes() {
        let layout = &facts.layout;
        let window = u32::try_from(tracer_ebpf::limits::FRAME_WINDOW).unwrap();
        let instr_bytes = if layout.frame_instr_is_pointer == 0 { 4 } else { 8 };
        assert!(
            layout.frame_code + 8 <= window && layout.frame_back + 8 <= window,
            "{}",
            path.display()
        );
        assert!(
            layout.frame_instr + instr_bytes <= window && layout.frame_owner < window,
            "{}",
            path.display()
        );
        assert_eq!(
            layout.frame_owner_skip,
            if facts.version.minor >= 12 { 3 } else { 256 }
        );
        assert_eq!(layout.frame_instr_shift, u32::from(facts.version.minor == 10));
        assert_eq!(
            layout.pool_bytes,
            if facts.version.minor == 9 { 4096 } else { 16384 }
        );
    }
}

#[test]
fn functions_are_the_ones_that_kept_symbols_name() {
    let mut compared = 0;
    for (path, data, facts) in runtimes() {
        let elf = Elf::parse(&data).unwrap();
        let names = [
            "_PyMem_RawMalloc",
            "_PyMem_RawCalloc",
            "_PyMem_RawRealloc",
            "_PyMem_RawFree",
        ];
        let raw = elf.local(names);
        let names = [
            "_PyObject_Malloc",
            "_PyObject_Calloc",
            "_PyObject_Realloc",
            "_PyObject_Free",
        ];
        let obj = elf.local(names);
        let [dealloc] = elf.local(["code_dealloc"]);
        let found = facts
            .functions
            .raw
            .into_iter()
            .chain(facts.functions.obj)
            .chain(facts.code_dealloc);
        for (function, symbol) in found.zip(raw.into_iter().chain(obj).chain([dealloc])) {
            if let Some(symbol) = symbol {
                assert_eq!(function, symbol.address, "{}", path.display());
                compared += 1;
            }
        }
        let [table_raw, table_mem, table_obj] = elf.local(["_PyMem_Raw", "_PyMem", "_PyObject"]);
        for (table, symbol) in [
            (facts.tables.raw, table_raw),
            (facts.tables.mem, table_mem),
            (facts.tables.obj, table_obj),
        ] {
            if let Some(symbol) = symbol {
                assert_eq!(table, symbol.address, "{}", path.display());
                compared += 1;
            }
        }
        assert_eq!(facts.notes, [""; 0], "{}", path.display());
    }
    println!("{compared} addresses agree with symbols");
}

#[test]
fn prints_facts() {
    let mut text = String::new();
    for (path, data, facts) in runtimes() {
        let elf = Elf::parse(&data).unwrap();
        let plan = function_sites(&facts, &elf);
        describe(&mut text, &path.to_string_lossy(), &facts, &elf, &plan);
    }
    println!("{text}");
}

fn describe(text: &mut String, path: &str, facts: &ImageFacts, elf: &Elf<'_>, plan: &Plan) {
    let layout = &facts.layout;
    writeln!(
        text,
        "{path}: {} {:?} {}",
        facts.version,
        facts.kind,
        facts.build_id.as_deref().unwrap_or("-")
    )
    .unwrap();
    writeln!(
        text,
        "  tstate {} {:#x} tables {:x?}",
        layout.tstate_access, layout.tstate_arg, facts.tables
    )
    .unwrap();
    for site in &plan.sites {
        writeln!(
            text,
            "  {:<11} {} at {} {:?} flags {} {}",
            format!("{:?}", site.role),
            site.function,
            site.address,
            site.placement,
            site.flags,
            instruction_at(elf, site.address).unwrap()
        )
        .unwrap();
    }
    writeln!(text, "  {:?} {:?} {:?}", plan.coverage, facts.notes, plan.notes).unwrap();
}

/// The build without a GIL that `cargo xtask pythons` makes, if it is there.
pub(crate) fn free_threaded() -> Option<(Vec<u8>, ImageFacts)> {
    let cache = std::env::var_os("PYROBE_CACHE").map_or_else(|| "/var/cache/pyrobe".into(), PathBuf::from);
    let path = cache.join("pythons/free-threaded/bin/python3.13t");
    let Ok(data) = std::fs::read(&path) else {
        println!("skipped: no {}", path.display());
        return None;
    };
    let facts = examine(&data).unwrap();
    Some((data, facts))
}

#[test]
fn a_build_without_a_gil_has_longer_objects_and_another_allocator() {
    let Some((_, facts)) = free_threaded() else { return };
    assert_eq!(facts.gil, Gil::Disabled);
    let layout = &facts.layout;
    assert_eq!(
        [
            layout.bytes_size,
            layout.bytes_data,
            layout.str_length,
            layout.str_state,
            layout.str_ascii_data,
            layout.str_compact_data,
        ],
        [32, 48, 32, 48, 56, 72]
    );
    assert_eq!(layout.tstate_access, tstate::FS_OFFSET);
    assert!(facts.code_dealloc.is_some());
    let functions = facts.functions;
    assert!(
        functions
            .obj
            .iter()
            .chain(&functions.mem)
            .all(|function| !functions.raw.contains(function))
    );
    assert_ne!(functions.obj[0], functions.mem[0], "two heaps of the thread");
    assert!(facts.notes.is_empty(), "{:?}", facts.notes);
}

#[test]
fn other_files_are_told_apart() {
    let this = std::fs::read("/proc/self/exe").unwrap();
    assert_eq!(examine(&this).unwrap_err(), WhyNot::NotRuntime);
    assert!(!may_be_runtime(&Elf::parse(&this).unwrap()));
    assert_eq!(examine(b"").unwrap_err(), WhyNot::Elf(ElfError::NotElf));
}

#[test]
fn a_changed_layout_is_refused() {
    let Some((path, data, facts)) = runtimes()
        .into_iter()
        .find(|(_, _, facts)| facts.version.minor >= 13)
    else {
        println!("skipped: no CPython 3.13 or newer");
        return;
    };
    let elf = Elf::parse(&data).unwrap();
    let place = usize::try_from(elf.file_offset(VirtAddr(facts.layout.runtime)).unwrap().get()).unwrap();
    let check = |position: usize, value: u8, expected: &dyn Fn(&WhyNot) -> bool| {
        let mut forged = data.clone();
        *forged.get_mut(place + position).unwrap() = value;
        let why = examine(&forged).unwrap_err();
        assert!(expected(&why), "{}: {why}", path.display());
    };
    check(0, b'y', &|why| matches!(why, WhyNot::DebugOffsetsMissing { .. }));
    check(9, 99, &|why| matches!(why, WhyNot::LayoutMismatch { .. }));
    // Without a GIL the head of a string would be longer.
    check(16, 1, &|why| match facts.version.minor {
        13 => matches!(why, WhyNot::LayoutMismatch { .. }),
        _ => matches!(why, WhyNot::FreeThreaded { .. }),
    });
    check(47, 1, &|why| matches!(why, WhyNot::LayoutImplausible { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_damaged_interpreter_never_panics(
        cut in 0.0_f64..1.2,
        flips in proptest::collection::vec((0.0_f64..1.0, any::<u8>()), 0..200),
        heads in proptest::collection::vec((0_usize..0x2000, any::<u8>()), 0..20),
    ) {
        static SMALLEST: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let data = SMALLEST.get_or_init(|| {
            runtimes().into_iter().map(|(_, data, _)| data).min_by_key(Vec::len).unwrap()
        });
        let mut data = data.clone();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a random position")]
        let at = |share: f64| (data.len() as f64 * share) as usize;
        let places: Vec<(usize, u8)> = flips.iter().map(|(share, value)| (at(*share), *value)).chain(heads).collect();
        let length = at(cut);
        for (place, value) in places {
            if let Some(byte) = data.get_mut(place) {
                *byte = value;
            }
        }
        data.truncate(length);
        if let Ok(facts) = examine(&data) {
            let _ = plan(&facts, &Elf::parse(&data).unwrap());
        }
    }
}
