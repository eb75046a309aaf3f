//! What pool, evaluator and executable share: one revision of an evaluator, the settings it runs under, and its build.
//!
//! | file | what it holds |
//! |---|---|
//! | here | a [`Revision`]: a spec with the plugin it names, and the lease on its runtime |
//! | [`pool_inner`] | [`PoolInner`]: what all revisions of one pool share, and the task that sweeps it |
//! | [`build`] | source → checks → place → compiler → registry |
//! | [`resolve`] | the spec over the settings, the plugin's imports against what there is: a blueprint |

mod build;
mod pool_inner;
mod resolve;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::Instrument;

pub(crate) use self::pool_inner::PoolInner;
use crate::{
    clock,
    config::{Init, Vars},
    engine::KeptVariables,
    error::Error,
    info::{EvaluatorInfo, InitInfo},
    registry::{Age, BuildTicket, CloseReason, Lease, Refused, RevisionId, RuntimeState},
    response::EvaluatorId,
    runtime::{Identity, Runtime},
    source::{Digest, Plugin, Source},
    spans,
    spec::Spec,
    tenants::{self, CpuTime},
};

/// One version of an evaluator: a spec with the plugin that it names. Immutable, and replaced as a whole.
pub(crate) struct Revision {
    pub(crate) id: RevisionId,
    pub(crate) identity: Arc<Identity>,
    /// The evaluator's, for errors.
    pub(crate) name: Arc<str>,
    pub(crate) spec: Spec,
    /// Extism's variables, if they outlive instances. Those of one revision: another plugin must not find them.
    variables: Option<Arc<KeptVariables>>,
    /// How often its plugin's initialisers run, if it can be chosen.
    init: Init,
    /// Known from the first successful look at the bytes.
    info: OnceLock<PluginInfo>,
    /// The plugin, where its bytes are in memory anyway, so that they are hashed and inspected once: of
    /// [`Source::Bytes`] from its first build on, of any other source until its first build, if it came with the spec.
    in_memory: Mutex<Option<Plugin>>,
    /// What its tenant's guests may use.
    pub(crate) cpu: Arc<CpuTime>,
    /// Set before the revision is taken out of the registry, and read after a build of it was begun. So either the builder
    /// sees it or the registry sees the build.
    retired: AtomicBool,
    /// The evaluator that this is the revision of now; 0 before it is published, and when it is no more. What its plugin logs
    /// is kept for that one alone.
    owner: Arc<AtomicU64>,
}

/// Whom an evaluator of this name and spec belongs to.
pub(crate) fn tenant_of<'a>(name: &'a str, spec: &'a Spec) -> &'a str {
    spec.tenant.as_deref().unwrap_or_else(|| tenants::of_name(name))
}

/// What is known of a plugin once its bytes were read.
#[derive(Debug, Clone)]
pub(crate) struct PluginInfo {
    pub(crate) digest: Digest,
    pub(crate) entry_point: Option<String>,
    pub(crate) size: u64,
}

impl Revision {
    pub(crate) fn new(inner: &PoolInner, evaluator: u64, name: &str, spec: Spec) -> Arc<Self> {
        let linked = spec.linked.iter().map(|linked| (&linked.source, linked.digest));
        let unnamed = [(&spec.source, spec.digest)].into_iter().chain(linked).filter(|(_, digest)| digest.is_none());
        for url in unnamed.filter_map(|(source, _)| source.unchecked_url()) {
            tracing::warn!(
                evaluator = name,
                url,
                "a plugin without a digest is whatever its server gives at each build; name it with Spec::digest"
            );
        }
        Arc::new(Self::with(inner, evaluator, name.into(), spec, OnceLock::new()))
    }

    /// The same of another evaluator, which nothing was built of yet.
    pub(crate) fn under(&self, inner: &PoolInner, evaluator: u64) -> Arc<Self> {
        Arc::new(Self::with(inner, evaluator, self.name.clone(), self.spec.clone(), self.info.clone()))
    }

    fn with(inner: &PoolInner, evaluator: u64, name: Arc<str>, spec: Spec, info: OnceLock<PluginInfo>) -> Self {
        let tenant = tenant_of(&name, &spec);
        let id = RevisionId { evaluator, number: inner.unique(), tenant: inner.tenant(tenant) };
        Self {
            cpu: inner.tenants.cpu(tenant),
            id,
            identity: inner.identities.list(id, name.clone(), tenant),
            name,
            variables: (spec.vars.unwrap_or(inner.engine.vars) == Vars::Kept)
                .then(|| Arc::new(KeptVariables::new(inner.variables.clone()))),
            init: if spec.asks_init { Init::Once } else { spec.init.unwrap_or(inner.engine.init) },
            spec,
            info,
            in_memory: Mutex::default(),
            retired: AtomicBool::new(false),
            owner: Arc::default(),
        }
    }

