//! The plugin options: what `run`, `check` and `load` let their user say about a plugin, as flags that become a [`Spec`].
//!
//! Whoever types the command owns the process. So a limit above the setting's raises the setting as well: the engine then
//! has room for it, and one plugin needs no settings file. So does a limit of a manifest, over which the flags win.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use clap::{Args, value_parser};
use serde_json::Value;

use super::{
    fetch::{FetchOptions, fetch},
    manifest, read_file, read_text,
};
use crate::{
    Data, Digest, Init, Plugin, Settings, Source, Spec, Vars, Wasi, compiler,
    config::{HostPattern, LimitSettings, Refresh, strings},
    data::Static,
    engine::MAX_LINKED,
    service::{
        Exit,
        cli::{duration, word},
        exit::one_line,
    },
};

/// What a file of config values may have, in bytes.
const MOST_CONFIG: u64 = 1024 * 1024;

#[derive(Debug, Args)]
#[command(next_help_heading = "Plugin options")]
pub(in crate::service) struct PluginOptions {
    /// An Extism manifest in JSON or TOML, in place of a plugin. The other options win over what it says.
    #[arg(long, value_name = "FILE", group = "subject")]
    manifest: Option<PathBuf>,
    /// What it says.
    #[arg(skip)]
    described: Option<Spec>,
    #[command(flatten)]
    fetch: FetchOptions,
    /// A config value that the plugin may read. Repeatable; wins over --config-values.
    // Taken as it is: clap shows a value that it refuses, and this one may be a secret.
    #[arg(long, value_name = "KEY=VALUE")]
    config_value: Vec<String>,
    /// A file with config values, a JSON or TOML object of strings: secrets in it stay out of the list of processes.
    /// Repeatable; later files win.
    #[arg(long, value_name = "FILE")]
    config_values: Vec<PathBuf>,
    /// A host that the plugin may call over HTTP, such as api.example.com, *.example.com or 127.0.0.1:8080. Repeatable
    /// [default: as set, else none]
    #[arg(long, value_name = "GLOB", value_parser = host)]
    allow_host: Vec<String>,
    /// Linear memory of an instance, from 64KiB to 4GiB [default: as set, else 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<u64>,
    /// How long the plugin may run in an evaluation, such as 250ms or 5s [default: as set, else 5s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// How long compiling and initialising may take [default: as set, else 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    build_timeout: Option<Duration>,
    /// How many instructions the plugin may run in an evaluation [default: as set, else no limit]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    fuel: Option<u64>,
    /// Size of an evaluation's output, such as 64KiB [default: as set, else 16MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    output_size: Option<u64>,
    /// Instances of the plugin at once [default: as set, else cores × 2]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000))]
    instances: Option<u32>,
    /// A module from which the plugin imports by this name. At most eight.
    #[arg(long, value_name = "NAME=FILE", value_parser = link)]
    link: Vec<(String, PathBuf)>,
    /// JSON into which the input of each evaluation is merged.
    #[arg(long, value_name = "JSON", value_parser = json, allow_hyphen_values = true)]
    static_data: Option<Value>,
    /// Whether a plugin that imports WASI gets it: auto or off [default: as set, else auto]
    #[arg(long, value_name = "auto|off", value_parser = word::<Wasi>)]
    wasi: Option<Wasi>,
    /// Whether Extism's variables live as long as an instance, or are kept: fresh or kept [default: as set, else fresh]
    #[arg(long, value_name = "fresh|kept", value_parser = word::<Vars>)]
    vars: Option<Vars>,
    /// Whether initialisers run in each instance, or once: each or once [default: as set, else each]
    #[arg(long, value_name = "each|once", value_parser = word::<Init>)]
    init: Option<Init>,
    /// How old what they drew that run once gets, if they drew time or randomness, before they run once more: a duration, or
    /// off [default: as set, else 10m]
    #[arg(long, value_name = "DURATION|off", value_parser = word::<Refresh>)]
    init_refresh: Option<Refresh>,
}

