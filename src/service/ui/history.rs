//! The last ten minutes: a sample a second, each written as JSON once, for however many pages read it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{
    now,
    sample::{Before, Times, sample},
};
use crate::{EvaluatorId, PoolSnapshot, RuntimeInfo};

/// Samples that are kept.
const KEPT: usize = 600;

/// Pages that may read at once, where connections are more than twice as many.
const WATCHERS: usize = 16;

/// Bytes of samples after which an event ends, and another goes on. A reader that is slow holds one event's.
const EVENT: usize = 32 * 1024;

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
    /// An event of every runtime, if anybody wants that.
    map: Option<Bytes>,
}

impl History {
    /// Of a server with so many connections, of which its readers leave half to others.
    pub(super) fn new(connections: usize) -> Self {
        let (state, watchers) = (Mutex::default(), Arc::new(Semaphore::new(WATCHERS.min(connections / 2))));
        Self { state, news: watch::Sender::new(0), watchers, mapped: Arc::default() }
    }

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
    /// The samples that it has not read, as an event, or the first of them, and an event of every runtime; `None` if there is none. Every runtime
    /// is in memory once for all that read it.
    pub(in crate::service) fn read(&mut self, history: &History) -> Option<Vec<Bytes>> {
        let mut text = "event: samples\ndata: [".to_owned();
        let map = {
            let state = history.lock();
            // One from before a restart begins anew.
            let next = if self.next > state.next { 0 } else { self.next };
            let first = state.next - state.samples.len() as u64;
            let known = usize::try_from(next.saturating_sub(first)).unwrap_or(usize::MAX);
            let mut unread = state.samples.iter().skip(known);
            text.push_str(unread.next()?);
            self.next = next.max(first) + 1;
            for sample in unread {
                if text.len() > EVENT {
                    break;
                }
                text.extend([",", sample]);
                self.next += 1;
            }
            state.map.clone().filter(|_| self.mapped.is_some() && self.next == state.next)
        };
        text.push_str("]\n\n");
        Some([Bytes::from(text)].into_iter().chain(map).collect())
    }

    /// Waits for the next sample.
    pub(in crate::service) async fn news(&mut self) {
        // Cannot fail while the history is there. If it is not, there is nothing to wait for.
        let _ = self.news.changed().await;
    }
}

/// An event of every runtime in few bytes.
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
    format!("event: runtimes\ndata: {}\n\n", serde_json::to_string(&map).unwrap_or_else(|_| "null".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(history: &History, samples: usize) {
        for _ in 0..samples {
            history.take(PoolSnapshot::default(), [vec![], vec![]]);
        }
    }

    /// The text of the next event, and of those that come with it.
    fn read(watcher: &mut Watcher, history: &History) -> Option<String> {
        let parts = watcher.read(history)?.concat();
        Some(String::from_utf8(parts).unwrap())
    }

    fn numbers(text: &str) -> Vec<u64> {
        let samples = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let samples: Vec<serde_json::Value> = serde_json::from_str(samples).unwrap();
        samples.iter().map(|sample| sample["number"].as_u64().unwrap()).collect()
    }

    #[test]
    fn it_keeps_ten_minutes_and_a_watcher_reads_each_sample_once() {
        let history = History::new(1024);
        let mut early = history.watch(0, false).unwrap();
        assert_eq!(read(&mut early, &history), None);
        take(&history, 2);
        assert_eq!(numbers(&read(&mut early, &history).unwrap()), [0, 1]);
        assert_eq!(read(&mut early, &history), None);
        take(&history, KEPT + 10);
        let all = |watcher: &mut Watcher| {
            let events: Vec<_> = std::iter::from_fn(|| read(watcher, &history)).collect();
            assert!(events.len() > 1 && events.iter().all(|event| event.len() < EVENT + 2048), "{}", events.len());
            events.iter().flat_map(|event| numbers(event)).collect::<Vec<_>>()
        };
        let unread: Vec<_> = (12..12 + KEPT as u64).collect();
        assert_eq!(all(&mut early), unread, "what it missed is gone");
        let mut again = history.watch(610, false).unwrap();
        assert_eq!(numbers(&read(&mut again, &history).unwrap()), [610, 611]);
        let mut of_another_process = history.watch(1_000_000, false).unwrap();
        assert_eq!(all(&mut of_another_process), unread);
    }

    #[test]
    fn no_more_than_some_read_at_once_and_runtimes_are_written_for_those_who_want_them() {
        let history = History::new(1024);
        let mut all: Vec<_> = (0..WATCHERS).filter_map(|at| history.watch(0, at == 0)).collect();
        assert!(all.len() == WATCHERS && history.watch(0, false).is_none());
        take(&history, 1);
        let [first, second] = [0, 1].map(|at| read(&mut all[at], &history).unwrap());
        assert!(first.contains("event: runtimes") && !second.contains("event: runtimes"));
        all.remove(0);
        take(&history, 1);
        assert!(history.lock().map.is_none());
        assert!(history.watch(0, false).is_some());
    }

    #[test]
    fn readers_leave_half_of_the_connections_to_others() {
        for (connections, most) in [(1, 0), (3, 1), (16, 8), (1000, WATCHERS)] {
            let history = History::new(connections);
            let all: Vec<_> = std::iter::from_fn(|| history.watch(0, false)).collect();
            assert_eq!(all.len(), most, "{connections}");
        }
    }

    #[test]
    fn a_sample_tells_changes_up_to_a_number() {
        let history = History::new(1024);
        (0..CHANGES + 5).for_each(|_| history.changed("a", "uploaded"));
        take(&history, 2);
        let text = read(&mut history.watch(0, false).unwrap(), &history).unwrap();
        assert_eq!(text.matches("uploaded").count(), CHANGES);
    }
}
