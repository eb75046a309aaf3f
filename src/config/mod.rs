//! Every setting, its unit, range and default. The only reader of files and environment.
//!
//! Settings come in layers: the defaults below, then a TOML file, then the environment
//! (`EVALPOOL_<SECTION>_<KEY>`), then the program's flags. An unknown key is an error that names the nearest known one.

mod choices;
mod formats;
mod headers;
#[cfg_attr(not(all(feature = "direct", feature = "extism")), allow(unused, reason = "each engine uses a part of it"))]
mod hosts;
mod kubernetes;
mod read;
mod telemetry;
mod tenants;
mod usage;
mod word_or_path;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::host_memory;

pub(crate) use self::formats::size;
use self::formats::{list_or_commas, off_or_duration, off_or_number, word};
pub(crate) use self::hosts::{HostPattern, default_hosts};
pub use self::{
    choices::{EngineKind, Eviction, Init, Input, Isolation, Vars, Wasi},
    read::SettingsError,
    telemetry::TelemetrySettings,
    tenants::{TenantBounds, TenantSettings},
    usage::UsageSettings,
    word_or_path::{CodeCache, CompileWorkers},
};
#[cfg(feature = "service")]
pub(crate) use self::{
    formats::{Refresh, object, strings, take},
    kubernetes::ignored as ignored_variables,
};
#[cfg(feature = "service")]
pub(crate) use self::{hosts::hosts_within, read::nearest};

/// All settings. [`Default`] is what the program runs with if you set nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How many runtimes and instances there may be, and how many callers may wait.
    pub pool: PoolSettings,
    /// What one plugin and one evaluation may use.
    pub limits: LimitSettings,
    /// How plugins run unless their spec says otherwise.
    pub engine: EngineSettings,
    /// The HTTP server. Has no effect on a pool.
    pub service: ServiceSettings,
    /// What each tenant may have.
    pub tenants: TenantSettings,
    /// How what is used is reported.
    pub usage: UsageSettings,
    /// The pool's metrics.
    pub metrics: MetricSettings,
    /// Where the server's spans go. Has no effect on a pool.
    pub telemetry: TelemetrySettings,
    /// The program's log.
    pub log: LogSettings,
}

/// How many runtimes and instances there may be, and how many callers may wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSettings {
    /// Runtimes that may exist at once, whether building, live or draining. At least 1. Default 256.
    pub capacity: usize,
    /// Instances that may exist at once, over all runtimes. At least `capacity`, since every runtime starts with one.
    /// Default 1024.
    pub max_instances: usize,
    /// Which runtime is closed for a newcomer. Default `lru`.
    #[serde(deserialize_with = "word")]
    pub eviction: Eviction,
    /// Bytes that all runtimes may hold: loaded code, instances as large as they are now, and code that is kept for the next
    /// build. When a build finds too little room, idle instances are dropped for it, then code that is kept, and then unused
    /// runtimes are closed; if that is not enough within a second, it fails with [`Overloaded`](crate::Error::Overloaded).
    /// What busy instances grow to is counted, and may exceed the bound until their calls end. Weighed on the `direct` engine
    /// alone. At least `16MiB`. Default: half of what the process may use, by its control group or else by the machine.
    #[serde(deserialize_with = "size")]
    pub memory: u64,
    /// Instances of one runtime. At least 1. Default: cores × 2.
    pub max_instances_per_evaluator: usize,
    /// How long the pool keeps an unused runtime. Default `10m`.
    #[serde(with = "humantime_serde")]
    pub idle_ttl: Duration,
    /// How long calls in flight may continue after a close. Then they are interrupted, and fail with
    /// [`Closed`](crate::Error::Closed), or with [`ShuttingDown`](crate::Error::ShuttingDown) if the pool was closed.
    /// Default `10s`.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// How many evaluations one reused instance serves before it is replaced. At least 1. Default 10000.
    pub max_uses: u64,
    /// Callers that may wait for a runtime or an instance. The pool refuses the next one with
    /// [`Saturated`](crate::Error::Saturated). Default 4096.
    pub max_waiting: usize,
    /// How long the pool remembers a build whose failure would repeat, and answers with its error instead of building
    /// again. `0s` turns this off. Default `5s`.
    #[serde(with = "humantime_serde")]
    pub negative_ttl: Duration,
    /// Compilations that may run at once. At least 1. Default: cores.
    pub build_concurrency: usize,
}

