//! A plugin's source together with how to run it.

use std::{collections::BTreeMap, fmt, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    config::{HostPattern, Init, Input, Isolation, Vars, Wasi},
    data::DataProvider,
    engine::HostFunction,
    error::Error,
    source::{Digest, Source},
    units::{Quoted, unfit_name},
};

/// Declares methods of a builder that set one field each: `fn name(argument: Type) => field = value;`.
macro_rules! setters {
    ($($(#[$doc:meta])* fn $name:ident($argument:ident: $type:ty) => $($field:ident).+ = $value:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name(mut self, $argument: $type) -> Self {
            self.$($field).+ = $value;
            self
        }
    )*};
}

pub(crate) use setters;

/// What an evaluator is made of. The pool's settings decide what a spec leaves open.
///
/// ```
/// use std::time::Duration;
/// use evalpool::Spec;
///
/// let spec = Spec::file("plugins/price.wasm")
///     .entry_point("price")
///     .config("currency", "EUR")
///     .exec_timeout(Duration::from_millis(250));
/// ```
#[derive(Clone)]
#[must_use]
pub struct Spec {
    pub(crate) source: Source,
    pub(crate) linked: Vec<Linked>,
    pub(crate) digest: Option<Digest>,
    pub(crate) entry_point: Option<String>,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) wasi: Option<Wasi>,
    pub(crate) input: Option<Input>,
    pub(crate) vars: Option<Vars>,
    pub(crate) init: Option<Init>,
    #[expect(clippy::option_option, reason = "not said, off, or a duration")]
    pub(crate) init_refresh: Option<Option<Duration>>,
    /// Whether it is only asked if initialisers can run once: nothing comes of it, and nothing is logged.
    pub(crate) asks_init: bool,
    pub(crate) trusted: Option<bool>,
    pub(crate) memory: Option<u64>,
    pub(crate) output_size: Option<u64>,
    pub(crate) instances: Option<NonZeroUsize>,
    pub(crate) build_timeout: Option<Duration>,
    pub(crate) exec_timeout: Option<Duration>,
    #[expect(clippy::option_option, reason = "not said, off, or a number")]
    pub(crate) fuel: Option<Option<u64>>,
    pub(crate) config: Arc<BTreeMap<String, String>>,
    pub(crate) allowed_hosts: Option<Arc<[String]>>,
    pub(crate) host_functions: Arc<[HostFunction]>,
    pub(crate) data: Option<Arc<dyn DataProvider>>,
    pub(crate) debug: bool,
    pub(crate) labels: Arc<BTreeMap<String, String>>,
    pub(crate) tenant: Option<String>,
}

/// A module from which the plugin, or another such module, imports by its name.
#[derive(Debug, Clone)]
pub(crate) struct Linked {
    pub(crate) name: String,
    pub(crate) source: Source,
    pub(crate) digest: Option<Digest>,
}

