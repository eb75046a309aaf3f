//! What the pool shows of its evaluators and runtimes. Plain data.

use std::time::Duration;

use serde::Serialize;

use crate::{registry::RuntimeState, response::EvaluatorId, source::Digest};

/// An evaluator at one moment, as the pool lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EvaluatorInfo {
    /// Its name.
    pub name: String,
    /// Which evaluator of that name.
    pub id: EvaluatorId,
    /// The digest of its plugin; `None` while nobody has read the bytes.
    pub digest: Option<Digest>,
    /// The export that is called; `None` while it is to be chosen from bytes that nobody has read.
    pub entry_point: Option<String>,
    /// The plugin's bytes; `None` while nobody has read them.
    pub size_bytes: Option<u64>,
    /// What its runtime is doing.
    pub state: RuntimeState,
    /// Instances of its runtime.
    pub instances: usize,
    /// Evaluations that it was asked for.
    pub evaluations: u64,
    /// When it was last asked, in milliseconds since the Unix epoch.
    pub last_used: Option<u64>,
}

impl EvaluatorInfo {
    /// Of one whose plugin is not known any more.
    pub(crate) fn closed(name: String, id: EvaluatorId, state: RuntimeState, instances: usize) -> Self {
        Self {
            name,
            id,
            digest: None,
            entry_point: None,
            size_bytes: None,
            state,
            instances,
            evaluations: 0,
            last_used: None,
        }
    }
}

/// A runtime at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// The evaluator that it belongs to.
    pub evaluator: EvaluatorId,
    /// Building, live or draining; never cold.
    pub state: RuntimeState,
    /// Instances that exist.
    pub instances: usize,
    /// Instances that serve an evaluation right now.
    pub busy: usize,
    /// Leases that it has granted.
    pub uses: u64,
    /// Since it went live; `None` for one that is not live.
    pub age: Option<Duration>,
    /// Since a lease of it last began or ended; `None` for one that is not live.
    pub unused: Option<Duration>,
}
