//! The HTTP service and the `evalpool` program. Not part of the library's interface.
//!
//! | room | what it does |
//! |---|---|
//! | `cli` | flags, and the settings below them |
//! | `commands` | `serve`, `run`, `check`, `load` and `top` |
//! | `document` | the spec as clients write it, and the operator's ceilings over it |
//! | `http` | routes and their handlers |
//! | `guests` | the threads that run guests, apart from those of HTTP |
//! | `connections` | how many connections there may be, what they hold in bytes, and which give way |
//! | `listen` | connections: how long they may stall, and how they end |
//! | `store` | the folder in which evaluators are stored |
//! | `host` | what the settings need, held against what the system gives |
//! | `exporter`, `log` | the recorder of metrics and the log, both of the process |
//! | `histograms` | those of that recorder |
//! | `telemetry` | traces, to a collector |
//! | `ui` | the page that shows what the server does |
//! | `process` | metrics of the process: memory, CPU, threads, open files |
//! | `exit` | how the program ends |
//!
//! Only `http` turns errors into HTTP, and only `exit` into exit codes.

mod cli;
mod commands;
mod connections;
mod document;
mod exit;
pub mod exporter;
mod greet;
mod guests;
mod histograms;
mod host;
mod http;
mod listen;
pub mod log;
pub mod process;
mod store;
pub mod telemetry;
mod ui;

use std::{ffi::OsString, time::Duration};

use tokio::runtime;

use self::cli::Command;
pub use self::exit::Exit;
use self::{exporter::Exporter, telemetry::Telemetry};
use crate::{
    Settings,
    config::{LogLevel, PoolSettings, ignored_variables},
};

/// Blocking threads for reading, storing and dropping, beside one for each guest and each compilation.
const SPARE_THREADS: usize = 64;

/// How long the program waits at its end for threads that are still busy, such as one whose host function blocks.
const LAST_THREADS: Duration = Duration::from_secs(1);

/// How many threads may block. On `extism` each guest blocks one; tokio's default of 512 would be a second, hidden bound on
/// instances.
fn blocking_threads(pool: &PoolSettings) -> usize {
    pool.max_instances.saturating_add(pool.build_concurrency).saturating_add(SPARE_THREADS)
}

/// A command, and the settings that it runs with.
pub struct Program {
    command: Command,
    settings: Settings,
}

impl Program {
    /// Reads the arguments, the settings file that they name, and the environment.
    ///
    /// # Errors
    ///
    /// How to end when there is nothing to run: with the help or version that was asked for, or with one line that says
    /// what cannot be understood.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        let (command, settings) = cli::parse(arguments)?;
        Ok(Self { command, settings })
    }

    /// How to log. `run` shows what its plugin logs; the other commands do so from level `debug`. `None` for `top`, which
    /// has the terminal for itself.
    #[must_use]
    pub fn log(&self) -> Option<log::Log<'_>> {
        Some(log::Log {
            settings: &self.settings.log,
            with_plugins: matches!(self.command, Command::Run(_)),
            with_last_words: match self.command {
                Command::Run(_) | Command::Check(_) => false,
                // Its chaos makes guests fail, and it counts them.
                Command::Load(_) => matches!(self.settings.log.level, LogLevel::Debug | LogLevel::Trace),
                Command::Serve(_) => true,
                Command::Top(_) => return None,
            },
            with_usage: matches!(self.command, Command::Serve(_)) && self.settings.usage.interval.is_some(),
        })
    }

    /// Begins to send spans, if this is a server that is to.
    ///
    /// # Errors
    ///
    /// The settings cannot be used.
    pub fn telemetry(&self) -> Result<Option<Telemetry>, Exit> {
        if matches!(self.command, Command::Serve(_)) { Telemetry::start(&self.settings.telemetry) } else { Ok(None) }
    }

    /// Runs the command to its end. `exporter` renders the installed recorder.
    ///
    /// # Errors
    ///
    /// How to end when the command failed.
    pub fn run(self, exporter: Exporter) -> Result<(), Exit> {
        let Self { command, settings } = self;
        if let Some(variables) = ignored_variables() {
            tracing::info!(variables, "ignored: Kubernetes sets these for a Service that is named like this program");
        }
        let runtime = runtime::Builder::new_multi_thread()
            .enable_all()
            .max_blocking_threads(blocking_threads(&settings.pool))
            .build()
            .map_err(|error| Exit::failed(format!("no threads can be started: {error}")))?;
        let outcome = runtime.block_on(async {
            match command {
                Command::Serve(serve) => commands::serve(settings, serve.config, exporter).await,
                Command::Run(arguments) => commands::run(arguments, &settings).await,
                Command::Check(arguments) => commands::check(arguments, &settings).await,
                Command::Load(arguments) => commands::load(arguments, settings, exporter).await,
                Command::Top(arguments) => commands::top(arguments, &settings.service).await,
            }
        });
        runtime.shutdown_timeout(LAST_THREADS);
        outcome
    }
}
