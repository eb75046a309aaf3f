//! The program: parses the command line, installs the log subscriber and the metrics recorder, and runs.
//!
//! Both belong to the process rather than the library, and both come first: a pool takes its metric handles from the
//! recorder that is installed when the pool is built.

use std::process::ExitCode;

use evalpool::service::{Exit, Program, exporter, log};

fn main() -> ExitCode {
    evalpool::init_compile_workers();
    let outcome = Program::parse(std::env::args_os()).and_then(|program| {
        // Dropped last: what the end of the command has to tell is sent as well.
        let telemetry = program.telemetry()?;
        if let Some(log) = program.log() {
            log::install(log, telemetry.as_ref());
        }
        program.run(exporter::install()?)
    });
    outcome.map_or_else(Exit::report, |()| ExitCode::SUCCESS)
}
