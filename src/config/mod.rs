//! Every setting, its unit, range and default. The only reader of files and environment.
//!
//! Settings come in layers: the defaults below, then a TOML file, then the environment
//! (`EVALPOOL_<SECTION>_<KEY>`), then whatever the program's flags say. A key that does not exist is an error that
//! names the nearest one that does.

mod formats;
mod read;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use self::formats::{list_or_commas, off_or_number, size, word};
pub use self::read::SettingsError;

/// All settings. [`Default`] is what the program runs with when nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How many runtimes and instances, and who waits for them.
    pub pool: PoolSettings,
    /// What one plugin and one evaluation may use.
    pub limits: LimitSettings,
    /// How plugins are run unless their spec says otherwise.
    pub engine: EngineSettings,
    /// The HTTP server. An embedder may ignore it.
    pub service: ServiceSettings,
    /// What is shown of the pool.
    pub metrics: MetricSettings,
    /// The program's log.
    pub log: LogSettings,
}

/// How many runtimes and instances, and who waits for them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSettings {
    /// Runtimes that may exist at once: being built, live and draining. At least 1. Default 256.
    pub capacity: usize,
    /// Instances that may exist at once, over all runtimes. At least `capacity`, since every runtime begins with one.
    /// Default 1024.
    pub max_instances: usize,
    /// Instances of one runtime. At least 1. Default: cores × 2.
    pub max_instances_per_evaluator: usize,
    /// A runtime unused for this long is closed. Default `10m`.
    #[serde(with = "humantime_serde")]
    pub idle_ttl: Duration,
    /// How long calls in flight may go on after a close before they are interrupted. Default `10s`.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Evaluations after which a reused instance is replaced. At least 1. Default 10000.
    pub max_uses: u64,
    /// Callers that may wait for a runtime or an instance; one more is refused as `saturated`. Default 4096.
    pub max_waiting: usize,
    /// How long a build that would fail again is remembered. `0s` turns this off. Default `5s`.
    #[serde(with = "humantime_serde")]
    pub negative_ttl: Duration,
    /// Compilations at once. At least 1. Default: cores.
    pub build_concurrency: usize,
}

/// What one plugin and one evaluation may use. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// A plugin's bytes. Default `32MiB`.
    #[serde(with = "size")]
    pub plugin_size: u64,
    /// An evaluation's input. Default `16MiB`.
    #[serde(with = "size")]
    pub input_size: u64,
    /// An evaluation's output. Default `16MiB`.
    #[serde(with = "size")]
    pub output_size: u64,
    /// Linear memory of one instance, input and output included. Rounded down to 64 KiB pages. Default `64MiB`.
    #[serde(with = "size")]
    pub memory: u64,
    /// Elements of one instance's tables. Default 100000.
    pub table_elements: u64,
    /// Compiling and initialising. Default `10s`.
    #[serde(with = "humantime_serde")]
    pub build_timeout: Duration,
    /// Waiting for a runtime or an instance. Default `10s`.
    #[serde(with = "humantime_serde")]
    pub wait_timeout: Duration,
    /// One evaluation's guest. Default `5s`.
    #[serde(with = "humantime_serde")]
    pub exec_timeout: Duration,
    /// WebAssembly instructions, roughly, for one evaluation; `"off"` for no such limit. Default `"off"`.
    #[serde(with = "off_or_number")]
    pub fuel: Option<u64>,
}

/// How plugins are run unless their spec says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Which engine. Default `direct`, or the one that this build has. `extism` runs only what is trusted.
    #[serde(deserialize_with = "word")]
    pub kind: EngineKind,
    /// Whether instances are used again. Default `fresh`.
    #[serde(deserialize_with = "word")]
    pub isolation: Isolation,
    /// Whether plugins get WASI. Default `auto`.
    #[serde(deserialize_with = "word")]
    pub wasi: Wasi,
    /// Whether plugins are trusted to mean no harm. The `extism` engine takes only such. Default `false`.
    pub trusted: bool,
    /// Hosts that plugins may call over HTTP; none by default. In the environment, separated by commas.
    #[serde(deserialize_with = "list_or_commas")]
    pub allowed_hosts: Vec<String>,
    /// Where the `direct` engine keeps compiled code, so that an evicted plugin comes back at once: `memory`, `off`, or a
    /// folder that only this user may enter, which outlives the process. Default `memory`.
    pub code_cache: CodeCache,
    /// Bytes of compiled code that are kept, and removed oldest first. Default `256MiB`.
    #[serde(with = "size")]
    pub code_cache_size: u64,
}

/// The HTTP server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSettings {
    /// Where to listen. Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// The folder of stored plugins. Default `./evalpool-data`.
    pub data: PathBuf,
    /// A file of tokens. Needed to listen on an address that is not loopback.
    pub token_file: Option<PathBuf>,
    /// Connections at once; one more waits to be accepted. At least 1. Default 1024.
    pub max_connections: usize,
}

/// What is shown of the pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricSettings {
    /// How many evaluators get series of their own. Default 0: no evaluator's name is in any label.
    pub per_evaluator: usize,
}

/// The program's log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// The least urgent level that is written. Default `info`.
    #[serde(deserialize_with = "word")]
    pub level: LogLevel,
    /// Default `text`.
    #[serde(deserialize_with = "word")]
    pub format: LogFormat,
}

/// What compiles and runs plugins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EngineKind {
    /// wasmtime itself, for everybody's plugins.
    #[cfg_attr(any(feature = "direct", not(feature = "extism")), default)]
    Direct,
    /// The `extism` crate, for plugins that are trusted.
    #[cfg_attr(all(feature = "extism", not(feature = "direct")), default)]
    Extism,
}

/// Where compiled code is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum CodeCache {
    /// Nowhere.
    Off,
    /// On the heap.
    #[default]
    Memory,
    /// In a folder of mode 0700, made if it does not exist.
    Folder(PathBuf),
}

impl From<String> for CodeCache {
    fn from(text: String) -> Self {
        match text.as_str() {
            "off" => CodeCache::Off,
            "memory" => CodeCache::Memory,
            _ => CodeCache::Folder(text.into()),
        }
    }
}

impl From<CodeCache> for String {
    fn from(cache: CodeCache) -> Self {
        match cache {
            CodeCache::Off => "off".to_owned(),
            CodeCache::Memory => "memory".to_owned(),
            CodeCache::Folder(folder) => folder.to_string_lossy().into_owned(),
        }
    }
}

/// Whether an instance serves one evaluation or many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Every evaluation gets an instance that no evaluation has used.
    #[default]
    Fresh,
    /// An instance serves many evaluations of the same evaluator; guest state survives between them.
    Reuse,
}

/// Whether a plugin gets WASI: clocks, randomness and exit, with nothing preopened, no environment and no stdio.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wasi {
    /// Only plugins that import it.
    #[default]
    Auto,
    /// None; a plugin that imports it is refused.
    Off,
}

/// How urgent a log line is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for PoolSettings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            capacity: 256,
            max_instances: 1024,
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
            trusted: false,
            allowed_hosts: Vec::new(),
            code_cache: CodeCache::default(),
            code_cache_size: 256 * 1024 * 1024,
        }
    }
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            data: PathBuf::from("./evalpool-data"),
            token_file: None,
            max_connections: 1024,
        }
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
