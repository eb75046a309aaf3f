//! The last ten minutes: a sample a second, each written as JSON once, for however many pages read it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{
    now,
    sample::{Before, Times, sample},
};
use crate::{EvaluatorId, PoolSnapshot, RuntimeInfo};

/// Samples that are kept.
const KEPT: usize = 600;

/// Pages that may read at once.
pub(in crate::service) const WATCHERS: usize = 16;

/// Runtimes that are shown one by one. Of more nobody sees each.
const CELLS: usize = 4096;

/// Changes that one sample tells. What comes beyond in the same second is not told.
const CHANGES: usize = 20;

/// A change of what is registered.
#[derive(Debug, Clone, Serialize)]
pub(in crate::service) struct Change {
    at: u64,
    name: String,
    /// `uploaded`, `replaced`, `patched` or `removed`.
    what: &'static str,
}

/// Samples, and who reads them.
pub(in crate::service) struct History {
    state: Mutex<State>,
    /// The number of the next sample.
    news: watch::Sender<u64>,
    watchers: Arc<Semaphore>,
    /// Those that want every runtime.
    mapped: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    samples: VecDeque<Arc<str>>,
    /// The number of the next.
    next: u64,
    before: Option<Before>,
    changes: Vec<Change>,
    /// Every runtime as JSON, if anybody wants that.
    map: Option<Arc<str>>,
}

impl Default for History {
    fn default() -> Self {
        let state = Mutex::default();
        let (watchers, mapped) = (Arc::new(Semaphore::new(WATCHERS)), Arc::default());
        Self { state, news: watch::Sender::new(0), watchers, mapped }
    }
}

impl History {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a sample.
    pub(super) fn take(&self, snapshot: PoolSnapshot, times: [Times; 2]) {
        let (number, before, changes) = {
            let mut state = self.lock();
            (state.next, state.before.take(), std::mem::take(&mut state.changes))
        };
        // One thread samples, so nobody else takes this number.
        let (json, before) = sample(number, snapshot, times, &changes, before.as_ref());
        let is_mapped = self.mapped.load(Ordering::Relaxed) > 0;
        let map = is_mapped.then(|| map(&before.snapshot).into());
        let mut state = self.lock();
        state.samples.push_back(json.into());
        if state.samples.len() > KEPT {
            state.samples.pop_front();
        }
        (state.next, state.before, state.map) = (number + 1, Some(before), map);
        drop(state);
        self.news.send_replace(number + 1);
    }

    /// Notes a change for the next sample.
    pub(in crate::service) fn changed(&self, name: &str, what: &'static str) {
        let mut state = self.lock();
        if state.changes.len() < CHANGES {
            state.changes.push(Change { at: now(), name: name.to_owned(), what });
        }
    }

    /// The runtime of an evaluator as the last sample saw it.
    pub(in crate::service) fn runtime(&self, evaluator: EvaluatorId) -> Option<RuntimeInfo> {
        let snapshot = self.snapshot()?;
        snapshot.runtimes.iter().rfind(|runtime| runtime.evaluator == evaluator).cloned()
    }

    /// What the last sample saw.
    pub(in crate::service) fn snapshot(&self) -> Option<Arc<PoolSnapshot>> {
        Some(self.lock().before.as_ref()?.snapshot.clone())
    }

    /// Reads from the sample of this number on, with every runtime if that is wanted. `None` if too many read already.
    pub(in crate::service) fn watch(&self, next: u64, is_mapped: bool) -> Option<Watcher> {
        let permit = self.watchers.clone().try_acquire_owned().ok()?;
        let mapped = is_mapped.then(|| {
            self.mapped.fetch_add(1, Ordering::Relaxed);
            Mapped(self.mapped.clone())
        });
        Some(Watcher { next, news: self.news.subscribe(), mapped, _permit: permit })
    }
}

/// One that reads samples.
pub(in crate::service) struct Watcher {
    next: u64,
    news: watch::Receiver<u64>,
    mapped: Option<Mapped>,
    _permit: OwnedSemaphorePermit,
}

/// One that wants every runtime.
struct Mapped(Arc<AtomicUsize>);

