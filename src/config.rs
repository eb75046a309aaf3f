//! Every setting, its unit, range and default. The only reader of files and environment.
//!
//! Settings come in layers: the defaults below, then a TOML file, then the environment
//! (`EVALPOOL_<SECTION>_<KEY>`), then whatever the program's flags say. A key that does not exist is an error that
//! names the nearest one that does.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

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
    /// Which engine. Default `extism`.
    #[serde(deserialize_with = "word")]
    pub kind: EngineKind,
    /// Whether instances are used again. Default `fresh`.
    #[serde(deserialize_with = "word")]
    pub isolation: Isolation,
    /// Whether plugins get WASI. Default `auto`.
    #[serde(deserialize_with = "word")]
    pub wasi: Wasi,
    /// Whether plugins are trusted to let initialisers and calls end, which spares the `extism` engine the counting of
    /// instructions. Default `false`.
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
    /// The `extism` crate.
    #[default]
    Extism,
    /// wasmtime itself.
    Direct,
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

/// A setting that cannot be used. Its text is one line that names the key and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

impl SettingsError {
    /// For an engine that this build does not have, or that cannot be made with these settings.
    pub(crate) fn engine(kind: EngineKind, why: &str) -> Self {
        let kind = kind.as_str();
        Self(format!("engine.kind is {kind}: {why}"))
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

impl Settings {
    /// Reads a TOML file, if one is given, and the process's environment over the defaults, and checks every range.
    ///
    /// Reads the file with blocking I/O: call it at start.
    ///
    /// # Errors
    ///
    /// One line that names the file or variable, the key and what would be right.
    ///
    /// ```
    /// let settings = evalpool::config::Settings::load(None)?;
    /// assert_eq!(settings.pool.capacity, 256);
    /// # Ok::<(), evalpool::config::SettingsError>(())
    /// ```
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        let text = match file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| SettingsError(format!("cannot read settings from {}: {error}", path.display())))?,
        };
        // A variable that is not Unicode cannot be a setting of ours; one that is named like ours is shown lossily.
        let environment = std::env::vars_os()
            .map(|(key, value)| (key.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
        let name = file.map_or_else(|| "settings".to_owned(), |path| path.display().to_string());
        Self::parse(&name, &text, environment)
    }

    /// The same from a text and given variables; `name` is what errors call the text.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn parse(
        name: &str,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let known = known_keys();
        let overrides = environment_overrides(environment, &known)?;
        let said = |error: &dyn fmt::Display| SettingsError(format!("{name}: {}", one_line(&error.to_string())));
        let file = config::Config::builder()
            .add_source(config::File::from_str(text, config::FileFormat::Toml))
            .build()
            .map_err(|error| said(&error))?;
        let table: HashMap<String, config::Value> = file.clone().try_deserialize().map_err(|error| said(&error))?;
        check_keys(name, &table, &known)?;
        let settings: Settings = config::Config::builder()
            .add_source(file)
            .add_source(config::Environment::default().separator(".").try_parsing(true).source(Some(overrides)))
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| said(&error))?;
        settings.validate()?;
        Ok(settings)
    }

    /// Checks every range.
    ///
    /// # Errors
    ///
    /// The first setting that is out of its range, and the range.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let at_least_one = [
            ("pool.capacity", self.pool.capacity as u64),
            ("pool.max_instances_per_evaluator", self.pool.max_instances_per_evaluator as u64),
            ("pool.max_uses", self.pool.max_uses),
            ("pool.build_concurrency", self.pool.build_concurrency as u64),
            ("service.max_connections", self.service.max_connections as u64),
            ("limits.plugin_size", self.limits.plugin_size),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return Err(SettingsError(format!("{key} is 0; it must be at least 1")));
            }
        }
        if self.pool.max_instances < self.pool.capacity {
            return Err(SettingsError(format!(
                "pool.max_instances is {} and pool.capacity {}; every runtime begins with an instance, so max_instances must be at least capacity",
                self.pool.max_instances, self.pool.capacity
            )));
        }
        // More than any machine holds, and few enough to keep lists of.
        let most = 1_000_000;
        for (key, value) in [
            ("pool.max_instances", self.pool.max_instances),
            ("pool.max_instances_per_evaluator", self.pool.max_instances_per_evaluator),
            ("pool.build_concurrency", self.pool.build_concurrency),
            ("service.max_connections", self.service.max_connections),
        ] {
            if value > most {
                return Err(SettingsError(format!("{key} is {value}; it must be at most {most}")));
            }
        }
        if self.limits.memory < 65_536 || self.limits.memory > 4 * 1024 * 1024 * 1024 {
            return Err(SettingsError(format!(
                "limits.memory is {} bytes; it must be between 64KiB and 4GiB",
                self.limits.memory
            )));
        }
        for (key, value) in
            [("limits.build_timeout", self.limits.build_timeout), ("limits.exec_timeout", self.limits.exec_timeout)]
        {
            if value.is_zero() {
                return Err(SettingsError(format!("{key} is 0s; it must be longer")));
            }
        }
        Ok(())
    }
}

