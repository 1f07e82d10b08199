//! The threads and tasks that send into the owner: ring, map watcher, installed interpreters, signals, clock.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::Sender,
};

use crate::{
    bpf::{RingReader, hit_cost},
    discover::{MapEvent, MapWatcher},
    images::{Image, Images},
};

/// How long a record waits in the ring at most, unless the ring fills before or a process is new.
const POLL: Duration = Duration::from_millis(100);
/// How long the owner waits at most until it looks after what has no event of its own.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// How long the map watcher sleeps before it looks whether it is to stop.
const WATCH: Duration = Duration::from_millis(200);

/// Everything that can happen to a recording.
pub(super) enum Input {
    /// Whole records, in order.
    Records(Bytes),
    /// The ring was read for the last time.
    RingEmpty {
        /// Records that did not fit their place.
        malformed: u64,
    },
    /// An installed interpreter was looked at that nobody is known to run.
    Installed(Arc<Image>),
    /// Processes and mappings came and went.
    Maps(Vec<MapEvent>),
    /// It is time to look after what has no event of its own.
    Tick,
    /// The sampling window has been open for as long as it is to be.
    WindowOver,
    /// It is time to look whether its blocks are still in use.
    Look,
    /// The user wants an end.
    Interrupt,
    /// The duration is over.
    TimeOver,
    /// The command exited, with its exit code.
    CommandExited(i32),
}

/// Reads the ring until it is stopped; then once more.
pub(super) struct RingThread {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl RingThread {
    pub(super) fn start(mut reader: RingReader, to: Sender<Input>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("ring".to_owned()).spawn(move || {
            loop {
                // Before the drain: what came before the stop is read by the last one.
                let last = stopped.load(Ordering::Acquire);
                reader.drain(|records| to.blocking_send(Input::Records(records)).is_ok());
                if last || to.is_closed() {
                    break;
                }
                if let Err(error) = reader.wait(POLL) {
                    tracing::warn!("waiting for the ring: {error}");
                    thread::sleep(POLL);
                }
            }
            // Fails only if the owner is gone.
            let _ = to.blocking_send(Input::RingEmpty {
                malformed: reader.malformed(),
            });
        })?;
        Ok(Self { stop, thread })
    }

    /// Asks for the last reading; [`Input::RingEmpty`] tells that it is done.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the ring's thread panicked");
        }
    }
}

/// Tells the owner of new mappings until the owner is gone.
pub(super) fn watch_maps(mut watcher: MapWatcher, to: Sender<Input>) -> std::io::Result<()> {
    thread::Builder::new().name("maps".to_owned()).spawn(move || {
        while !to.is_closed() {
            match watcher.wait(WATCH) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) => {
                    tracing::warn!("waiting for new mappings: {error}");
                    thread::sleep(WATCH);
                }
            }
            let mut events = Vec::new();
            watcher.drain(&mut events);
            if !events.is_empty() && to.blocking_send(Input::Maps(events)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Looks at files beside the recording, one after the other, and sends those that are images.
pub(super) fn examine_installed(files: Vec<PathBuf>, to: Sender<Input>) -> std::io::Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    thread::Builder::new().name("images".to_owned()).spawn(move || {
        let mut images = Images::default();
        for file in files {
            if to.is_closed() {
                return;
            }
            if let Ok(Some(image)) = images.of_file(&file)
                && to.blocking_send(Input::Installed(image)).is_err()
            {
                return;
            }
        }
    })?;
    Ok(())
}

/// Measures what a hit costs here, beside the recording: it would take time from the start. `None` if the kernel
/// cannot.
pub(super) fn measure_hit_cost() -> std::io::Result<JoinHandle<Option<f64>>> {
    thread::Builder::new().name("hit cost".to_owned()).spawn(|| {
        let start = std::time::Instant::now();
        let cost = hit_cost()
            .inspect_err(|error| tracing::debug!("the cost of a hit is not known: {error}"))
            .ok()?;
        tracing::debug!("a hit costs {cost:.0} ns here, measured in {:?}", start.elapsed());
        Some(cost)
    })
}

/// Signals and the clock, as tasks of the current runtime.
pub(super) fn signals_and_clock(duration: Option<Duration>, to: &Sender<Input>) -> std::io::Result<()> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signals = signal(kind)?;
        let to = to.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if to.send(Input::Interrupt).await.is_err() {
                    return;
                }
            }
        });
    }
    tick_after(Duration::ZERO, to.clone());
    if let Some(duration) = duration {
        let to = to.clone();
        tokio::spawn(async move {
            tokio::time::sleep(duration).await;
            // Fails only if the owner is gone.
            let _ = to.send(Input::TimeOver).await;
        });
    }
    Ok(())
}

/// Says when to look after what has no event of its own, once, as a task of the current runtime.
pub(super) fn tick_after(wait: Duration, to: Sender<Input>) {
    after(wait, Input::Tick, to);
}

/// Says when a sampling window has been open long enough, as a task of the current runtime.
pub(super) fn window_over(length: Duration, to: Sender<Input>) {
    after(length, Input::WindowOver, to);
}

/// Says when the blocks of a window are to be looked at, as a task of the current runtime.
pub(super) fn look_after(wait: Duration, to: Sender<Input>) {
    after(wait, Input::Look, to);
}

fn after(wait: Duration, input: Input, to: Sender<Input>) {
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        // Fails only if the owner is gone.
        let _ = to.send(input).await;
    });
}
