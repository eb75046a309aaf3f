//! The program's log: to standard error, so that standard output is left to answers.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::{LogFormat, LogLevel, LogSettings};

/// Where each engine writes what plugins log, and where extism writes of each call that fails.
const PLUGINS: [&str; 2] = ["extism::pdk", "evalpool::plugin"];
const ENGINE: &str = "extism";
/// It warns whenever a guest calls what it does not have.
const WASI: &str = "wasmtime_wasi";

/// How to log.
#[derive(Debug, Clone, Copy)]
pub struct Log<'a> {
    /// Level and format.
    pub settings: &'a LogSettings,
    /// Whether what plugins log is shown at every level. Otherwise it is at `debug` and `trace` alone, as are the
    /// engine's lines about guests that fail: a customer's plugin must not be able to fill the server's log.
    pub with_plugins: bool,
}

/// Installs the subscriber for the process. Does nothing when there is one already.
pub fn install(log: Log<'_>) {
    let colours = io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(colours);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match log.settings.format {
        LogFormat::Text => Box::new(lines.with_filter(targets(log))),
        LogFormat::Json => Box::new(lines.json().flatten_event(true).with_filter(targets(log))),
    };
    // Fails only when somebody was faster, whose choice then stands.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// This crate at the level that is set; what it is built on only from warnings up.
fn targets(log: Log<'_>) -> Targets {
    let level = match log.settings.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let strangers = if level >= LevelFilter::DEBUG { level } else { LevelFilter::OFF };
    let plugins = if log.with_plugins { level } else { strangers };
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("evalpool", level)
        .with_target(ENGINE, strangers)
        .with_target(WASI, strangers)
        .with_targets(PLUGINS.map(|target| (target, plugins)))
}