/// `section.key` of every setting, read off the defaults so that no second list can disagree.
fn known_keys() -> Vec<String> {
    let defaults = serde_json::to_value(Settings::default()).unwrap_or_default();
    let sections = defaults.as_object().into_iter().flatten();
    sections
        .flat_map(|(section, keys)| {
            keys.as_object().into_iter().flatten().map(move |(key, _)| format!("{section}.{key}"))
        })
        .collect()
}

fn environment_overrides(
    environment: impl IntoIterator<Item = (String, String)>,
    known: &[String],
) -> Result<HashMap<String, String>, SettingsError> {
    let variable = |key: &str| format!("EVALPOOL_{}", key.replace('.', "_").to_uppercase());
    let by_variable: HashMap<String, &String> = known.iter().map(|key| (variable(key), key)).collect();
    let mut overrides = HashMap::new();
    for (name, value) in environment {
        if !name.starts_with("EVALPOOL_") {
            continue;
        }
        let Some(key) = by_variable.get(&name) else {
            let hint = nearest(&name, by_variable.keys().map(String::as_str));
            return Err(SettingsError(format!("the environment variable {name} is no setting{hint}")));
        };
        overrides.insert((*key).clone(), value);
    }
    Ok(overrides)
}

fn check_keys(name: &str, table: &HashMap<String, config::Value>, known: &[String]) -> Result<(), SettingsError> {
    let sections: Vec<&str> = known.iter().filter_map(|key| Some(key.split_once('.')?.0)).collect();
    for (section, value) in table {
        if !sections.contains(&section.as_str()) {
            let hint = nearest(section, sections.iter().copied());
            return Err(SettingsError(format!("{name}: there is no section [{section}]{hint}")));
        }
        let Ok(keys) = value.clone().into_table() else {
            return Err(SettingsError(format!("{name}: {section} is a section; write [{section}] and its keys below")));
        };
        for key in keys.keys() {
            let full = format!("{section}.{key}");
            if !known.contains(&full) {
                let hint = nearest(&full, known.iter().map(String::as_str));
                return Err(SettingsError(format!("{name}: there is no setting {full}{hint}")));
            }
        }
    }
    Ok(())
}

/// `; did you mean X?`, or nothing when no known name is near.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map_or_else(String::new, |(_, candidate)| format!("; did you mean {candidate}?"))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `64MiB`, or a number of bytes.
mod size {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(*bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        Ok(bytesize::ByteSize::deserialize(deserializer)?.as_u64())
    }
}

/// A number, or the word `off`.
mod off_or_number {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Word(String),
    }

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(number) => serializer.serialize_u64(*number),
            None => serializer.serialize_str("off"),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        match Either::deserialize(deserializer) {
            Ok(Either::Number(0)) | Err(_) => Err(D::Error::custom("expected a number of at least 1, or \"off\"")),
            Ok(Either::Number(number)) => Ok(Some(number)),
            Ok(Either::Word(word)) if word == "off" => Ok(None),
            Ok(Either::Word(word)) => {
                Err(D::Error::custom(format!("expected a number of at least 1, or \"off\", not {word:?}")))
            }
        }
    }
}

