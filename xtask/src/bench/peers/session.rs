//! One run of a program under a tool: started, told to begin, and asked what its work took.
//!
//! The program calls the bench (`control.py`), since tools use its standard streams, and since it may be a child of
//! what was started. A run that does not come to its end is an error with the last words of the tool; nothing outlives it.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{atomic::AtomicBool, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{
    super::running::{Recording, end},
    client,
    tools::{Places, Tool},
};

/// Far above what a program takes under the slowest tool.
const PATIENCE: Duration = Duration::from_mins(10);

/// What two programs share that run beside each other.
const PROCESSOR: usize = 0;

/// Seconds of one run.
#[derive(Clone, Copy, Debug, serde::Deserialize, serde::Serialize)]
pub(super) struct Took {
    /// Of the program's work, by the clock; beside another without what its thread waited for the processor.
    pub(super) wall: f64,
    /// Of the program's work, of the processor.
    pub(super) cpu: f64,
    /// From the start of the command to its end; with the tool's own start and what it writes.
    pub(super) whole: f64,
}

/// Runs a program once, which does its work so many times.
pub(super) fn run(places: &Places, tool: Tool, program: &Path, times: usize) -> Result<Took> {
    let mut started = Started::new(places, tool, program, &[times.to_string()])?;
    let took = (|| {
        started.begin(places)?;
        started.work(times, &AtomicBool::new(false))?;
        started.finish(false)
    })();
    took.map_err(|error| started.explained(error))
}

/// Runs it without any tool and with one, both at the same time and on the same processor, which takes turns between them in
/// milliseconds: whatever else this machine does is the same for both. Probes stand in a file, also in processes that are not
/// recorded, so each has an interpreter of its own; which of two copies has which changes with `turn`.
pub(super) fn run_beside(places: &Places, tool: Tool, program: &Path, turn: usize) -> Result<(Took, Took)> {
    let times = tool.times();
    let arguments = [times.to_string(), PROCESSOR.to_string()];
    let mut copies = places.with_copies();
    copies.rotate_left(turn % 2);
    let [of_without, of_with] = copies;
    let mut without = Started::new(&of_without, Tool::Nothing, program, &arguments)?;
    let mut with = Started::new(&of_with, tool, program, &arguments)?;
    let took = (|| {
        without.begin(&of_without)?;
        with.begin(&of_with)?;
        let is_over = AtomicBool::new(false);
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(|| without.work(times, &is_over));
            let second = with.work(times, &is_over);
            (first.join(), second)
        });
        first.map_err(|_| anyhow!("a thread panicked"))??;
        second?;
        Ok((without.finish(true)?, with.finish(true)?))
    })();
    took.map_err(|error| with.explained(error))
}

/// A command that was started, and the program in it.
struct Started {
    tool: Tool,
    start: Instant,
    child: Running,
    listener: TcpListener,
    line: Option<Line>,
    /// Where its service is reached, or 0.
    port: u16,
    recording: Option<Recording>,
    took: Option<[f64; 3]>,
    /// What it wrote.
    said: PathBuf,
}