impl PluginOptions {
    /// Reads the manifest, if there is one.
    pub(in crate::service) fn read_manifest(&mut self, plugin_size: u64) -> Result<(), Exit> {
        self.described = self.manifest.as_deref().map(|path| manifest::read(path, plugin_size)).transpose()?;
        Ok(())
    }

    /// Raises the settings to the limits that are said here.
    pub(in crate::service) fn raise(&self, settings: &mut Settings) {
        fn raise<T: Ord + Copy>(setting: &mut T, said: Option<T>) {
            *setting = said.map_or(*setting, |said| said.max(*setting));
        }
        let Settings { pool, limits, engine, .. } = settings;
        raise(&mut limits.memory, self.memory());
        raise(&mut limits.exec_timeout, self.timeout());
        raise(&mut limits.build_timeout, self.build_timeout);
        raise(&mut limits.output_size, self.output_size);
        // Without a limit there is none to raise.
        if let Some(fuel) = &mut limits.fuel {
            raise(fuel, self.fuel);
        }
        let instances = self.instances().map(NonZeroUsize::get);
        raise(&mut pool.max_instances_per_evaluator, instances);
        raise(&mut pool.max_instances, instances);
        if !self.allow_host.is_empty() {
            engine.allowed_hosts.clone_from(&self.allow_host);
        }
    }

    /// The bytes of the plugin that the command line names, a file or a URL, or of the manifest's, and the spec that runs it.
    /// All of its modules are in memory then.
    pub(super) async fn subject(&self, plugin: Option<&Path>, limits: &LimitSettings) -> Result<(Bytes, Spec), Exit> {
        let source = match (&self.described, plugin) {
            (Some(described), _) => described.source.clone(),
            (None, Some(plugin)) => self.fetch.source(plugin)?,
            (None, None) => return Err(Exit::unusable("name a plugin, or a manifest by --manifest")),
        };
        let mut spec = self.spec(source, limits.plugin_size)?;
        let bytes = self.read(&mut spec.source, spec.digest, limits).await?;
        for linked in &mut spec.linked {
            let module = self.read(&mut linked.source, linked.digest, limits).await?;
            // Refused once, and not by each evaluation.
            Plugin::new(module, linked.digest)?;
        }
        Ok((bytes, spec))
    }

    /// Reads a module, and leaves its bytes in place of where they came from.
    async fn read(&self, source: &mut Source, digest: Option<Digest>, limits: &LimitSettings) -> Result<Bytes, Exit> {
        let read = match &*source {
            Source::Http(http) => {
                let within = self.build_timeout.unwrap_or(limits.build_timeout);
                let fetched = fetch(http, limits.plugin_size, within).await;
                if let (Ok(bytes), None) = (&fetched, digest) {
                    let (url, digest) = (one_line(&http.shown()), Digest::of(bytes));
                    let name = match self.manifest {
                        Some(_) => format!("\"hash\": \"{}\"", digest.hex()),
                        None => format!("--digest {digest}"),
                    };
                    eprintln!("warning: {url} is run without knowing its digest; to run these bytes only: {name}");
                }
                fetched
            }
            Source::File(path) => read_file(path, "plugin", limits.plugin_size),
            Source::Bytes(bytes) => Ok(bytes.clone()),
            other => Err(Exit::failed(format!("internal: no option names such a source: {other:?}"))),
        };
        let bytes = read.map_err(|exit| match &self.manifest {
            Some(path) => exit.of_option(&format!("--manifest: {}: wasm", path.display())),
            None => exit,
        })?;
        *source = Source::Bytes(bytes.clone());
        Ok(bytes)
    }