/// A word out of a closed set, with serde's own error, which names them all.
fn word<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    use serde::de::IntoDeserializer;

    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

fn list_or_commas<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        List(Vec<String>),
        Text(String),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::List(list) => list,
        Either::Text(text) => {
            text.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingsError> {
        Settings::parse("test.toml", text, [])
    }

    fn with_environment(pairs: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::parse("test.toml", "", pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(parse("").unwrap(), Settings::default());
    }

    #[test]
    fn durations_sizes_and_words_read_as_people_write_them() {
        let settings = parse(
            "[pool]\nidle_ttl = '2m'\n[limits]\nmemory = '1MiB'\nfuel = 12\nexec_timeout='250ms'\n[engine]\nisolation='reuse'",
        )
        .unwrap();
        assert_eq!(settings.pool.idle_ttl, Duration::from_mins(2));
        assert_eq!(settings.limits.memory, 1 << 20);
        assert_eq!(settings.limits.fuel, Some(12));
        assert_eq!(settings.limits.exec_timeout, Duration::from_millis(250));
        assert_eq!(settings.engine.isolation, Isolation::Reuse);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let environment = [("EVALPOOL_POOL_MAX_WAITING".to_owned(), "7".to_owned())];
        let settings = Settings::parse("test.toml", "[pool]\nmax_waiting = 3\ncapacity = 5", environment).unwrap();
        assert_eq!((settings.pool.max_waiting, settings.pool.capacity), (7, 5));
    }

    #[test]
    fn every_key_can_be_set_from_the_environment() {
        let settings = with_environment(&[
            ("EVALPOOL_LIMITS_FUEL", "off"),
            ("EVALPOOL_LIMITS_WAIT_TIMEOUT", "3s"),
            ("EVALPOOL_LIMITS_OUTPUT_SIZE", "2KiB"),
            ("EVALPOOL_ENGINE_ALLOWED_HOSTS", "a.example, b.example"),
            ("EVALPOOL_SERVICE_LISTEN", "127.0.0.1:0"),
            ("EVALPOOL_LOG_FORMAT", "json"),
            ("HOME", "/root"),
        ])
        .unwrap();
        assert_eq!(settings.limits.wait_timeout, Duration::from_secs(3));
        assert_eq!(settings.limits.output_size, 2048);
        assert_eq!(settings.engine.allowed_hosts, ["a.example", "b.example"]);
        assert_eq!(settings.log.format, LogFormat::Json);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_the_nearest() {
        let error = parse("[pool]\ncapasity = 3").unwrap_err().to_string();
        assert_eq!(error, "test.toml: there is no setting pool.capasity; did you mean pool.capacity?");
        let error = parse("[limit]\nmemory = 3").unwrap_err().to_string();
        assert_eq!(error, "test.toml: there is no section [limit]; did you mean limits?");
        let error = with_environment(&[("EVALPOOL_POOL_CAPASITY", "3")]).unwrap_err().to_string();
        assert!(error.ends_with("did you mean EVALPOOL_POOL_CAPACITY?"), "{error}");
    }

    #[test]
    fn a_bad_value_is_one_line_that_names_its_key() {
        for (text, part) in [
            ("[pool]\ncapacity = 'many'", "pool.capacity"),
            ("[pool]\ncapacity = -1", "pool.capacity"),
            ("[pool]\ngrace = 'soon'", "pool.grace"),
            ("[limits]\nmemory = '3 apples'", "limits.memory"),
            ("[limits]\nfuel = 'none'", "limits.fuel"),
            ("[engine]\nkind = 'v8'", "engine.kind"),
            ("[engine]\nisolation = 'some'", "expected `fresh` or `reuse`"),
            ("[pool]\ncapacity = 0", "pool.capacity is 0; it must be at least 1"),
            ("[pool]\nmax_instances = 1", "pool.max_instances is 1"),
            ("pool = 3", "pool is a section"),
            ("[pool", "test.toml"),
            ("{\"pool\": 3}", "test.toml"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?} gave {error:?}, which lacks {part:?}");
            assert_eq!(error.lines().count(), 1, "{error:?}");
        }
    }
}