impl Spec {
    /// A plugin in a file, read at each build: see [`Source::file`].
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::new(Source::file(path))
    }

    /// A plugin in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::new(Source::Bytes(bytes.into()))
    }

    /// A plugin on an HTTP server, fetched at each build: see [`Source::http`], and name its [digest](Self::digest).
    #[cfg(feature = "direct")]
    pub fn url(url: impl Into<String>) -> Self {
        Self::new(Source::http(url))
    }

    /// A plugin from this source that runs as the pool's settings say.
    pub fn new(source: impl Into<Source>) -> Self {
        Self {
            source: source.into(),
            linked: Vec::new(),
            digest: None,
            entry_point: None,
            isolation: None,
            wasi: None,
            input: None,
            vars: None,
            init: None,
            init_refresh: None,
            asks_init: false,
            trusted: None,
            memory: None,
            output_size: None,
            instances: None,
            build_timeout: None,
            exec_timeout: None,
            fuel: None,
            config: Arc::default(),
            allowed_hosts: None,
            host_functions: Arc::new([]),
            data: None,
            debug: false,
            labels: Arc::default(),
            tenant: None,
        }
    }

    setters! {
        /// The digest that the bytes must have. A build of other bytes fails with
        /// [`DigestMismatch`](crate::Error::DigestMismatch).
        fn digest(digest: Digest) => digest = Some(digest);
        /// The export that calls run which name [none](crate::Evaluator::entry_point). Default: `run` if the plugin exports
        /// it, else the only export that fits and that the toolchain did not add, else none, and each call names its own.
        /// A build of a plugin without this export, or without any that fits, fails with
        /// [`EntryPointMissing`](crate::Error::EntryPointMissing).
        fn entry_point(name: impl Into<String>) => entry_point = Some(name.into());
        /// Whether an instance serves one evaluation or many.
        fn isolation(isolation: Isolation) => isolation = Some(isolation);
        /// Whether the plugin gets WASI.
        fn wasi(wasi: Wasi) => wasi = Some(wasi);
        /// What the plugin gets as input from clients of a server. Has no effect on calls from Rust: see [`Input`].
        fn input(input: Input) => input = Some(input);
        /// Whether Extism's variables live as long as an instance, or are kept for the evaluator.
        fn vars(vars: Vars) => vars = Some(vars);
        /// Whether the plugin's initialisers run in each instance, or once. Only the `direct` engine runs them
        /// [once](Init::Once); a build on another fails with [`InvalidRequest`](crate::Error::InvalidRequest).
        fn init(init: Init) => init = Some(init);
        /// How old what the initialisers drew of time and randomness gets before they run [once](Init::Once) more, as
        /// [`engine.init_refresh`](crate::config::EngineSettings::init_refresh) says; `None`, or no time, for never. What makes one
        /// anew takes turns with other plugins: a shorter time than ten seconds is seldom kept.
        fn init_refresh(every: Option<Duration>) => init_refresh = Some(every);
        /// Whether you trust the plugin. The `extism` [engine](crate::engine::choosing) refuses others with
        /// [`InvalidRequest`](crate::Error::InvalidRequest).
        fn trusted(trusted: bool) => trusted = Some(trusted);
        /// Linear memory of one instance, in bytes, within the pool's own bound
        /// ([`limits.memory`](crate::config::LimitSettings::memory)); rounded down to 64 KiB pages. A guest that needs more
        /// fails with [`OutOfMemory`](crate::Error::OutOfMemory).
        fn memory(bytes: u64) => memory = Some(bytes);
        /// Size of an evaluation's output, in bytes. A guest with more fails with
        /// [`OutputTooLarge`](crate::Error::OutputTooLarge).
        fn output_size(bytes: u64) => output_size = Some(bytes);
        /// Instances of the plugin at once, within the pool's own bound
        /// ([`max_instances_per_evaluator`](crate::config::PoolSettings::max_instances_per_evaluator)).
        fn instances(instances: NonZeroUsize) => instances = Some(instances);
        /// How long reading, compiling and initialising the plugin may each take. A build that takes longer fails with
        /// [`BuildTimeout`](crate::Error::BuildTimeout), or with [`SourceUnavailable`](crate::Error::SourceUnavailable) if
        /// the plugin was not read in that time.
        fn build_timeout(timeout: Duration) => build_timeout = Some(timeout);
        /// How long the guest may run in one evaluation. Then the engine stops it, and the evaluation fails with
        /// [`ExecTimeout`](crate::Error::ExecTimeout).
        fn exec_timeout(timeout: Duration) => exec_timeout = Some(timeout);
        /// How many instructions the guest may run in an evaluation, and as many once more to initialise each instance;
        /// `None` for no limit. A guest that needs more fails with [`OutOfFuel`](crate::Error::OutOfFuel). What counts is
        /// said with [`LimitSettings::fuel`](crate::config::LimitSettings::fuel).
        fn fuel(fuel: Option<u64>) => fuel = Some(fuel);
        /// Whether clients of a server may see the [last words](crate::LastWords) of the plugin's guests, and all of what an
        /// evaluation [used](crate::Usage). Default: no. Your own code gets both in any case, with the error or the response.
        fn debug(debug: bool) => debug = debug;
        /// The tenant that the evaluator belongs to: a name by the rule for names of evaluators. Default: the part of the
        /// evaluator's name before the first `/`; a name without one is its own tenant, of that name. So it is with
        /// [unregistered](crate::EvaluatorPool::evaluator) evaluators too: those of one name have one tenant. A server's
        /// clients cannot choose a tenant, but by the evaluator's name.
        ///
        /// When a registered evaluator is replaced by a spec of another tenant, it belongs to that one from then on.
        fn tenant(name: impl Into<String>) => tenant = Some(name.into());
        /// The evaluator's own data, into which each call's data is merged: see [`data`](crate::data).
        fn data(provider: impl DataProvider) => data = Some(Arc::new(provider));
    }

    /// Adds a module from which the plugin, or another such module, imports by this name. Each instance of the plugin
    /// has its own instance of it. A module named `extism:host/user` stands in for host functions that you do not have. The
    /// names `main`, `extism:host/env` and `wasi_snapshot_preview1` are taken, and the `direct` engine links a plugin with at
    /// most eight. A build of others fails with [`InvalidRequest`](crate::Error::InvalidRequest).
    pub fn link(mut self, name: impl Into<String>, source: impl Into<Source>) -> Self {
        self.linked.push(Linked { name: name.into(), source: source.into(), digest: None });
        self
    }

    /// Adds a value that the plugin can read as configuration.
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.config).insert(key.into(), value.into());
        self
    }

    /// Adds a label, which stands beside the evaluator's name in log lines about what its guests leave behind, and on the
    /// `direct` engine in those that the plugin writes itself.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.labels).insert(key.into(), value.into());
        self
    }

    /// Hosts that the plugin may call over HTTP, in place of the pool's. An empty list allows none.
    ///
    /// An entry is a host (`api.example.com`), a glob pattern of hosts (`*.example.com`) or an address (`127.0.0.1`,
    /// `[::1]`), with a port if only that one is allowed (`127.0.0.1:8080`); it has no scheme, user or path. On the
    /// `direct` engine an entry without wildcards decides alone for its host: with `*` and `localhost:8080`, no other
    /// port of `localhost` can be reached. Hosts with private addresses are reached by such entries only. The `extism`
    /// engine takes no entries with ports.
    ///
    /// An entry that no request could match is refused with [`InvalidRequest`](crate::Error::InvalidRequest) when the
    /// spec is registered or prepared.
    pub fn allowed_hosts<I: IntoIterator<Item = S>, S: Into<String>>(mut self, hosts: I) -> Self {
        self.allowed_hosts = Some(hosts.into_iter().map(Into::into).collect());
        self
    }

    /// Adds a host function that the plugin may import. What its closure captured is dropped once the evaluator is
    /// closed and its runtime is gone.
    pub fn host_function(mut self, function: impl Into<HostFunction>) -> Self {
        self.host_functions = self.host_functions.iter().cloned().chain([function.into()]).collect();
        self
    }

    /// Refuses what no build could use.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if let Some((tenant, reason)) = self.tenant.as_deref().and_then(|name| Some((name, unfit_name(name)?))) {
            let why = format!("the spec's tenant, {}, is no name of a tenant: {reason}", Quoted(tenant));
            return Err(Error::invalid_request(why));
        }
        self.source.check()?;
        self.linked.iter().try_for_each(|linked| linked.source.check())?;
        let hosts = self.allowed_hosts.as_deref().unwrap_or_default();
        let checked = HostPattern::parse_all(hosts);
        checked.map(drop).map_err(|why| Error::invalid_request(format!("the spec's allowed_hosts has {why}")))
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
