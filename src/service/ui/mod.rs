//! The page that shows an operator what the server does: what it is told, and the page itself.
//!
//! | file | what it holds |
//! |---|---|
//! | [`history`] | a sample a second, of the last ten minutes |
//! | [`sample`] | one of them |
//! | [`failures`] | the last errors of evaluators |
//! | [`search`] | evaluators and tenants, sorted and cut |
//! | [`page`] | the files that a browser loads |
//!
//! All of it is bounded, whatever clients do. Requests about it are in [`http`](super::http).

mod failures;
mod history;
pub(super) mod page;
mod sample;
pub(super) mod search;

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
};
use super::exporter::Exporter;
use crate::EvaluatorPool;

/// Between two samples.
const SECOND: Duration = Duration::from_secs(1);

/// How many searches may run at once: each looks through all evaluators. Others wait.
const SEARCHES: usize = 2;

/// What the page shows.
pub(super) struct Ui {
    pub(super) history: History,
    pub(super) failures: Failures,
    pub(super) searches: Arc<Semaphore>,
}

impl Ui {
    pub(super) fn new() -> Self {
        let searches = Arc::new(Semaphore::new(SEARCHES));
        Self { history: History::default(), failures: Failures::default(), searches }
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
