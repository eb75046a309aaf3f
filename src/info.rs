//! What the pool tells about its evaluators and runtimes. Plain data.

use std::time::Duration;

use serde::Serialize;

use crate::{registry::RuntimeState, response::EvaluatorId, source::Digest, usage::UsageTotals};

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
            state,
            instances,
            evaluations: 0,
            last_used: None,
            usage: UsageTotals::default(),
        }
    }
}

/// A runtime at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuntimeInfo {
    /// The evaluator that it belongs to.
    pub evaluator: EvaluatorId,
    /// Building, live or draining; never cold.
    pub state: RuntimeState,
    /// How many instances it has.
    pub instances: usize,
    /// How many of them serve an evaluation now.
    pub busy: usize,
    /// How many leases it has granted.
    pub uses: u64,
    /// How long it has been live; `None` if it is not live.
    pub age: Option<Duration>,
    /// Time since a lease on it last began or ended; `None` if it is not live.
    pub unused: Option<Duration>,
}
