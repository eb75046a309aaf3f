//! Connections of clients: how many there are, what each holds in bytes, and which of them gives way to others.
//!
//! Bodies of requests and answers share one budget, `service.body_memory`. A connection has [`OWN`] bytes of its own,
//! whatever others hold; what it holds above takes of the budget, at most a quarter of it, or half for all uploads
//! together. What finds no room is refused and never queues for others to finish: half-read bodies would wait for each
//! other. It only waits, for a second at most, until connections that are behind their least rate have given way.
//!
//! Everything is under one lock, which is held for a few comparisons; when something does not fit, for a look at each
//! connection.

mod charge;
mod pace;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::Unit;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

pub(super) use self::{
    charge::{Charge, Kind, NoRoom},
    pace::Pace,
};
use crate::config::ServiceSettings;

/// Bytes that a connection may hold without asking the budget, so that small requests always find room.
pub(super) const OWN: u64 = 16 * 1024;

/// Connections of `service.admin_listen` at once.
const OF_OPERATORS: usize = 64;

/// A connection gives its place to a newcomer when it has been idle for this long. Before, its request may be on the way.
const IDLE: Duration = Duration::from_secs(1);

/// A body or an answer gives way to others when it has used up this much of its allowance.
const BEHIND: Duration = Duration::from_secs(1);

/// How often a newcomer looks for a connection that has fallen behind meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What all connections of one listener share.
pub(super) struct Connections {
    most: usize,
    budget: u64,
    rate: u64,
    time: Duration,
    state: Mutex<State>,
    /// Notified when a connection ends or comes to rest, and when bytes are given back.
    changed: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    open: usize,
    /// The open ones, and those that are gone while something of theirs is in memory.
    all: BTreeMap<u64, Entry>,
    /// Bytes of the budget that are in use, and those of them that are of uploads.
    used: u64,
    uploads: u64,
    /// Bytes that wait until others give way.
    waiting: u64,
}

struct Entry {
    phase: Phase,
    /// By [`Kind`]: each of its bytes, its own too.
    held: [u64; 2],
    signals: Arc<Signals>,
}

impl Entry {
    /// Whether it takes anything of the budget: of one kind, or of any.
    fn holds(&self, of: Option<Kind>) -> bool {
        match of {
            Some(kind) => self.held[kind as usize] > OWN,
            None => self.held.iter().any(|held| *held > OWN),
        }
    }
}

#[derive(Clone, Copy)]
enum Phase {
    /// No request is in flight, since then.
    Idle(Instant),
    /// A body is on its way, and is in time until then.
    Reading(Instant),
    /// The same of an answer.
    Writing(Instant),
    /// Its request is being handled.
    Working,
    /// It was told to give way.
    Leaving,
    Gone,
}

#[derive(Default)]
struct Signals {
    /// The connection is to end.
    end: Notify,
    /// Its body is to be dropped; it may still be answered.
    yields: Notify,
}

/// One connection. Charges keep it.
pub(super) struct Connection {
    id: u64,
    all: Arc<Connections>,
    signals: Arc<Signals>,
    /// Whether a handler runs.
    working: AtomicBool,
}

/// A connection's place among `service.max_connections`.
pub(super) struct Place(Arc<Connection>);

impl Connections {
    pub(super) fn new(service: &ServiceSettings) -> Arc<Self> {
        Self::bounded(service.max_connections, service.body_memory, service.transfer_rate, service.transfer_timeout)
    }

    /// Of `service.admin_listen`, which has a small bound of its own.
    pub(super) fn of_operators(service: &ServiceSettings) -> Arc<Self> {
        Self::bounded(OF_OPERATORS, service.body_memory, service.transfer_rate, service.transfer_timeout)
    }

    /// With these bounds.
    pub(super) fn bounded(most: usize, budget: u64, rate: u64, time: Duration) -> Arc<Self> {
        Arc::new(Self { most, budget, rate, time, state: Mutex::default(), changed: Notify::new() })
    }