    /// Makes it an evaluator's, or with 0 nobody's.
    pub(crate) fn set_owner(&self, evaluator: u64) {
        self.owner.store(evaluator, Ordering::SeqCst);
    }

    pub(crate) fn tenant(&self) -> &str {
        tenant_of(&self.name, &self.spec)
    }

    /// Whether its tenant's guests have time left.
    pub(crate) fn may_run(&self, now: Instant) -> Result<(), Error> {
        self.cpu.check(now).map_err(|error| error.of_tenant(self.tenant()))
    }

    pub(crate) fn info(&self) -> Option<&PluginInfo> {
        self.info.get()
    }

    /// Has the first build take `plugin` instead of loading the spec's source, which must hold the same bytes.
    pub(crate) fn set_plugin(&self, plugin: Plugin) {
        *self.in_memory() = Some(plugin);
    }

    fn in_memory(&self) -> MutexGuard<'_, Option<Plugin>> {
        // Nothing panics under it.
        self.in_memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plugin, if its bytes are in memory. A source that is read at each build keeps nothing back.
    fn take_plugin(&self) -> Option<Plugin> {
        let mut in_memory = self.in_memory();
        if matches!(self.spec.source, Source::Bytes(_)) { in_memory.clone() } else { in_memory.take() }
    }

    /// The revision as an evaluator that was not called yet.
    pub(crate) fn describe(&self, id: EvaluatorId, state: RuntimeState, instances: usize) -> EvaluatorInfo {
        let info = self.info();
        EvaluatorInfo {
            digest: info.map(|info| info.digest).or(self.spec.digest),
            entry_point: info.map_or_else(|| self.spec.entry_point.clone(), |info| info.entry_point.clone()),
            size_bytes: info.map(|info| info.size),
            debug: self.spec.debug,
            init: InitInfo::new(self.init),
            ..EvaluatorInfo::closed(self.name.to_string(), self.tenant().to_owned(), id, state, instances)
        }
    }

    /// A lease on the revision's runtime. Builds the runtime if there is none.
    pub(crate) async fn lease(self: &Arc<Self>, inner: &Arc<PoolInner>) -> Result<Lease<Runtime>, Error> {
        self.lease_as(inner, &mut None, clock::deadline(inner.limits.wait_timeout), false).await
    }

    /// The same for a caller that may have asked before, and waits in queues until `deadline`. `inside` a host function it
    /// does not wait.
    pub(crate) async fn lease_as(
        self: &Arc<Self>,
        inner: &Arc<PoolInner>,
        age: &mut Option<Age>,
        deadline: Instant,
        inside: bool,
    ) -> Result<Lease<Runtime>, Error> {
        inner.ensure_sweeping();
        let start = |ticket| {
            let Identity { evaluator, tenant, revision, .. } = &*self.identity;
            let span = spans::if_wanted(|| spans::build(evaluator, tenant, revision.number));
            let build = |ticket| build::build(inner.clone(), self.clone(), ticket, inside).instrument(span);
            if let Err((ticket, error)) = inner.background.spawn_with(ticket, build) {
                BuildTicket::fail(ticket, &Error::overloaded("no thread can be started", &error, &error));
            }
        };
        let build_timeout = self.spec.build_timeout.unwrap_or(inner.limits.build_timeout);
        let lease = inner.registry.lease(self.id, age, deadline, build_timeout, !inside, start).await;
        lease.map_err(|error| error.of_tenant(self.tenant()))
    }

    /// Takes the revision out of service for good. Whoever waits for it is told that the evaluator is closed.
    pub(crate) fn retire(&self, inner: &PoolInner, reason: CloseReason, grace: Option<Duration>) {
        self.retired.store(true, Ordering::SeqCst);
        self.set_owner(0);
        inner.registry.retire(self.id, reason, grace, &Refused::Error(self.closed()));
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    pub(crate) fn closed(&self) -> Error {
        Error::Closed { name: self.name.to_string(), interrupted: false }
    }
}
