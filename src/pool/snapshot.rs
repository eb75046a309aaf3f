//! The pool at one moment.

use std::sync::Arc;

use tokio::time::Instant;

use super::EvaluatorPool;
use crate::{
    info::{InstanceCounts, PoolSnapshot, RuntimeCounts, RuntimeInfo, WaitingCounts},
    registry::{Counts, Resident, RuntimeState, Snapshot, View},
    response::EvaluatorId,
    runtime::{Identity, Runtime},
};

impl EvaluatorPool {
    /// What the pool has and does at this moment, with every runtime. Costs nobody else anything that shows: it copies some
    /// words for each runtime under the registry's lock, about 0.1 ms for a thousand, and works out the rest after it.
    /// Call it once a second, not at each evaluation: like [`slots`](Self::slots), it first takes back the instances that
    /// threads keep.
    #[must_use]
    pub fn snapshot(&self) -> PoolSnapshot {
        let inner = &*self.inner;
        inner.registry.settle();
        inner.metrics.tell();
        let View { counts, oldest_wait, runtimes } = inner.registry.view();
        let (now, totals) = (Instant::now(), inner.metrics.totals());
        let Counts { building, live, draining, idle, busy, .. } = counts;
        let in_use = runtimes.iter().filter(|it| it.state == RuntimeState::Live && it.leases > 0).count();
        let identities = inner.identities.find(runtimes.iter().map(|it| it.revision.number));
        let info = |(runtime, identity): (Snapshot<Runtime>, Option<Arc<Identity>>)| {
            let resident = runtime.resident.as_ref();
            let (name, tenant) = identity.as_deref().map(Identity::words).unwrap_or_default();
            RuntimeInfo {
                evaluator: EvaluatorId(runtime.revision.evaluator),
                name,
                tenant,
                revision: runtime.revision.number,
                digest: resident.map(|resident| resident.program().digest),
                state: runtime.state,
                instances: runtime.instances,
                busy: runtime.leases,
                uses: runtime.uses,
                memory_bytes: resident.map_or(runtime.held, |resident| resident.weight().in_full()),
                age: runtime.opened.map(|opened| now.saturating_duration_since(opened)),
                unused: runtime.last_used.map(|last_used| now.saturating_duration_since(last_used)),
            }
        };
        PoolSnapshot {
            capacity: inner.pool.capacity,
            counts: RuntimeCounts { building, idle: live.saturating_sub(in_use), busy: in_use, draining },
            instances: InstanceCounts { idle, busy, most: inner.pool.max_instances },
            waiting: WaitingCounts {
                capacity: counts.waiting_capacity,
                instance: counts.waiting_instance,
                build: counts.waiting_build,
                oldest: oldest_wait,
            },
            memory: inner.memory.uses(),
            registered: self.names().len(),
            totals,
            runtimes: runtimes.into_iter().zip(identities).map(info).collect(),
        }
    }
}
