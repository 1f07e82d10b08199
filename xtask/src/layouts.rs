//! `cargo xtask layouts [--check]`: regenerates the layout table of CPython versions from their headers.
//!
//! A small C program with `offsetof` is compiled against each set of headers that is found: those of installed
//! interpreters, and those named in `PYROBE_CPYTHON_INCLUDE` (directories that hold `Python.h`, separated by
//! colons). Two sets of one minor version must agree, or the table is wrong to know minor versions only.

use std::{
    collections::BTreeMap,
    error::Error,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const TABLE: &str = "tracer/src/python/layout_table.rs";
const MINORS: std::ops::RangeInclusive<u32> = 9..=15;

/// Field of the generated constant, and the C expression that gives it.
type Fields = &'static [(&'static str, &'static str)];

const STRINGS: Fields = &[
    ("str_ascii_data", "sizeof(PyASCIIObject)"),
    ("str_compact_data", "sizeof(PyCompactUnicodeObject)"),
    ("str_ascii_bit", "state_bit(ascii)"),
    ("str_kind_shift", "state_bit(kind)"),
    ("tp_dealloc", "offsetof(PyTypeObject, tp_dealloc)"),
    ("tp_members", "offsetof(PyTypeObject, tp_members)"),
];

const BEFORE_3_11: Fields = &[
    (
        "runtime_check",
        "offsetof(_PyRuntimeState, gilstate.tstate_current)",
    ),
    (
        "runtime_interp_head",
        "offsetof(_PyRuntimeState, interpreters.head)",
    ),
    ("interp_next", "offsetof(PyInterpreterState, next)"),
    ("interp_threads", "offsetof(PyInterpreterState, tstate_head)"),
    ("tstate_next", "offsetof(PyThreadState, next)"),
    ("tstate_thread_id", "offsetof(PyThreadState, thread_id)"),
    ("tstate_frame", "offsetof(PyThreadState, frame)"),
    ("tstate_status", "0"),
    ("cframe_current", "0"),
    ("frame_code", "offsetof(PyFrameObject, f_code)"),
    ("frame_back", "offsetof(PyFrameObject, f_back)"),
    ("frame_instr", "offsetof(PyFrameObject, f_lasti)"),
    ("frame_owner", "0"),
    ("frame_owner_skip", "0"),
    ("code_first_instr", "0"),
    ("code_filename", "offsetof(PyCodeObject, co_filename)"),
    ("code_qualname", "offsetof(PyCodeObject, co_name)"),
    ("code_first_line", "offsetof(PyCodeObject, co_firstlineno)"),
];

const CODE_3_11: Fields = &[
    ("code_first_instr", "offsetof(PyCodeObject, co_code_adaptive)"),
    ("code_filename", "offsetof(PyCodeObject, co_filename)"),
    ("code_qualname", "offsetof(PyCodeObject, co_qualname)"),
    ("code_first_line", "offsetof(PyCodeObject, co_firstlineno)"),
    ("code_line_table", "offsetof(PyCodeObject, co_linetable)"),
];

const STATES_3_11: Fields = &[
    (
        "runtime_interp_head",
        "offsetof(_PyRuntimeState, interpreters.head)",
    ),
    ("interp_next", "offsetof(PyInterpreterState, next)"),
    ("interp_threads", "offsetof(PyInterpreterState, threads.head)"),
    ("tstate_next", "offsetof(PyThreadState, next)"),
    ("tstate_thread_id", "offsetof(PyThreadState, thread_id)"),
    ("tstate_frame", "offsetof(PyThreadState, cframe)"),
    ("cframe_current", "offsetof(_PyCFrame, current_frame)"),
    ("frame_code", "offsetof(_PyInterpreterFrame, f_code)"),
    ("frame_back", "offsetof(_PyInterpreterFrame, previous)"),
    ("frame_instr", "offsetof(_PyInterpreterFrame, prev_instr)"),
    ("frame_owner", "offsetof(_PyInterpreterFrame, owner)"),
];

/// Where `_Py_DebugOffsets` has what is needed of it.
const DEBUG_OFFSETS: Fields = &[
    ("size", "sizeof(_Py_DebugOffsets)"),
    ("version", "offsetof(_Py_DebugOffsets, version)"),
    ("free_threaded", "offsetof(_Py_DebugOffsets, free_threaded)"),
    (
        "runtime_interp_head",
        "offsetof(_Py_DebugOffsets, runtime_state.interpreters_head)",
    ),
    (
        "interp_next",
        "offsetof(_Py_DebugOffsets, interpreter_state.next)",
    ),
    (
        "interp_threads",
        "offsetof(_Py_DebugOffsets, interpreter_state.threads_head)",
    ),
    ("tstate_next", "offsetof(_Py_DebugOffsets, thread_state.next)"),
    (
        "tstate_thread_id",
        "offsetof(_Py_DebugOffsets, thread_state.thread_id)",
    ),
    (
        "tstate_frame",
        "offsetof(_Py_DebugOffsets, thread_state.current_frame)",
    ),
    ("tstate_status", "offsetof(_Py_DebugOffsets, thread_state.status)"),
    (
        "frame_code",
        "offsetof(_Py_DebugOffsets, interpreter_frame.executable)",
    ),
    (
        "frame_back",
        "offsetof(_Py_DebugOffsets, interpreter_frame.previous)",
    ),
    (
        "frame_instr",
        "offsetof(_Py_DebugOffsets, interpreter_frame.instr_ptr)",
    ),
    (
        "frame_owner",
        "offsetof(_Py_DebugOffsets, interpreter_frame.owner)",
    ),
    (
        "code_first_instr",
        "offsetof(_Py_DebugOffsets, code_object.co_code_adaptive)",
    ),
    (
        "code_filename",
        "offsetof(_Py_DebugOffsets, code_object.filename)",
    ),
    (
        "code_qualname",
        "offsetof(_Py_DebugOffsets, code_object.qualname)",
    ),
    (
        "code_first_line",
        "offsetof(_Py_DebugOffsets, code_object.firstlineno)",
    ),
    (
        "code_line_table",
        "offsetof(_Py_DebugOffsets, code_object.linetable)",
    ),
    (
        "str_ascii_size",
        "offsetof(_Py_DebugOffsets, unicode_object.asciiobject_size)",
    ),
    ("str_length", "offsetof(_Py_DebugOffsets, unicode_object.length)"),
    ("str_state", "offsetof(_Py_DebugOffsets, unicode_object.state)"),
    ("bytes_size", "offsetof(_Py_DebugOffsets, bytes_object.ob_size)"),
    ("bytes_data", "offsetof(_Py_DebugOffsets, bytes_object.ob_sval)"),
];

/// The same, where the table itself has to know.
const OBJECTS: Fields = &[
    ("str_length", "offsetof(PyASCIIObject, length)"),
    ("str_state", "offsetof(PyASCIIObject, state)"),
    ("bytes_size", "offsetof(PyVarObject, ob_size)"),
    ("bytes_data", "offsetof(PyBytesObject, ob_sval)"),
];

/// A constant of the table: its minor version, and whether it is for builds without the GIL (3.13+).
type Key = (u32, bool);

/// Minor versions whose builds without the GIL are traced.
const FREE_THREADED: std::ops::RangeInclusive<u32> = 13..=13;

/// Name of the generated constant.
fn constant((minor, free_threaded): Key) -> String {
    format!("V3_{minor}{}", if free_threaded { "_FREE_THREADED" } else { "" })
}

/// The generated constant's type, and what goes into it.
fn fields(minor: u32) -> (&'static str, Vec<(&'static str, &'static str)>) {
    let one = |name, expression| vec![(name, expression)];
    let (kind, parts) = match minor {
        ..=9 => (
            "Offsets",
            vec![
                BEFORE_3_11.to_vec(),
                one("code_line_table", "offsetof(PyCodeObject, co_lnotab)"),
            ],
        ),
        10 => (
            "Offsets",
            vec![
                BEFORE_3_11.to_vec(),
                one("code_line_table", "offsetof(PyCodeObject, co_linetable)"),
            ],
        ),
        11 => (
            "Offsets",
            vec![
                one(
                    "runtime_check",
                    "offsetof(_PyRuntimeState, gilstate.tstate_current)",
                ),
                STATES_3_11.to_vec(),
                one("tstate_status", "0"),
                one("frame_owner_skip", "0"),
                CODE_3_11.to_vec(),
            ],
        ),
        12 => (
            "Offsets",
            vec![
                one(
                    "runtime_check",
                    "offsetof(_PyRuntimeState, allocators.standard.raw)",
                ),
                STATES_3_11.to_vec(),
                one("tstate_status", "offsetof(PyThreadState, _status)"),
                one("frame_owner_skip", "FRAME_OWNED_BY_CSTACK"),
                CODE_3_11.to_vec(),
            ],
        ),
        13 => (
            "DebugOffsets",
            vec![
                DEBUG_OFFSETS.to_vec(),
                one("frame_owner_skip", "FRAME_OWNED_BY_CSTACK"),
            ],
        ),
        14.. => (
            "DebugOffsets",
            vec![
                DEBUG_OFFSETS.to_vec(),
                one("frame_owner_skip", "FRAME_OWNED_BY_INTERPRETER"),
            ],
        ),
    };
    let objects = if kind == "Offsets" { OBJECTS } else { &[] };
    (
        kind,
        parts
            .into_iter()
            .chain([objects.to_vec(), STRINGS.to_vec()])
            .flatten()
            .collect(),
    )
}

/// Regenerates the table for the versions whose headers are found and keeps the others; with `check` it compares.
pub(crate) fn run(check: bool) -> Result<(), Box<dyn Error>> {
    let path = workspace()?.join(TABLE);
    let old = fs::read_to_string(&path).unwrap_or_default();
    let mut blocks = BTreeMap::new();
    let with = MINORS.map(|minor| (minor, false));
    for key in with.chain(FREE_THREADED.map(|minor| (minor, true))) {
        if let Some(block) = block_of(&old, key) {
            blocks.insert(key, block.to_owned());
        }
    }
    let mut made: BTreeMap<Key, (String, PathBuf)> = BTreeMap::new();
    for root in header_roots() {
        let Some((minor, version)) = version_of(&root) else {
            continue;
        };
        if !MINORS.contains(&minor) {
            continue;
        }
        report(&format!("CPython {version}: {}", root.display()));
        for key in [(minor, false), (minor, true)] {
            if key.1 && !FREE_THREADED.contains(&minor) {
                continue;
            }
            let block = generate(key, &root).map_err(|error| format!("{}: {error}", root.display()))?;
            if let Some((other, other_root)) = made.get(&key)
                && *other != block
            {
                return Err(format!(
                    "{} and {} disagree:\n{other}{block}",
                    other_root.display(),
                    root.display()
                )
                .into());
            }
            made.insert(key, (block, root.clone()));
        }
    }
    if made.is_empty() {
        return Err(
            "no CPython headers found; install one of python3.9-dev to python3.15-dev, \
                    or name a directory in PYROBE_CPYTHON_INCLUDE"
                .into(),
        );
    }
    blocks.extend(made.into_iter().map(|(key, (block, _))| (key, block)));
    let new = format_rust(&render(&blocks))?;
    if new == old {
        return Ok(());
    }
    if check {
        return Err(format!("{TABLE} is not what the headers say; run `cargo xtask layouts`").into());
    }
    fs::write(&path, new)?;
    report(&format!("wrote {TABLE}"));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what the command says")]
fn report(line: &str) {
    println!("{line}");
}

fn workspace() -> Result<PathBuf, Box<dyn Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .parent()
        .ok_or("the package is not in a workspace")?
        .to_owned())
}

