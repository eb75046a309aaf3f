//! The command line, and the settings below it. Flags win over the environment, and the environment over the settings
//! file.

use std::{
    convert::Infallible, ffi::OsString, net::SocketAddr, num::NonZeroUsize, path::PathBuf, str::FromStr, time::Duration,
};

use clap::{Args, Parser, Subcommand, error::ErrorKind, value_parser};
use serde::{
    Deserialize,
    de::{IntoDeserializer, value},
};

use super::{Exit, commands::PluginOptions};
use crate::{
    Isolation, Settings,
    config::{CodeCache, EngineKind},
};

/// Runs Extism plugins (WebAssembly) in a capacity-bounded pool.
#[derive(Debug, Parser)]
#[command(name = "evalpool", version, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    /// Settings in TOML. The environment (`EVALPOOL_POOL_CAPACITY` and so on) wins over the file, and flags over both.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What compiles and runs plugins: direct, or extism for trusted ones [default: direct]
    #[arg(long, global = true, value_name = "direct|extism", value_parser = word::<EngineKind>)]
    engine: Option<EngineKind>,
    /// Trust every plugin, so that the extism engine takes it.
    #[arg(long, global = true)]
    trusted: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serves evaluators over HTTP, among them a built-in one that is ready to call.
    Serve(ServeArguments),
    /// Evaluates once, and writes the plugin's output to standard output.
    Run(RunArguments),
    /// Compiles and validates a plugin, and describes it.
    Check(CheckArguments),
    /// Drives many evaluators through one bounded pool, and reports how that went.
    Load(LoadArguments),
    /// Shows what a server does, in a terminal, as its status page does.
    Top(TopArguments),
}

#[derive(Debug, Args)]
pub(super) struct ServeArguments {
    /// Where to listen; port 0 takes a free port [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The folder in which evaluators are stored [default: ./evalpool-data]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// The settings file that was read.
    #[arg(skip)]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// The plugin, a WebAssembly binary: a file or an https:// URL. http:// is taken for this machine only.
    #[arg(required_unless_present = "manifest", group = "subject")]
    pub(super) plugin: Option<PathBuf>,
    /// The export to call [default: `run` if it is exported, else the only one of the author's]
    #[arg(long, value_name = "NAME")]
    pub(super) entry: Option<String>,
    /// The plugin's input: the text itself, @FILE for a file's bytes, - for standard input [default: nothing]
    #[arg(long, value_name = "TEXT|@FILE|-", allow_hyphen_values = true)]
    pub(super) input: Option<Input>,
    #[command(flatten)]
    pub(super) options: PluginOptions,
}

#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// The plugin, a WebAssembly binary: a file or an https:// URL. http:// is taken for this machine only.
    #[arg(required_unless_present = "manifest", group = "subject")]
    pub(super) plugin: Option<PathBuf>,
    /// The export that would be called [default: `run` if it is exported, else the only one of the author's]
    #[arg(long, value_name = "NAME")]
    pub(super) entry: Option<String>,
    #[command(flatten)]
    pub(super) options: PluginOptions,
}

