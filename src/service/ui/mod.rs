//! The page that shows an operator what the server does: what it is told, and the page itself.
//!
//! | file | what it holds |
//! |---|---|
//! | [`history`] | a sample a second, of the last ten minutes |
//! | [`sample`] | one of them |
//! | [`latencies`] | how long their calls took of late |
//! | [`slowest`] | the slowest of them, with their traces |
//! | [`failures`], [`lines`] | the last errors of evaluators, and what their plugins say |
//! | [`kept`], [`parts`] | how much of that is kept, and under which locks |
//! | [`search`] | evaluators and tenants, sorted and cut |
//! | [`page`] | the files that a browser loads |
//!
//! All of it is bounded, whatever clients do. Requests about it are in [`http`](super::http).

mod failures;
mod history;
mod kept;
mod latencies;
mod lines;
pub(super) mod page;
mod parts;
mod sample;
pub(super) mod search;
mod slowest;

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::Semaphore;

pub(super) use self::{
    failures::{Failure, Failures},
    history::{Change, History, Watcher},
    latencies::Latencies,
    lines::{Line, Lines},
    slowest::{Slow, Slowest},
};
use super::exporter::Exporter;
use crate::{EvaluatorId, EvaluatorPool, Settings};

/// Between two samples.
const SECOND: Duration = Duration::from_secs(1);

/// How many searches may run at once: each looks through all evaluators. Others wait.
const SEARCHES: usize = 2;

/// What the page shows.
pub(super) struct Ui {
    pub(super) history: History,
    pub(super) failures: Failures,
    pub(super) lines: Lines,
    pub(super) latencies: Latencies,
    pub(super) slowest: Slowest,
    /// Where traces are looked at, with `{trace_id}` in it.
    pub(super) trace_url: Option<String>,
    pub(super) searches: Arc<Semaphore>,
}

impl Ui {
    /// Of a server with these settings.
    pub(super) fn new(settings: &Settings) -> Self {
        let (connections, trace_url) = (settings.service.max_connections, settings.telemetry.trace_url.clone());
        let (history, searches) = (History::new(connections), Arc::new(Semaphore::new(SEARCHES)));
        let (failures, lines) = (Failures::default(), Lines::default());
        let (latencies, slowest) = (Latencies::default(), Slowest::default());
        Self { history, failures, lines, latencies, slowest, trace_url, searches }
    }

    /// Forgets what an evaluator left that is removed. One that is registered by its name later is another.
    pub(super) fn forget(&self, evaluator: EvaluatorId) {
        self.failures.forget(evaluator);
        self.lines.forget(evaluator);
        self.latencies.forget(evaluator);
        self.slowest.forget(evaluator);
    }
}

/// Samples the pool each second, until what this gives is dropped. On a thread of its own: among those of the executor that may
/// block, a task each second would keep all that are idle from ending.
pub(super) fn watch(ui: Arc<Ui>, pool: EvaluatorPool, exporter: Exporter) -> io::Result<mpsc::Sender<()>> {
    let (watched, ended) = mpsc::channel();
    thread::Builder::new().name("evalpool-page".into()).spawn(move || {
        loop {
            ui.history.take(pool.snapshot(), exporter.evaluation_times());
            if ended.recv_timeout(SECOND) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    })?;
    Ok(watched)
}

/// Milliseconds since the Unix epoch.
fn now() -> u64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}
