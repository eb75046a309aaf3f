//! A plugin's source together with how to run it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use crate::{
    config::{Isolation, Wasi},
    data::DataProvider,
    engine::HostFunction,
    source::{Digest, Source},
};

/// What an evaluator is made of. What a spec leaves open is as the pool's settings say.
///
/// ```
/// use std::time::Duration;
/// use evalpool::{Source, Spec};
///
/// let spec = Spec::new(Source::file("plugins/price.wasm"))
///     .with_entry_point("price")
///     .with_config("currency", "EUR")
///     .with_exec_timeout(Duration::from_millis(250));
/// ```
#[derive(Clone)]
#[must_use]
pub struct Spec {
    pub(crate) source: Source,
    pub(crate) linked: Vec<(String, Source)>,
    pub(crate) digest: Option<Digest>,
    pub(crate) entry_point: Option<String>,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) wasi: Option<Wasi>,
    pub(crate) trusted: Option<bool>,
    pub(crate) memory: Option<u64>,
    pub(crate) exec_timeout: Option<Duration>,
    #[expect(clippy::option_option, reason = "unsaid, off, or a number")]
    pub(crate) fuel: Option<Option<u64>>,
    pub(crate) config: Arc<BTreeMap<String, String>>,
    pub(crate) allowed_hosts: Option<Arc<[String]>>,
    pub(crate) host_functions: Arc<[HostFunction]>,
    pub(crate) data: Option<Arc<dyn DataProvider>>,
}

impl Spec {
    /// A plugin from this source, run as the pool's settings say.
    pub fn new(source: Source) -> Self {
        Self {
            source,
            linked: Vec::new(),
            digest: None,
            entry_point: None,
            isolation: None,
            wasi: None,
            trusted: None,
            memory: None,
            exec_timeout: None,
            fuel: None,
            config: Arc::default(),
            allowed_hosts: None,
            host_functions: Arc::new([]),
            data: None,
        }
    }

    /// The digest that the bytes must have; a build of other bytes fails with `digest_mismatch`.
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// One more module, from which the plugin, or another such module, imports by this name. Each instance of the plugin
    /// has its own instance of it. The names `main`, `extism:host/env`, `extism:host/user` and
    /// `wasi_snapshot_preview1` are taken.
    pub fn with_module(mut self, name: impl Into<String>, source: Source) -> Self {
        self.linked.push((name.into(), source));
        self
    }

    /// The export to call. Default: `run` if it is exported, else the only export that fits.
    pub fn with_entry_point(mut self, name: impl Into<String>) -> Self {
        self.entry_point = Some(name.into());
        self
    }

    /// Whether instances are used again.
    pub fn with_isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// Whether the plugin gets WASI.
    pub fn with_wasi(mut self, wasi: Wasi) -> Self {
        self.wasi = Some(wasi);
        self
    }

    /// Whether the plugin is trusted to mean no harm: the `extism` [engine](crate::engine::choosing) takes only such.
    pub fn with_trusted(mut self, trusted: bool) -> Self {
        self.trusted = Some(trusted);
        self
    }

    /// Linear memory of one instance, in bytes; rounded down to 64 KiB pages.
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// How long one evaluation's guest may run.
    pub fn with_exec_timeout(mut self, timeout: Duration) -> Self {
        self.exec_timeout = Some(timeout);
        self
    }

    /// Instructions, roughly, for one evaluation; `None` for no such limit.
    pub fn with_fuel(mut self, fuel: Option<u64>) -> Self {
        self.fuel = Some(fuel);
        self
    }

    /// A value that the plugin can read as configuration.
    pub fn with_config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.config).insert(key.into(), value.into());
        self
    }

    /// Hosts that the plugin may call over HTTP, as glob patterns; replaces the pool's. The empty list allows none.
    pub fn with_allowed_hosts<I: IntoIterator<Item = S>, S: Into<String>>(mut self, hosts: I) -> Self {
        self.allowed_hosts = Some(hosts.into_iter().map(Into::into).collect());
        self
    }

    /// One more function of the host that the plugin may import. What the closure captured is dropped when the
    /// evaluator is closed and its runtime gone.
    pub fn with_host_function(mut self, function: impl Into<HostFunction>) -> Self {
        self.host_functions = self.host_functions.iter().cloned().chain([function.into()]).collect();
        self
    }

    /// Data of the evaluator's own, into which each call's data is merged: see [`data`](crate::data).
    pub fn with_data(mut self, provider: impl DataProvider) -> Self {
        self.data = Some(Arc::new(provider));
        self
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec")
            .field("source", &self.source)
            .field("digest", &self.digest)
            .field("entry_point", &self.entry_point)
            .finish_non_exhaustive()
    }
}