#[derive(Debug, Args)]
pub(super) struct LoadArguments {
    // Bounded, since each evaluator takes some memory.
    /// How many evaluators, at most a million.
    #[arg(long, alias = "tenants", value_name = "N", default_value = "200")]
    #[arg(value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(super) evaluators: u32,
    /// Among how many customers the evaluators are spread: each is a tenant, customer-N [default: each evaluator is its own]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(super) customers: Option<u32>,
    /// How many of the customers flood: each has --concurrency callers of its own, beside those of all the others, who are
    /// then reported apart.
    #[arg(long, value_name = "K", default_value = "0", requires = "customers")]
    pub(super) flooding: u32,
    /// Compiled plugins that may exist at once [default: pool.capacity if that is set, else 16]
    #[arg(long, value_name = "N")]
    pub(super) capacity: Option<NonZeroUsize>,
    /// How many tasks evaluate, each without pause; with --rate or --trace, how many evaluations may be under way at once.
    #[arg(long, value_name = "N", default_value = "32")]
    pub(super) concurrency: NonZeroUsize,
    /// For how long, such as 5s or 2m [default: 5s, or as long as the trace]
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(super) duration: Option<Duration>,
    /// How uneven the evaluators' shares are: the exponent of Zipf's law, 0 for even.
    #[arg(long, value_name = "S", default_value = "1.0", value_parser = skew)]
    pub(super) skew: f64,
    /// Evaluations a second that are due whether or not those before have ended, at random gaps. Latency counts from when
    /// each was due; one that finds --concurrency of them under way waits, and is late.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(super) rate: Option<u32>,
    /// Replay a trace: a CSV file, also in gzip, of lines time,evaluator,input-size, such as 0.125,acme/rate,120. Times are
    /// seconds in order. Each evaluation is due, and counted, as with --rate.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "evaluators", "customers", "flooding", "skew", "static_data"])]
    pub(super) trace: Option<PathBuf>,
    /// Whether instances are used again: fresh or reuse [default: fresh]
    #[arg(long, value_name = "fresh|reuse", value_parser = word::<Isolation>)]
    pub(super) isolation: Option<Isolation>,
    /// Seed of all random choices, to repeat a run [default: random, and printed]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// The plugin that every evaluator runs, a file or a URL [default: the built-in one]
    #[arg(long, value_name = "FILE|URL", group = "subject")]
    pub(super) plugin: Option<PathBuf>,
    /// The export to call [default: `run` if it is exported, else the only one of the author's]
    #[arg(long, value_name = "NAME", requires = "subject")]
    pub(super) entry: Option<String>,
    /// The input of each evaluation: the text itself, @FILE or - [default: a name to greet, or nothing with --plugin]
    #[arg(long, value_name = "TEXT|@FILE|-", allow_hyphen_values = true)]
    pub(super) input: Option<Input>,
    /// All evaluators have the same bytes, which are compiled once. Without it each has bytes of its own: a custom
    /// section with its name is appended.
    #[arg(long)]
    pub(super) same: bool,
    /// Where compiled code is kept: nowhere, in memory, or in a folder [default: as set, else memory]
    #[arg(long, value_name = "off|memory|DIR", value_parser = word::<CodeCache>)]
    pub(super) code_cache: Option<CodeCache>,
    /// At random, drop calls, run bad plugins, close evaluators and unload runtimes.
    #[arg(long, conflicts_with_all = ["rate", "trace"])]
    pub(super) chaos: bool,
    /// Write figures of each second to a file: evaluations, errors, latencies, live runtimes and resident memory.
    #[arg(long, value_name = "FILE")]
    pub(super) csv: Option<PathBuf>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) options: PluginOptions,
}

#[derive(Debug, Args)]
pub(super) struct TopArguments {
    /// The server, such as <https://pool.example.com> [default: where `service.listen` says, 127.0.0.1:8080]
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,
    /// A file whose first line is a token that the server takes. Empty lines and those that begin with # are passed over
    /// [default: `service.token_file`, without --url]
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
}

/// Where a guest's input comes from.
#[derive(Debug, Clone)]
pub(super) enum Input {
    Text(String),
    File(PathBuf),
    Stdin,
}

impl FromStr for Input {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match (text, text.strip_prefix('@')) {
            ("-", _) => Input::Stdin,
            (_, Some(path)) => Input::File(path.into()),
            (text, None) => Input::Text(text.to_owned()),
        })
    }
}

/// Reads the arguments, the settings file that they name, and the environment.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Command, Settings), Exit> {
    let Cli { config, engine, trusted, mut command } =
        Cli::try_parse_from(arguments).map_err(|error| not_understood(&error))?;
    let mut settings = Settings::load(config.as_deref())?;
    settings.engine.kind = engine.unwrap_or(settings.engine.kind);
    settings.engine.trusted |= trusted;
    match &mut command {
        Command::Serve(ServeArguments { listen, data, config: read_again }) => {
            *read_again = config;
            settings.service.listen = listen.unwrap_or(settings.service.listen);
            if let Some(data) = data {
                settings.service.data.clone_from(data);
            }
        }
        Command::Run(RunArguments { options, .. })
        | Command::Check(CheckArguments { options, .. })
        | Command::Load(LoadArguments { options, .. }) => {
            options.read_manifest(settings.limits.plugin_size)?;
            options.raise(&mut settings);
        }
        Command::Top(_) => {}
    }
    Ok((command, settings))
}

/// clap reports over several lines: what is wrong, a blank line, then hints and the usage.
fn not_understood(error: &clap::Error) -> Exit {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Help(text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Exit::Usage(text),
        _ => {
            let mut parts = text.split("\n\n").map(str::trim);
            let wrong = parts.next().unwrap_or_default().trim_start_matches("error: ");
            let hints = parts.filter(|part| part.starts_with("tip: "));
            Exit::Unusable(hints.fold(wrong.to_owned(), |line, hint| format!("{line}; {hint}")))
        }
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime_serde::re::humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("expected a duration, such as 250ms, 5s or 2m".to_owned()),
    }
}

fn skew(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(skew) if (0.0..=100.0).contains(&skew) => Ok(skew),
        _ => Err("expected a number from 0 to 100".to_owned()),
    }
}

/// Parses one of the words of a setting. The setting's own reader knows them, and lists them when it meets another.
pub(super) fn word<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, value::Error> {
    T::deserialize(text.into_deserializer())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory;

        Cli::command().debug_assert();
    }
}