    /// Takes a place for a new connection. If there is none, the connection that is idle longest ends, or else the one
    /// whose body or answer is furthest behind; while there is none of either, this waits.
    pub(super) async fn admit(self: &Arc<Self>) -> Place {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if state.open < self.most {
                    return Place(self.open(&mut state));
                }
                state.end_one();
            }
            let _ = timeout(LOOK_AGAIN, changed).await;
        }
    }

    /// Ends a connection as for a newcomer: the system is short of files.
    pub(super) fn relieve(&self) {
        self.lock().end_one();
    }

    fn open(self: &Arc<Self>, state: &mut State) -> Arc<Connection> {
        let (id, signals) = (state.next, Arc::<Signals>::default());
        state.next += 1;
        state.open += 1;
        state.all.insert(id, Entry { phase: Phase::Idle(Instant::now()), held: [0; 2], signals: signals.clone() });
        Arc::new(Connection { id, all: self.clone(), signals, working: AtomicBool::new(false) })
    }

    /// Sets the gauges: how many are open, and how many bytes of the budget are in use.
    pub(super) fn publish(&self) {
        let (open, used) = self.figures();
        for (name, unit, help, value) in [
            ("evalpool_http_connections", Unit::Count, "Connections of clients that are open.", open as f64),
            (
                "evalpool_http_body_bytes",
                Unit::Bytes,
                "Bytes of request bodies and answers in memory, of service.body_memory.",
                used as f64,
            ),
        ] {
            metrics::describe_gauge!(name, unit, help);
            metrics::gauge!(name).set(value);
        }
    }

    pub(super) fn figures(&self) -> (usize, u64) {
        let state = self.lock();
        (state.open, state.used)
    }

    /// Requests that are being handled.
    #[cfg(test)]
    pub(super) fn at_work(&self) -> usize {
        self.lock().all.values().filter(|entry| matches!(entry.phase, Phase::Working)).count()
    }

    /// Answers that are being written.
    #[cfg(test)]
    pub(super) fn writing(&self) -> usize {
        self.lock().all.values().filter(|entry| matches!(entry.phase, Phase::Writing(_))).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends a connection for a newcomer, unless one is about to end already.
    fn end_one(&mut self) {
        if self.all.values().any(|entry| matches!(entry.phase, Phase::Leaving)) {
            return;
        }
        let now = Instant::now();
        let rank = |entry: &&mut Entry| match entry.phase {
            Phase::Idle(since) => (now - since >= IDLE).then_some((false, since)),
            Phase::Reading(due) | Phase::Writing(due) => is_behind(due, now).then_some((true, due)),
            _ => None,
        };
        let candidates = self.all.values_mut().filter_map(|entry| Some((rank(&entry)?, entry)));
        if let Some((_, entry)) = candidates.min_by_key(|(rank, _)| *rank) {
            entry.phase = Phase::Leaving;
            entry.signals.end.notify_one();
        }
    }

    /// Has the connection that is furthest behind give its bytes back, of those that hold bytes of a kind. Whether some
    /// will come.
    fn free_some(&mut self, of: Option<Kind>) -> bool {
        let now = Instant::now();
        let mut found = None;
        for entry in self.all.values_mut().filter(|entry| entry.holds(of)) {
            match entry.phase {
                Phase::Leaving => return true,
                Phase::Reading(due) | Phase::Writing(due)
                    if is_behind(due, now) && found.as_ref().is_none_or(|(first, _)| due < *first) =>
                {
                    found = Some((due, entry));
                }
                _ => {}
            }
        }
        let Some((_, entry)) = found else { return false };
        // Whose body is dropped can still be answered.
        let is_reading = matches!(entry.phase, Phase::Reading(_));
        let signal = if is_reading { &entry.signals.yields } else { &entry.signals.end };
        signal.notify_one();
        entry.phase = Phase::Leaving;
        true
    }
}

fn is_behind(due: Instant, now: Instant) -> bool {
    due.saturating_duration_since(now) + BEHIND <= pace::ALLOWANCE
}

impl Connection {
    /// The pace that a body or an answer must keep from now on.
    pub(super) fn pace(&self) -> Pace {
        Pace::new(self.all.rate, self.all.time)
    }

    /// A handler runs from here on.
    pub(super) fn begin_work(&self) {
        self.working.store(true, Ordering::Relaxed);
        self.enter(Phase::Working);
    }

    /// The handler has answered, and the answer is on its way.
    pub(super) fn end_work(&self) {
        self.working.store(false, Ordering::Relaxed);
        self.enter(Phase::Writing(self.pace().due()));
    }

    pub(super) fn is_working(&self) -> bool {
        self.working.load(Ordering::Relaxed)
    }

    /// A body is on its way, and is in time until `due`.
    pub(super) fn reads(&self, due: Instant) {
        self.enter(Phase::Reading(due));
    }

    /// The body is there. `false` if it must be dropped, for others.
    pub(super) fn has_read(&self) -> bool {
        self.enter(Phase::Working)
    }

    /// An answer is on its way, and is in time until `due`.
    pub(super) fn writes(&self, due: Instant) {
        self.enter(Phase::Writing(due));
    }

    /// The answer is written.
    pub(super) fn rests(&self) {
        self.enter(Phase::Idle(Instant::now()));
        self.all.changed.notify_waiters();
    }

    /// Whether it may: not if it was told to give way.
    fn enter(&self, phase: Phase) -> bool {
        match self.all.lock().all.get_mut(&self.id) {
            Some(Entry { phase: now, .. }) if !matches!(now, Phase::Leaving | Phase::Gone) => {
                *now = phase;
                true
            }
            _ => false,
        }
    }

    /// Returns when the connection must end, for others.
    pub(super) async fn ended(&self) {
        self.signals.end.notified().await;
    }

    /// Returns when the body that is being read must be dropped, for others.
    pub(super) async fn yields(&self) {
        let told = || self.all.lock().all.get(&self.id).is_none_or(|entry| matches!(entry.phase, Phase::Leaving));
        // A signal may be left over from a body that came whole at the same moment.
        while !told() {
            self.signals.yields.notified().await;
        }
    }

    /// The body was dropped, and its request is refused.
    pub(super) fn has_yielded(&self) {
        if let Some(entry) = self.all.lock().all.get_mut(&self.id)
            && matches!(entry.phase, Phase::Leaving)
        {
            entry.phase = Phase::Working;
        }
    }
}

impl Place {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.0.all.lock();
        state.open = state.open.saturating_sub(1);
        if let Some(entry) = state.all.get_mut(&self.0.id) {
            entry.phase = Phase::Gone;
        }
        drop(state);
        self.0.all.changed.notify_waiters();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.lock().all.remove(&self.id);
    }
}
