//! The program: reads what it is asked, installs the log subscriber and the exporter, and runs.
//!
//! Both belong to the process and not to the library, and both come first: a pool takes its metric handles from the
//! recorder that is installed when it is built.

use std::process::ExitCode;

use evalpool::service::{Exit, Program, exporter, log};

fn main() -> ExitCode {
    let outcome = Program::parse(std::env::args_os()).and_then(|program| {
        log::install(program.log());
        program.run(exporter::install()?)
    });
    outcome.map_or_else(Exit::report, |()| ExitCode::SUCCESS)
}