/// What one plugin and one evaluation may use. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Size of a plugin; over it, [`PayloadTooLarge`](crate::Error::PayloadTooLarge). At least 1. Default `32MiB`.
    #[serde(deserialize_with = "size")]
    pub plugin_size: u64,
    /// Size of an evaluation's input; over it, [`PayloadTooLarge`](crate::Error::PayloadTooLarge). Default `16MiB`.
    #[serde(deserialize_with = "size")]
    pub input_size: u64,
    /// Size of an evaluation's output; over it, [`OutputTooLarge`](crate::Error::OutputTooLarge). Default `16MiB`.
    #[serde(deserialize_with = "size")]
    pub output_size: u64,
    /// Linear memory of one instance, with its input and output, from the first page on; over it,
    /// [`OutOfMemory`](crate::Error::OutOfMemory). (Extism's own hosts count only what it takes once it was made.) From `64KiB` to
    /// `4GiB`, rounded down to 64 KiB pages. No [spec](crate::Spec::memory) gets more. Default `64MiB`.
    #[serde(deserialize_with = "size")]
    pub memory: u64,
    /// Number of elements in the tables of one instance. Default 100000.
    pub table_elements: u64,
    /// Time to compile and initialise a plugin; over it, [`BuildTimeout`](crate::Error::BuildTimeout). Default `10s`.
    #[serde(with = "humantime_serde")]
    pub build_timeout: Duration,
    /// Memory that compiling a plugin may take in a process of its own, in bytes; over it,
    /// [`InvalidPlugin`](crate::Error::InvalidPlugin). At least `64MiB`. Default `1GiB`.
    #[serde(deserialize_with = "size")]
    pub compile_memory: u64,
    /// Time to wait for a runtime or an instance; over it, [`WaitTimeout`](crate::Error::WaitTimeout). Default `10s`.
    #[serde(with = "humantime_serde")]
    pub wait_timeout: Duration,
    /// Time that the guest may run in an evaluation; over it, [`ExecTimeout`](crate::Error::ExecTimeout). Default `5s`.
    #[serde(with = "humantime_serde")]
    pub exec_timeout: Duration,
    /// How many instructions the guest may run in an evaluation, and as many once more to initialise each instance; over
    /// it, [`OutOfFuel`](crate::Error::OutOfFuel). Counted are the guest's own instructions and those of the accessors
    /// that it calls (some ten for each byte or eight bytes of input and output); what the host does for it costs
    /// nothing. At least 1, or `"off"` for no limit. Default `"off"`.
    #[serde(with = "off_or_number")]
    pub fuel: Option<u64>,
}