/// Directories that hold a `Python.h` and CPython's internal headers.
fn header_roots() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = std::env::var_os("PYROBE_CPYTHON_INCLUDE")
        .map(|paths| std::env::split_paths(&paths).collect())
        .unwrap_or_default();
    for minor in MINORS {
        let python = format!("python3.{minor}");
        let script = "import sysconfig; print(sysconfig.get_path('include'))";
        if let Ok(output) = Command::new(&python)
            .args(["-c", script])
            .stderr(Stdio::null())
            .output()
        {
            let line = String::from_utf8_lossy(&output.stdout);
            roots.push(PathBuf::from(line.trim_end()));
        }
        roots.push(PathBuf::from(format!("/usr/include/{python}")));
        roots.push(crate::workspace::sid_root().join(format!("usr/include/{python}")));
    }
    let versions = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv")))
        .and_then(|root| fs::read_dir(root.join("versions")).ok());
    for version in versions.into_iter().flatten().flatten() {
        let Ok(includes) = fs::read_dir(version.path().join("include")) else {
            continue;
        };
        roots.extend(includes.flatten().map(|entry| entry.path()));
    }
    roots.retain(|root| root.join("internal/pycore_runtime.h").exists());
    roots.sort();
    roots.dedup();
    roots
}

/// Minor version and full text of `PY_VERSION`.
fn version_of(root: &Path) -> Option<(u32, String)> {
    let header = fs::read_to_string(root.join("patchlevel.h")).ok()?;
    let line = header
        .lines()
        .find_map(|line| line.strip_prefix("#define PY_VERSION "))?;
    let version = line.trim().trim_matches('"').to_owned();
    let minor = version.strip_prefix("3.")?.split('.').next()?.parse().ok()?;
    Some((minor, version))
}