    /// The spec that runs a plugin from `source` so. Reads the files that the options name, each module up to
    /// `plugin_size` bytes.
    pub(super) fn spec(&self, source: Source, plugin_size: u64) -> Result<Spec, Exit> {
        let described = self.described.clone().unwrap_or_else(|| Spec::new(source.clone()));
        let mut spec = Spec {
            source,
            digest: self.fetch.digest.or(described.digest),
            wasi: self.wasi,
            vars: self.vars,
            init: self.init,
            init_refresh: self.init_refresh.map(|Refresh(every)| every),
            memory: self.memory(),
            output_size: self.output_size,
            instances: self.instances(),
            build_timeout: self.build_timeout,
            exec_timeout: self.timeout(),
            fuel: self.fuel.map(Some),
            ..described
        };
        for (key, value) in self.config()? {
            spec = spec.config(key, value);
        }
        if !self.allow_host.is_empty() {
            spec = spec.allowed_hosts(self.allow_host.clone());
        }
        spec.linked.retain(|linked| self.link.iter().all(|(name, _)| *name != linked.name));
        if spec.linked.len() + self.link.len() > MAX_LINKED {
            let option = if self.link.is_empty() { "--manifest" } else { "--link" };
            return Err(Exit::unusable(format!("{option}: at most {MAX_LINKED} modules can be linked with a plugin")));
        }
        for (at, (name, path)) in self.link.iter().enumerate() {
            if self.link.iter().take(at).any(|(other, _)| other == name) {
                return Err(Exit::unusable(format!("--link: the name {name:?} is given twice")));
            }
            let bytes = read_file(path, "plugin", plugin_size).map_err(|exit| exit.of_option("--link"))?;
            spec = spec.link(name, Source::Bytes(bytes));
        }
        if let Some(data) = &self.static_data {
            spec = spec.data(Static(Data::Json(data.clone())));
        }
        Ok(spec)
    }

    /// An input as the data of a call: merged into the static data if it is JSON, as a caller of the library would do it.
    pub(super) fn data(&self, input: Bytes) -> Data {
        let json = self.static_data.as_ref().and_then(|_| serde_json::from_slice(&input).ok());
        json.map_or(Data::Bytes(input), Data::Json)
    }

    pub(super) fn has_manifest(&self) -> bool {
        self.manifest.is_some()
    }

    pub(super) fn memory(&self) -> Option<u64> {
        self.memory.or_else(|| self.described.as_ref()?.memory)
    }

    fn timeout(&self) -> Option<Duration> {
        self.timeout.or_else(|| self.described.as_ref()?.exec_timeout)
    }

    fn instances(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.instances? as usize)
    }

    /// The config values in the order in which they are set: later ones win.
    fn config(&self) -> Result<Vec<(String, String)>, Exit> {
        let mut config = Vec::new();
        for path in &self.config_values {
            config.extend(read_config(path).map_err(|why| Exit::unusable(format!("--config-values: {why}")))?);
        }
        for pair in &self.config_value {
            let pair = pair.split_once('=').filter(|(key, _)| !key.is_empty());
            let (key, value) = pair.ok_or_else(|| Exit::unusable("--config-value: one is not KEY=VALUE"))?;
            config.push((key.to_owned(), value.to_owned()));
        }
        Ok(config)
    }
}

fn read_config(path: &Path) -> Result<Vec<(String, String)>, String> {
    let text = read_text(path, MOST_CONFIG)?;
    strings(&text).map_err(|why| format!("{} {why}", path.display()))
}

fn size(text: &str) -> Result<u64, String> {
    text.parse().map(|size: bytesize::ByteSize| size.as_u64()).map_err(|_| "expected a size, such as 64MiB".to_owned())
}

fn memory(text: &str) -> Result<u64, String> {
    let range = (64 << 10)..=(4 << 30);
    size(text).and_then(|size| {
        let is_in = range.contains(&size);
        is_in.then_some(size).ok_or_else(|| "it must be from 64KiB to 4GiB".to_owned())
    })
}

fn host(text: &str) -> Result<String, String> {
    HostPattern::parse_all(&[text.to_owned()]).map(|_| text.to_owned())
}

fn link(text: &str) -> Result<(String, PathBuf), String> {
    let pair = text.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty());
    let (name, path) = pair.ok_or("expected NAME=FILE")?;
    if compiler::is_taken(name) {
        return Err(format!("the name {name:?} is taken"));
    }
    Ok((name.to_owned(), path.into()))
}

fn json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text)
}
