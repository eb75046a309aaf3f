//! What the pool tells about its evaluators and runtimes. Plain data.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::{
    config::Init,
    engine::{InitState, SnapshotInfo},
    memory::MemoryUse,
    metrics::PoolTotals,
    registry::RuntimeState,
    response::EvaluatorId,
    source::Digest,
    usage::{UsageTotals, seconds},
};

/// An evaluator at one moment, as the pool lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EvaluatorInfo {
    /// Its name.
    pub name: String,
    /// The [tenant](crate::Spec::tenant) that it belongs to.
    pub tenant: String,
    /// Tells it from other evaluators, also from earlier ones of the same name.
    pub id: EvaluatorId,
    /// The digest of its plugin; `None` until the plugin has been read.
    pub digest: Option<Digest>,
    /// The export that calls run which name none; `None` if each has to name its own, or if the spec names none and the
    /// plugin has not been read yet.
    pub entry_point: Option<String>,
    /// The size of its plugin, in bytes; `None` until the plugin has been read.
    pub size_bytes: Option<u64>,
    /// Whether clients may see the [last words](crate::LastWords) of its guests, and all of what an evaluation used.
    pub debug: bool,
    /// How its plugin's instances are initialised.
    pub init: InitInfo,
    /// What its runtime is doing.
    pub state: RuntimeState,
    /// How many instances its runtime has.
    pub instances: usize,
    /// How many evaluations were requested of it.
    pub evaluations: u64,
    /// When an evaluation was last requested, in milliseconds since the Unix epoch.
    pub last_used: Option<u64>,
    /// What its evaluations have used since it was registered, whatever its plugin was then.
    pub usage: UsageTotals,
}

impl EvaluatorInfo {
    /// An evaluator whose plugin is no longer known.
    pub(crate) fn closed(name: String, tenant: String, id: EvaluatorId, state: RuntimeState, instances: usize) -> Self {
        Self {
            name,
            tenant,
            id,
            digest: None,
            entry_point: None,
            size_bytes: None,
            debug: false,
            init: InitInfo::default(),
            state,
            instances,
            evaluations: 0,
            last_used: None,
            usage: UsageTotals::default(),
        }
    }
}

/// How often a plugin's initialisers run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InitInfo {
    /// What the spec and the settings say.
    pub mode: Init,
    /// Whether instances that are made now begin with what the initialisers did once. False while there is no runtime,
    /// and while this is being compiled.
    pub in_use: bool,
    /// Why the initialisers run in each instance all the same; `None` if they need not, or if nobody has tried yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What they did when they ran once: of the snapshot that instances begin with, or that is being compiled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotInfo>,
}

impl InitInfo {
    pub(crate) fn new(mode: Init) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Notes how it is with a runtime.
    pub(crate) fn note(&mut self, state: &InitState, snapshot: Option<SnapshotInfo>) {
        self.snapshot = snapshot;
        self.in_use = *state == InitState::Once;
        self.refused = match state {
            InitState::Refused(why) => Some(why.to_string()),
            _ => None,
        };
    }
}

/// What the pool has and does, at one moment: what a status page shows. In JSON, times are in seconds.
///
/// Runtimes, instances and callers are of one moment; the rest was read a moment before or after. While calls are in flight,
/// their parts need not add up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolSnapshot {
    /// The most runtimes that may exist: [`pool.capacity`](crate::config::PoolSettings::capacity).
    pub capacity: usize,
    /// How many runtimes have a place now, or wait for one.
    pub counts: RuntimeCounts,
    /// How many instances exist.
    pub instances: InstanceCounts,
    /// Who waits.
    pub waiting: WaitingCounts,
    /// What runtimes hold, and its bound.
    pub memory: MemoryUse,
    /// How many evaluators are registered by name, live or cold.
    pub registered: usize,
    /// What was counted since the pool was made.
    pub totals: PoolTotals,
    /// Every runtime. Beside those of `counts`, builds that have no place yet.
    pub runtimes: Vec<RuntimeInfo>,
}

/// How many runtimes have a place, by what they do. Together they are never more than the capacity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RuntimeCounts {
    /// Being built.
    pub building: usize,
    /// Live, and no evaluation uses them.
    pub idle: usize,
    /// Live and in use.
    pub busy: usize,
    /// Closing, or waiting for their last calls.
    pub draining: usize,
}

/// How many instances there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InstanceCounts {
    /// They wait for an evaluation.
    pub idle: usize,
    /// They serve one, or are being made or given back.
    pub busy: usize,
    /// The most that may exist: [`pool.max_instances`](crate::config::PoolSettings::max_instances).
    pub most: usize,
}

/// How many callers wait, and what for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WaitingCounts {
    /// For a runtime's place.
    pub capacity: usize,
    /// For an instance of a live runtime.
    pub instance: usize,
    /// For a build in progress.
    pub build: usize,
    /// How long the caller has waited that has waited longest; zero if nobody waits.
    #[serde(rename = "oldest_seconds", serialize_with = "seconds")]
    pub oldest: Duration,
}

/// A runtime at one moment. In JSON, times are in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RuntimeInfo {
    /// The evaluator that it belongs to.
    pub evaluator: EvaluatorId,
    /// Its name.
    pub name: String,
    /// The [tenant](crate::Spec::tenant) that it belongs to.
    pub tenant: String,
    /// Which of the evaluator's revisions it runs: no two revisions of a pool have the same number, and a later one has a
    /// greater.
    pub revision: u64,
    /// The digest of its plugin; `None` unless it is live or still in use.
    pub digest: Option<Digest>,
    /// Building, live or draining; never cold.
    pub state: RuntimeState,
    /// How many instances it has.
    pub instances: usize,
    /// How many of them serve an evaluation now.
    pub busy: usize,
    /// How many leases it has granted.
    pub uses: u64,
    /// What it holds, in bytes: its instances, and all its code, also if others run the same. While it closes, what it
    /// held when that began.
    pub memory_bytes: u64,
    /// How long it has been live; `None` if it is not live.
    #[serde(rename = "age_seconds", serialize_with = "maybe_seconds")]
    pub age: Option<Duration>,
    /// Time since a lease on it last began or ended; `None` if it is not live.
    #[serde(rename = "unused_seconds", serialize_with = "maybe_seconds")]
    pub unused: Option<Duration>,
}

#[expect(clippy::ref_option, reason = "serde passes it so")]
fn maybe_seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}