fn generate(key: Key, root: &Path) -> Result<String, Box<dyn Error>> {
    let (kind, fields) = fields(key.0);
    let mut source = String::new();
    if key.1 {
        source.push_str("#define Py_GIL_DISABLED 1\n");
    }
    source.push_str(
        "#define Py_BUILD_CORE 1\n#include <Python.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n\
         #include \"frameobject.h\"\n#include \"internal/pycore_runtime.h\"\n#include \"internal/pycore_interp.h\"\n",
    );
    for header in [
        "internal/pycore_frame.h",
        "internal/pycore_interpframe.h",
        "internal/pycore_debug_offsets.h",
    ] {
        if root.join(header).exists() {
            writeln!(source, "#include \"{header}\"")?;
        }
    }
    // Where a bit field begins is up to the compiler: set it to 1 and look.
    source.push_str(
        "#define state_bit(field) ({ PyASCIIObject text; unsigned bits; memset(&text, 0, sizeof text); \
         text.state.field = 1; memcpy(&bits, &text.state, sizeof bits); __builtin_ctz(bits); })\n\
         int main(void) {\n",
    );
    for (name, expression) in &fields {
        writeln!(
            source,
            "printf(\"{name}: %llu,\\n\", (unsigned long long)({expression}));"
        )?;
    }
    source.push_str("return 0; }\n");
    let directory = std::env::temp_dir().join(format!("pyrobe-layouts-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let result = compile_and_run(&source, root, &directory);
    fs::remove_dir_all(&directory)?;
    Ok(format!(
        "pub(super) const {}: {kind} = {kind} {{\n{}}};\n",
        constant(key),
        result?
    ))
}

fn compile_and_run(source: &str, root: &Path, directory: &Path) -> Result<String, Box<dyn Error>> {
    let (file, program) = (directory.join("layout.c"), directory.join("layout"));
    fs::write(&file, source)?;
    let compiler = std::env::var_os("CC").unwrap_or_else(|| OsStr::new("cc").to_owned());
    // Debian keeps pyconfig.h in a directory of the architecture, beside the root's parent. What else is
    // there (in another root file system: another libc) must not come before the compiler's own.
    let parent = root.parent().unwrap_or(root);
    let output = Command::new(compiler)
        .args([
            OsStr::new("-w"),
            OsStr::new("-o"),
            program.as_os_str(),
            file.as_os_str(),
        ])
        .arg("-I")
        .arg(root)
        .arg("-I")
        .arg(root.join("internal"))
        .arg("-idirafter")
        .arg(parent)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8(Command::new(program).output()?.stdout)?)
}

/// The text of one version's constant in the table.
fn block_of(table: &str, key: Key) -> Option<&str> {
    let start = table.find(&format!("pub(super) const {}:", constant(key)))?;
    let rest = table.get(start..)?;
    rest.get(..rest.find("};\n")? + 3)
}

fn render(blocks: &BTreeMap<Key, String>) -> String {
    let mut text = String::from(
        "//! Layouts of CPython, by minor version. Generated by `cargo xtask layouts`; do not edit.\n//!\n\
         //! `Offsets`: where fields are. `DebugOffsets`: where the image's own `_Py_DebugOffsets` says so.\n\n\
         use super::layout::{DebugOffsets, Offsets};\n",
    );
    for ((minor, free_threaded), block) in blocks {
        let build = if *free_threaded { " without the GIL" } else { "" };
        let _ = write!(text, "\n/// CPython 3.{minor}{build}, x86-64.\n{block}");
    }
    text
}

/// Formats as `cargo fmt` would, so that the committed file stays as generated.
fn format_rust(text: &str) -> Result<String, Box<dyn Error>> {
    let file = std::env::temp_dir().join(format!("pyrobe-layout-table-{}.rs", std::process::id()));
    fs::write(&file, text)?;
    let status = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path"])
        .arg(workspace()?.join("rustfmt.toml"))
        .arg(&file)
        .status()?;
    let formatted = fs::read_to_string(&file)?;
    fs::remove_file(&file)?;
    if status.success() {
        Ok(formatted)
    } else {
        Err("rustfmt failed".into())
    }
}
