//! The HTTP service and the `evalpool` program. Not part of the library's interface.
//!
//! | room | what it does |
//! |---|---|
//! | `cli` | what the program is asked: flags, and the settings under them |
//! | `commands` | `serve`, `run`, `check` and `load` |
//! | `http` | routes, and what goes over them |
//! | `listen` | connections: how many, how long, and how they end |
//! | `store` | the folder that evaluators are kept in |
//! | `exporter`, `log` | what the process installs for its metrics and its log |
//! | `process` | memory, CPU, threads and open files of the process, as metrics |
//! | `exit` | how the program ends |
//!
//! Requests reach the pool through its public interface and nothing else; errors become HTTP in `http` alone, and
//! exit codes in `exit` alone.

mod cli;
mod commands;
mod exit;
pub mod exporter;
mod greet;
mod http;
mod listen;
pub mod log;
pub mod process;
mod store;

use std::{ffi::OsString, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::runtime;

use self::cli::Command;
pub use self::exit::Exit;
use crate::Settings;

/// Blocking threads beyond one for each guest and each compilation: for reading, storing and dropping.
const SPARE_THREADS: usize = 64;

/// How long the end of the program waits for threads that are still at work, such as a guest's initialiser that
/// nothing can interrupt.
const LAST_THREADS: Duration = Duration::from_secs(1);

/// What the program was asked to do, and the settings that it does it with.
pub struct Program {
    command: Command,
    settings: Settings,
}

impl Program {
    /// Reads the arguments, the settings file that they name, and the environment.
    ///
    /// # Errors
    ///
    /// How to end when there is nothing to run: a text that was asked for, or one line about what cannot be understood.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        let (command, settings) = cli::parse(arguments)?;
        Ok(Self { command, settings })
    }

    /// How to log. The lines of plugins are shown to those who try one, and to those who look for trouble.
    #[must_use]
    pub fn log(&self) -> log::Log<'_> {
        log::Log { settings: &self.settings.log, with_plugins: matches!(self.command, Command::Run(_)) }
    }

    /// Runs to the end. `exporter` renders the recorder that is installed.
    ///
    /// # Errors
    ///
    /// How to end, if not well.
    pub fn run(self, exporter: PrometheusHandle) -> Result<(), Exit> {
        let Self { command, settings } = self;
        // Each guest blocks a thread; the default of 512 would be a second, hidden bound on instances.
        let threads = settings.pool.max_instances.saturating_add(settings.pool.build_concurrency);
        let runtime = runtime::Builder::new_multi_thread()
            .enable_all()
            .max_blocking_threads(threads.saturating_add(SPARE_THREADS))
            .build()
            .map_err(|error| Exit::failed(format!("no threads can be started: {error}")))?;
        let outcome = runtime.block_on(async {
            match command {
                Command::Serve(_) => commands::serve(settings, exporter).await,
                Command::Run(arguments) => commands::run(arguments, &settings).await,
                Command::Check(arguments) => commands::check(arguments, &settings).await,
                Command::Load(arguments) => commands::load(arguments, settings, exporter).await,
            }
        });
        runtime.shutdown_timeout(LAST_THREADS);
        outcome
    }
}
