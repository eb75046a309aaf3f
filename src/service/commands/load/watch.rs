//! The thread that samples the pool and memory, and draws the progress bar.
//!
//! A thread rather than a task: it must sample above all when every thread of the runtime is busy.

use std::{
    io::{self, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::seconds::Seconds;
use crate::{
    EvaluatorPool,
    service::{
        Exit,
        exporter::{Exporter, UPKEEP},
        process,
    },
};

/// Between two samples of the pool. The tasks sample it as well, after each evaluation.
const LOOK: Duration = Duration::from_millis(5);

/// Between two samples of memory, each of which is a system call.
const WEIGH: Duration = Duration::from_millis(100);

/// What the thread saw.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) live_max: usize,
    /// Resident memory in bytes: before, at most, and after.
    pub(super) memory_start: u64,
    pub(super) memory_max: u64,
    pub(super) memory_end: u64,
}

/// The running thread. It ends when this is dropped.
pub(super) struct Watch {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<(Seen, Result<(), Exit>)>,
}

impl Watch {
    /// `length` is how long the load takes, `live_max` the most runtimes seen at once, which the tasks raise as well, and
    /// `memory_start` the resident memory before it.
    pub(super) fn start(
        pool: EvaluatorPool,
        exporter: Exporter,
        length: Duration,
        live_max: Arc<AtomicUsize>,
        memory_start: u64,
        seconds: Option<Seconds>,
    ) -> Result<Self, Exit> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("evalpool-watch".to_owned())
            .spawn(move || watch(&pool, &exporter, &live_max, memory_start, &stopped, &bar(length), seconds))
            .map_err(|error| Exit::failed(format!("no thread can be started: {error}")))?;
        Ok(Self { stop, thread })
    }

    /// What was seen, and whether the figures of each second could be written.
    pub(super) fn stop(self) -> Result<(Seen, Result<(), Exit>), Exit> {
        drop(self.stop);
        self.thread.join().map_err(|_| Exit::failed("the thread that watched broke down"))
    }
}

fn watch(
    pool: &EvaluatorPool,
    exporter: &Exporter,
    live_max: &AtomicUsize,
    memory_start: u64,
    stopped: &mpsc::Receiver<()>,
    bar: &ProgressBar,
    mut seconds: Option<Seconds>,
) -> (Seen, Result<(), Exit>) {
    let (began, mut memory_max) = (Instant::now(), memory_start);
    let (mut weighed, mut kept_up) = (began, began);
    while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let (live, now) = (pool.runtimes(), Instant::now());
        live_max.fetch_max(live, Ordering::Relaxed);
        if now - weighed >= WEIGH {
            weighed = now;
            memory_max = memory_max.max(memory());
            bar.set_position(u64::try_from((now - began).as_millis()).unwrap_or(u64::MAX));
            bar.set_message(format!("{live} runtimes"));
        }
        if let Some(seconds) = &mut seconds {
            seconds.pass(now - began, live, memory);
        }
        if now - kept_up >= UPKEEP {
            kept_up = now;
            exporter.run_upkeep();
        }
    }
    bar.finish_and_clear();
    let memory_end = memory();
    let written = seconds.map_or(Ok(()), |seconds| seconds.finish(pool.runtimes(), memory_end));
    let memory_max = memory_max.max(memory_end);
    (Seen { live_max: live_max.load(Ordering::Relaxed), memory_start, memory_max, memory_end }, written)
}

fn bar(duration: Duration) -> ProgressBar {
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let length = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let style = ProgressStyle::with_template("{wide_bar} {elapsed_precise} {msg}");
    ProgressBar::with_draw_target(Some(length), target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Resident memory of this process, in bytes; 0 if it cannot be read.
pub(super) fn memory() -> u64 {
    process::resident_memory().unwrap_or_default()
}