/// How plugins run unless their spec says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Which engine. `extism` runs trusted plugins only. Default `direct`, or the engine that this build has.
    #[serde(deserialize_with = "word")]
    pub kind: EngineKind,
    /// Whether an instance serves one evaluation or many. Default `fresh`.
    #[serde(deserialize_with = "word")]
    pub isolation: Isolation,
    /// Whether plugins get WASI. Default `auto`.
    #[serde(deserialize_with = "word")]
    pub wasi: Wasi,
    /// What plugins get as input from clients of the server. Default `bytes`. Has no effect on a pool.
    #[serde(deserialize_with = "word")]
    pub input: Input,
    /// Whether Extism's variables live as long as an instance, or are kept for the evaluator. The `extism` engine cannot
    /// keep them. Default `fresh`.
    #[serde(deserialize_with = "word")]
    pub vars: Vars,
    /// Whether plugins' initialisers run in each instance, or once. The `extism` engine cannot run them once. Default `each`.
    #[serde(deserialize_with = "word")]
    pub init: Init,
    /// How old what initialisers drew that run once gets before they run once more, and instances made from then on begin with
    /// what they did then; `"off"` or `"0s"` for as old as the runtime. It is done only for plugins whose initialisers drew
    /// time or randomness and that ran since, only in an idle compile slot, together at most 5 % of one core, later rather
    /// than more. At least `10s`. Default `10m`.
    #[serde(serialize_with = "off_or_duration::serialize", deserialize_with = "formats::refresh")]
    pub init_refresh: Option<Duration>,
    /// Size of the variables that are kept for all evaluators, in bytes. An evaluation that would add to them over it fails
    /// with [`Saturated`](crate::Error::Saturated). Default `256MiB`.
    #[serde(deserialize_with = "size")]
    pub vars_size: u64,
    /// Whether you trust all plugins. The `extism` engine refuses others with
    /// [`InvalidRequest`](crate::Error::InvalidRequest). Default `false`.
    pub trusted: bool,
    /// Hosts that plugins may call over HTTP unless their spec names others; none by default. In the environment, separate
    /// them by commas. See [`Spec::allowed_hosts`](crate::Spec::allowed_hosts) for what an entry may be.
    ///
    /// A client of the server may name hosts that these entries match, and no others, unless the word `any` is among
    /// them: then any host. Private addresses, those of this machine among them, it reaches only where one of these entries
    /// names the host without wildcards. To a plugin whose spec names none, `any` gives nothing.
    #[serde(deserialize_with = "list_or_commas")]
    pub allowed_hosts: Vec<String>,
    /// The `User-Agent` of plugins' HTTP requests on the `direct` engine, unless a plugin sets its own: 1 to 256
    /// printable ASCII characters. Default: `evalpool/` and the version.
    pub http_user_agent: String,
    /// HTTP requests that plugins on the `direct` engine may have at once, each of which has a connection of its own. A guest
    /// whose request is one more waits for its turn; if none comes before its deadline, its evaluation is
    /// [`Saturated`](crate::Error::Saturated). The same number of names may be looked up at once. At least 1. Default 256.
    pub max_http_connections: usize,
    /// The same for each evaluator; for one that is being replaced, the old plugin's requests are counted apart. At least 1.
    /// Default 16.
    pub max_http_connections_per_evaluator: usize,
    /// Where the `direct` engine keeps compiled code, so that it need not compile an evicted plugin again: `memory`,
    /// `off`, or a folder that only this user may enter, where the code outlives the process. Default `memory`.
    pub code_cache: CodeCache,
    /// Size of the compiled code that is kept, in bytes. Over it, the oldest is removed first. In memory it takes at most a
    /// quarter of `pool.memory`, large code only while nobody runs it, and gives way to what runs. Default `256MiB`.
    #[serde(deserialize_with = "size")]
    pub code_cache_size: u64,
    /// Where the `direct` engine compiles: `auto`, in processes of the running program if it has called
    /// [`init_compile_workers`](crate::init_compile_workers) at its start (as `evalpool` does), else in this process;
    /// `off`, in this process; or the path of a program that makes that call, such as `evalpool`. In its own processes a
    /// compile is held to `limits.build_timeout` and `limits.compile_memory`, and can be ended. Default `auto`.
    pub compile_workers: CompileWorkers,
}

/// The HTTP server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSettings {
    /// Where to listen. Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// Where else to answer `/healthz`, `/readyz` and `/metrics`, on connections apart from the others. None by default.
    pub admin_listen: Option<SocketAddr>,
    /// The folder of stored plugins. Default `./evalpool-data`.
    pub data: PathBuf,
    /// A file of tokens. Needed to listen on an address that is not loopback.
    pub token_file: Option<PathBuf>,
    /// Other names of this server, at most 100, such as that of a proxy before it: host names or addresses, without ports. In
    /// the environment, separate them by commas. Without `token_file`, a request must be for an address, localhost, a name without
    /// a dot or one of these, so that no web page reaches the server by a name of its own; pages at these hosts may use it, at any of their
    /// ports. With `token_file` they have no effect. None by default.
    #[serde(deserialize_with = "list_or_commas")]
    pub host_names: Vec<String>,
    /// Whether `GET /` is a page that shows what the server does. Its files need no token; what it shows needs one as every
    /// request does. By default it is there where `listen` is a loopback address.
    pub ui: Option<bool>,
    /// Connections that may be open at once. For one more, the connection that is idle longest ends; if none is, the one
    /// whose body or answer is furthest behind `transfer_rate`. If all are at work, it waits. At least 1; where the system
    /// gives the server fewer files than its settings need, at most half as many as there are files. Default 1024.
    pub max_connections: usize,
    /// Bytes of request bodies and answers in memory, beside 16 KiB for each connection. All uploads together take at most
    /// half of it, the evaluation of one connection at most a quarter. At least eight times the larger of
    /// [`input_size`](LimitSettings::input_size) and [`output_size`](LimitSettings::output_size), and twice
    /// [`plugin_size`](LimitSettings::plugin_size) and 512 KiB more. Default `512MiB`.
    #[serde(deserialize_with = "size")]
    pub body_memory: u64,
    /// How fast bodies must come and answers must be read, in bytes a second, averaged over 15 s. At least 1. Default
    /// `8KiB`.
    #[serde(deserialize_with = "size")]
    pub transfer_rate: u64,
    /// How long a whole body may take to come, and a whole answer to be read. Default `2m`.
    #[serde(with = "humantime_serde")]
    pub transfer_timeout: Duration,
    /// Headers of a request that a plugin with [`Input::Request`] sees, at most 100. In the environment, separate them by
    /// commas. Default: `accept`, `accept-language`, `content-type`, `traceparent`, `tracestate`, `user-agent`,
    /// `x-request-id`. With `token_file`, `authorization` cannot be among them: it holds the server's own token.
    #[serde(deserialize_with = "list_or_commas")]
    pub request_headers: Vec<String>,
    /// Headers that such a plugin may set in its response, at most 100; none that frames it. Default: `cache-control`,
    /// `content-disposition`, `content-language`, `content-type`, `etag`, `expires`, `last-modified`, `location`,
    /// `retry-after`, `vary`.
    #[serde(deserialize_with = "list_or_commas")]
    pub response_headers: Vec<String>,
}

