//! One run of a program under a tool: started, told to begin, and asked what its work took.
//!
//! The program calls the bench (`control.py`), since tools use its standard streams, and since it may be a child of
//! what was started. A run that does not come to its end is an error with the last words of the tool; nothing outlives it.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    super::running::{Recording, end},
    client,
    tools::{Places, Tool},
};

/// Far above what a program takes under the slowest tool.
const PATIENCE: Duration = Duration::from_mins(10);

/// Seconds of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// Of the program's work, by the clock.
    pub(super) wall: f64,
    /// Of the program's work, of the processor.
    pub(super) cpu: f64,
    /// From the start of the command to its end; with the tool's own start and what it writes.
    pub(super) whole: f64,
}

/// Runs a program once, which does its work so many times.
pub(super) fn run(places: &Places, tool: Tool, program: &Path, times: usize) -> Result<Took> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
    let address = listener.local_addr()?.to_string();
    let said = places.scratch.join("said");
    let start = Instant::now();
    let child = places
        .command(tool, program, &address)
        .arg(times.to_string())
        .stdin(Stdio::null())
        .stdout(File::create(&said)?)
        .stderr(File::options().append(true).open(&said)?)
        .spawn()
        .context("cannot start it")?;
    let mut child = Running(child);
    let took = (|| {
        let mut line = Line::accept(&listener, &mut child)?;
        let (pid, port) = line.ready()?;
        let recording = match tool {
            Tool::PyrobeAttached => Some(Recording::start(&mut places.recorder(pid))?),
            _ => None,
        };
        line.tell()?;
        if port != 0 {
            client::load(port, times)?;
            line.tell()?;
        }
        let (wall, cpu) = line.took()?;
        drop(line);
        let status = child.0.wait()?;
        if !status.success() {
            bail!("it ended with {status}");
        }
        let whole = start.elapsed().as_secs_f64();
        if let Some(recording) = recording {
            recording.stop()?;
        }
        Ok(Took { wall, cpu, whole })
    })();
    took.map_err(|error: anyhow::Error| match last_words(&said) {
        Some(words) => error.context(words),
        None => error,
    })
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

    /// Time and processor time of the work.
    fn took(&mut self) -> Result<(f64, f64)> {
        match self.words("took")?.as_slice() {
            [wall, cpu] => Ok((*wall, *cpu)),
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