impl Started {
    fn new(places: &Places, tool: Tool, program: &Path, arguments: &[String]) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
        let address = listener.local_addr()?.to_string();
        let said = places.scratch.join(format!("{}.said", tool.key()));
        let start = Instant::now();
        let child = places
            .command(tool, program, &address)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(&said)?)
            .stderr(File::options().append(true).open(&said)?)
            .spawn()
            .context("cannot start it")?;
        Ok(Self {
            tool,
            start,
            child: Running(child),
            listener,
            line: None,
            port: 0,
            recording: None,
            took: None,
            said,
        })
    }

    /// Waits until it is ready, has a service come to its pace, and attaches to it what is to be attached.
    fn begin(&mut self, places: &Places) -> Result<()> {
        let mut line = Line::accept(&self.listener, &mut self.child)?;
        let (pid, port) = line.ready()?;
        self.port = port;
        self.line = Some(line);
        if port != 0 {
            client::warm_up(port)?;
        }
        if self.tool == Tool::PyrobeAttached {
            self.recording = Some(Recording::start(&mut places.recorder(pid))?);
        }
        Ok(())
    }

    /// Has it do its work. What a service takes is for the requests of all of it: one beside another is asked as long as that,
    /// since one alone works otherwise, and no longer.
    fn work(&mut self, times: usize, is_over: &AtomicBool) -> Result<()> {
        let line = self.line.as_mut().context("it is not ready")?;
        line.tell()?;
        let mut done = 1.0;
        if self.port != 0 {
            done = client::load(self.port, times, is_over)?;
            line.tell()?;
        }
        self.took = Some(line.took()?.map(|seconds| seconds / done));
        Ok(())
    }

    /// Waits for its end. `beside`: it shared its processor.
    fn finish(&mut self, beside: bool) -> Result<Took> {
        self.line = None;
        let status = self.child.0.wait()?;
        if !status.success() {
            bail!("it ended with {status}");
        }
        let whole = self.start.elapsed().as_secs_f64();
        if let Some(recording) = self.recording.take() {
            recording.stop()?;
        }
        let [wall, cpu, queued] = self.took.context("it did no work")?;
        let wall = if beside { wall - queued } else { wall };
        Ok(Took { wall, cpu, whole })
    }

    /// With the last words that it wrote.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        match last_words(&self.said) {
            Some(words) => error.context(words),
            None => error,
        }
    }
}

/// A started command; killed when this is dropped. The program below it ends when its line does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// The program's line.
struct Line(BufReader<TcpStream>);

impl Line {
    /// Waits for the program's call; a command that ends before is an error.
    fn accept(listener: &TcpListener, child: &mut Running) -> Result<Self> {
        let (calls, called) = mpsc::channel();
        let accepting = listener.try_clone()?;
        thread::spawn(move || {
            // Nobody waits for the call any more if the other end is gone.
            let _ = calls.send(accepting.accept());
        });
        let start = Instant::now();
        let stream = loop {
            match called.recv_timeout(Duration::from_millis(200)) {
                Ok(call) => break call?.0,
                Err(_) if child.0.try_wait()?.is_none() && start.elapsed() < PATIENCE => {}
                Err(_) => {
                    // The thread that waits for a call gets one.
                    let _ = TcpStream::connect(listener.local_addr()?);
                    bail!("it did not run the program");
                }
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn words(&mut self, first: &str) -> Result<Vec<f64>> {
        let mut line = String::new();
        self.0.read_line(&mut line).context("the program hangs")?;
        let mut words = line.split_whitespace();
        if words.next() != Some(first) {
            bail!("the program did not come to its end");
        }
        words.map(|word| word.parse().context("no number")).collect()
    }

    /// Process id of the program, and the port of its service or 0.
    fn ready(&mut self) -> Result<(u32, u16)> {
        match self.words("ready")?.as_slice() {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "numbers that were integers"
            )]
            [pid, port] => Ok((*pid as u32, *port as u16)),
            _ => bail!("the program is ready, but for what"),
        }
    }

    /// Time of the work, processor time, and time that it waited for the processor.
    fn took(&mut self) -> Result<[f64; 3]> {
        match self.words("took")?.as_slice() {
            [wall, cpu, queued] => Ok([*wall, *cpu, *queued]),
            _ => bail!("the program told no times"),
        }
    }

    fn tell(&mut self) -> Result<()> {
        self.0.get_mut().write_all(b"\n").context("the program is gone")
    }
}

/// The last line with words that a command wrote.
fn last_words(said: &Path) -> Option<String> {
    let said = std::fs::read(said).ok()?;
    let said = String::from_utf8_lossy(&said);
    let words = said.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(words.to_owned())
}