/// Who has metrics of their own. No other metric has the name of an evaluator or a tenant in a label. See
/// [`EvaluatorPool::usage_series`](crate::EvaluatorPool::usage_series).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricSettings {
    /// How many evaluators, those that used the most processor time of late, have series of their own; all others share one.
    /// Default 0: there are none.
    pub per_evaluator: usize,
    /// The same for tenants. Default 0.
    pub per_tenant: usize,
}

/// The program's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// The least urgent level to write. Default `info`.
    #[serde(deserialize_with = "word")]
    pub level: LogLevel,
    /// How to write a line. Default `text`.
    #[serde(deserialize_with = "word")]
    pub format: LogFormat,
    /// How many requests the server logs in a second, at the level `info`, each in a line. Of those beyond, the next line
    /// tells the number. Default 10.
    pub requests_per_second: u32,
}

/// How urgent a log line is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
#[expect(missing_docs, reason = "the words of the field")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Less than this holds no pool, in bytes.
const LEAST_MEMORY: u64 = 16 << 20;

impl Default for LogSettings {
    fn default() -> Self {
        Self { level: LogLevel::default(), format: LogFormat::default(), requests_per_second: 10 }
    }
}

impl Default for PoolSettings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            capacity: 256,
            max_instances: 1024,
            eviction: Eviction::default(),
            memory: (host_memory::available().unwrap_or(2 << 30) / 2).max(LEAST_MEMORY),
            max_instances_per_evaluator: cores * 2,
            idle_ttl: Duration::from_mins(10),
            grace: Duration::from_secs(10),
            max_uses: 10_000,
            max_waiting: 4096,
            negative_ttl: Duration::from_secs(5),
            build_concurrency: cores,
        }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            plugin_size: 32 * MIB,
            input_size: 16 * MIB,
            output_size: 16 * MIB,
            memory: 64 * MIB,
            table_elements: 100_000,
            build_timeout: Duration::from_secs(10),
            compile_memory: 1024 * MIB,
            wait_timeout: Duration::from_secs(10),
            exec_timeout: Duration::from_secs(5),
            fuel: None,
        }
    }
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            kind: EngineKind::default(),
            isolation: Isolation::default(),
            wasi: Wasi::default(),
            input: Input::default(),
            vars: Vars::default(),
            init: Init::default(),
            init_refresh: Some(Duration::from_mins(10)),
            vars_size: 256 * 1024 * 1024,
            trusted: false,
            allowed_hosts: Vec::new(),
            http_user_agent: concat!("evalpool/", env!("CARGO_PKG_VERSION")).to_owned(),
            max_http_connections: 256,
            max_http_connections_per_evaluator: 16,
            code_cache: CodeCache::default(),
            code_cache_size: 256 * 1024 * 1024,
            compile_workers: CompileWorkers::default(),
        }
    }
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: None,
            data: PathBuf::from("./evalpool-data"),
            token_file: None,
            host_names: Vec::new(),
            ui: None,
            max_connections: 1024,
            body_memory: 512 * 1024 * 1024,
            transfer_rate: 8 * 1024,
            transfer_timeout: Duration::from_mins(2),
            request_headers: headers::REQUEST.map(str::to_owned).into(),
            response_headers: headers::RESPONSE.map(str::to_owned).into(),
        }
    }
}

impl ServiceSettings {
    /// Whether there is a page.
    #[cfg(feature = "service")]
    pub(crate) fn has_ui(&self) -> bool {
        self.ui.unwrap_or_else(|| self.listen.ip().to_canonical().is_loopback())
    }
}

impl EngineKind {
    /// Its word in settings and flags.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            EngineKind::Extism => "extism",
            EngineKind::Direct => "direct",
        }
    }
}
