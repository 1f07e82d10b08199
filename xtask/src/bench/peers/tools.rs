//! What a program is run under: nothing, pyrobe in two ways, and the tools that people use today.
//!
//! Each is the command line that its documentation gives, with the file it writes in the bench's directory.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// A way to run a program; the order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    /// Nothing, held against nothing: what chance alone gives.
    Nothing,
    /// `pyrobe record -- COMMAND`.
    PyrobeLaunched,
    /// `pyrobe record --pid` on the program that is already there, as on a production host.
    PyrobeAttached,
    /// `memray run`; with CPython's own allocators.
    Memray,
    MemrayPython,
    /// `-X tracemalloc=N`.
    Tracemalloc1,
    Tracemalloc25,
    Scalene,
    Fil,
}

impl Tool {
    pub(super) const ALL: [Self; 9] = [
        Self::Nothing,
        Self::PyrobeLaunched,
        Self::PyrobeAttached,
        Self::Memray,
        Self::MemrayPython,
        Self::Tracemalloc1,
        Self::Tracemalloc25,
        Self::Scalene,
        Self::Fil,
    ];

    /// What `--only` knows it by.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::PyrobeLaunched => "pyrobe-launched",
            Self::PyrobeAttached => "pyrobe-attached",
            Self::Memray => "memray",
            Self::MemrayPython => "memray-python",
            Self::Tracemalloc1 => "tracemalloc-1",
            Self::Tracemalloc25 => "tracemalloc-25",
            Self::Scalene => "scalene",
            Self::Fil => "fil",
        }
    }

    /// Its row in the table.
    pub(super) fn title(self, mode: &str) -> String {
        match self {
            Self::Nothing => "nothing (two runs without any tool)".to_owned(),
            Self::PyrobeLaunched => format!("pyrobe record --mode {mode} -- COMMAND"),
            Self::PyrobeAttached => format!("pyrobe record --mode {mode} --pid PID"),
            Self::Memray => "memray run".to_owned(),
            Self::MemrayPython => "memray run --trace-python-allocators".to_owned(),
            Self::Tracemalloc1 => "python -X tracemalloc=1".to_owned(),
            Self::Tracemalloc25 => "python -X tracemalloc=25".to_owned(),
            Self::Scalene => "scalene run".to_owned(),
            Self::Fil => "fil-profile run".to_owned(),
        }
    }

    /// Whether its figures are held against the goal.
    pub(super) fn is_pyrobe(self) -> bool {
        matches!(self, Self::PyrobeLaunched | Self::PyrobeAttached)
    }

    /// Whether each of its runs is held against one beside it, on the same processor.
    pub(super) fn is_exact(self) -> bool {
        self == Self::Nothing || self.is_pyrobe()
    }

    /// How many times a program does its work under it, and without it for comparison. What is hardly seen needs long runs, and
    /// is meant for programs that run for days; under the others they would take minutes.
    pub(super) fn times(self) -> usize {
        if self.is_exact() { 4 } else { 1 }
    }
}

/// Where the programs that the bench starts are.
#[derive(Clone)]
pub(super) struct Places {
    pub(super) pyrobe: PathBuf,
    /// The interpreter of the virtual environment that the peers are in.
    pub(super) python: PathBuf,
    /// Copies of it, which run beside each other.
    pub(super) copies: [PathBuf; 2],
    /// Where captures and reports go.
    pub(super) scratch: PathBuf,
    /// pyrobe's mode, and what else it is told.
    pub(super) mode: String,
    pub(super) options: Vec<String>,
}

impl Places {
    /// The same with either copy of the interpreter.
    pub(super) fn with_copies(&self) -> [Self; 2] {
        self.copies.clone().map(|python| Self {
            python,
            ..self.clone()
        })
    }

    /// The command that runs a program under a tool. One that is attached to runs by itself.
    pub(super) fn command(&self, tool: Tool, program: &Path, argument: &str) -> Command {
        let capture = self.capture(tool);
        let words: Vec<&OsStr> = match tool {
            Tool::Nothing | Tool::PyrobeAttached => vec![self.python.as_ref()],
            Tool::PyrobeLaunched => {
                let mut words = [self.pyrobe.as_os_str()].to_vec();
                words.extend(["record", "--mode", &self.mode].map(OsStr::new));
                words.extend(self.options.iter().map(OsStr::new));
                words.extend(["-f", "-o"].map(OsStr::new));
                words.extend([capture.as_os_str(), OsStr::new("--"), self.python.as_ref()]);
                words
            }
            Tool::Memray | Tool::MemrayPython => {
                let mut words = [self.python.as_os_str()].to_vec();
                words.extend(["-m", "memray", "run", "--quiet", "--force", "--output"].map(OsStr::new));
                words.push(capture.as_ref());
                if tool == Tool::MemrayPython {
                    words.push(OsStr::new("--trace-python-allocators"));
                }
                words
            }
            Tool::Tracemalloc1 => vec![self.python.as_ref(), OsStr::new("-Xtracemalloc=1")],
            Tool::Tracemalloc25 => vec![self.python.as_ref(), OsStr::new("-Xtracemalloc=25")],
            Tool::Scalene => {
                let mut words = [self.python.as_os_str()].to_vec();
                words.extend(["-m", "scalene", "run", "-o"].map(OsStr::new));
                words.push(capture.as_ref());
                words
            }
            Tool::Fil => {
                let mut words = [self.python.as_os_str()].to_vec();
                words.extend(["-m", "filprofiler", "--no-browser", "-o"].map(OsStr::new));
                words.extend([capture.as_os_str(), OsStr::new("run")]);
                words
            }
        };
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg(program).arg(argument);
        // The same hashes in every run, and one thread: numpy's library may take as many as there are cores.
        for (name, value) in [
            ("PYTHONHASHSEED", "0"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
            ("OPENBLAS_NUM_THREADS", "1"),
        ] {
            command.env(name, value);
        }
        // scalene starts the interpreter that it finds.
        command.env("PATH", self.path());
        command
    }

    /// The recorder of a process that runs already.
    pub(super) fn recorder(&self, pid: u32) -> Command {
        let mut command = Command::new(&self.pyrobe);
        command
            .args(["record", "--mode", &self.mode])
            .args(&self.options)
            .args(["-f", "-o"])
            .arg(self.capture(Tool::PyrobeAttached))
            .arg(format!("--pid={pid}"));
        command
    }

    /// Seconds that pyrobe says its probes took from the program that it just recorded.
    pub(super) fn estimate(&self, tool: Tool) -> Result<f64> {
        let capture = self.capture(tool);
        let stats = Command::new(&self.pyrobe)
            .args(["report", "stats", "--json"])
            .arg(capture)
            .output()
            .context("cannot start pyrobe")?;
        let stats: serde_json::Value =
            serde_json::from_slice(&stats.stdout).context("no report of the recording")?;
        let processes = stats["processes"]
            .as_array()
            .context("no processes in the report")?;
        let nanoseconds = processes
            .iter()
            .map(|process| process["probe_ns"].as_f64().context("no estimate in the report"));
        Ok(nanoseconds.sum::<Result<f64>>()? / 1e9)
    }

    fn capture(&self, tool: Tool) -> PathBuf {
        self.scratch.join(tool.key())
    }

    fn path(&self) -> OsString {
        let mut path = self
            .python
            .parent()
            .unwrap_or(Path::new("/"))
            .as_os_str()
            .to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path
    }
}