impl Drop for Mapped {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watcher {
    /// The samples that it has not read, as events; `None` if there is none.
    pub(in crate::service) fn read(&mut self, history: &History) -> Option<String> {
        let (unread, map) = {
            let state = history.lock();
            // One from before a restart begins anew.
            let next = if self.next > state.next { 0 } else { self.next };
            let first = state.next - state.samples.len() as u64;
            let known = usize::try_from(next.saturating_sub(first)).unwrap_or(usize::MAX);
            self.next = state.next;
            let unread: Vec<_> = state.samples.iter().skip(known).cloned().collect();
            (unread, state.map.clone().filter(|_| self.mapped.is_some()))
        };
        if unread.is_empty() {
            return None;
        }
        let mut text = format!("event: samples\ndata: [{}]\n\n", unread.join(","));
        if let Some(map) = map {
            text.extend(["event: runtimes\ndata: ", &*map, "\n\n"]);
        }
        Some(text)
    }

    /// Waits for the next sample.
    pub(in crate::service) async fn news(&mut self) {
        // Cannot fail while the history is there. If it is not, there is nothing to wait for.
        let _ = self.news.changed().await;
    }
}

/// Every runtime in few bytes.
fn map(snapshot: &PoolSnapshot) -> String {
    #[derive(Serialize)]
    struct Map<'a> {
        /// How many there are.
        all: usize,
        /// Name, tenant, revision, state, instances, busy, uses, bytes, age and time unused in seconds, evaluator.
        cells: Vec<Cell<'a>>,
    }

    #[derive(Serialize)]
    struct Cell<'a>(&'a str, &'a str, u64, crate::RuntimeState, usize, usize, u64, u64, Option<f64>, Option<f64>, u64);

    let tenths = |time: std::time::Duration| (time.as_secs_f64() * 10.0).round() / 10.0;
    let cell = |it: &'_ RuntimeInfo| {
        let (age, unused) = (it.age.map(tenths), it.unused.map(tenths));
        (it.revision, it.state, it.instances, it.busy, it.uses, it.memory_bytes, age, unused, it.evaluator.0)
    };
    let cells = snapshot.runtimes.iter().take(CELLS).map(|it| {
        let (revision, state, instances, busy, uses, bytes, age, unused, evaluator) = cell(it);
        Cell(&it.name, &it.tenant, revision, state, instances, busy, uses, bytes, age, unused, evaluator)
    });
    let map = Map { all: snapshot.runtimes.len(), cells: cells.collect() };
    serde_json::to_string(&map).unwrap_or_else(|_| "null".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(history: &History, samples: usize) {
        for _ in 0..samples {
            history.take(PoolSnapshot::default(), [vec![], vec![]]);
        }
    }

    fn numbers(text: &str) -> Vec<u64> {
        let samples = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let samples: Vec<serde_json::Value> = serde_json::from_str(samples).unwrap();
        samples.iter().map(|sample| sample["number"].as_u64().unwrap()).collect()
    }

    #[test]
    fn it_keeps_ten_minutes_and_a_watcher_reads_each_sample_once() {
        let history = History::default();
        let mut early = history.watch(0, false).unwrap();
        assert_eq!(early.read(&history), None);
        take(&history, 2);
        assert_eq!(numbers(&early.read(&history).unwrap()), [0, 1]);
        assert_eq!(early.read(&history), None);
        take(&history, KEPT + 10);
        let read = numbers(&early.read(&history).unwrap());
        assert_eq!((read.len(), read[0]), (KEPT, 12), "what it missed is gone");
        let mut again = history.watch(610, false).unwrap();
        assert_eq!(numbers(&again.read(&history).unwrap()), [610, 611]);
        let mut of_another_process = history.watch(1_000_000, false).unwrap();
        assert_eq!(numbers(&of_another_process.read(&history).unwrap()).len(), KEPT);
    }

    #[test]
    fn no_more_than_some_read_at_once_and_runtimes_are_written_for_those_who_want_them() {
        let history = History::default();
        let mut all: Vec<_> = (0..WATCHERS).filter_map(|at| history.watch(0, at == 0)).collect();
        assert!(all.len() == WATCHERS && history.watch(0, false).is_none());
        take(&history, 1);
        let [first, second] = [0, 1].map(|at| all[at].read(&history).unwrap());
        assert!(first.contains("event: runtimes") && !second.contains("event: runtimes"));
        all.remove(0);
        take(&history, 1);
        assert!(history.lock().map.is_none());
        assert!(history.watch(0, false).is_some());
    }

    #[test]
    fn a_sample_tells_changes_up_to_a_number() {
        let history = History::default();
        (0..CHANGES + 5).for_each(|_| history.changed("a", "uploaded"));
        take(&history, 2);
        let text = history.watch(0, false).unwrap().read(&history).unwrap();
        assert_eq!(text.matches("uploaded").count(), CHANGES);
    }
}
