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
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

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

/// Samples the pool each second, for ever.
pub(super) async fn watch(ui: Arc<Ui>, pool: EvaluatorPool, exporter: Exporter) {
    let mut ticks = interval(SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (ui, pool, exporter) = (ui.clone(), pool.clone(), exporter.clone());
        // A pool of thousands of runtimes takes a millisecond.
        let sampled = spawn_blocking(move || {
            let snapshot = pool.snapshot();
            ui.history.take(snapshot, exporter.evaluation_times());
        });
        if let Err(error) = sampled.await {
            tracing::error!(%error, "a sample for the page was not taken");
        }
    }
}

/// Milliseconds since the Unix epoch.
fn now() -> u64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}
