//! What the fuzz targets share: how they are run, a pool that is small and impatient, and plugins made of an input.
//!
//! See `README.md` for the targets themselves.

mod peak;
mod plugins;
mod stage;

use std::{
    fs, panic,
    path::{Path, PathBuf},
    process::{ExitCode, abort},
};

pub use self::{
    peak::Peak,
    plugins::{Shape, draws, repeat, split},
    stage::{Stage, TICK, TICKS, assert_plugins_fault, settings},
};

/// Makes a function of an input's bytes a fuzz target. Without the fuzzer it is a program that replays inputs: those in
/// the files and folders that it is given, or in its corpus.
#[macro_export]
macro_rules! fuzz {
    ($run:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|input: &[u8]| $run(input));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            // In the processes that compile, this must come first.
            evalpool::init_compile_workers();
            $crate::replay(env!("CARGO_BIN_NAME"), $run)
        }
    };
}

/// Runs a target on each input that the program's arguments name, or on its corpus when there are none.
#[must_use]
pub fn replay(target: &str, run: fn(&[u8])) -> ExitCode {
    // As under the fuzzer: what panics on another thread is found too.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        report(panic);
        abort();
    }));
    let mut named: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if named.is_empty() {
        named.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target));
    }
    let mut inputs = Vec::new();
    for path in named {
        match fs::read_dir(&path) {
            Ok(entries) => inputs.extend(entries.flatten().map(|entry| entry.path())),
            Err(_) => inputs.push(path),
        }
    }
    inputs.sort();
    for path in &inputs {
        match fs::read(path) {
            Ok(input) => {
                eprintln!("{}", path.display());
                run(&input);
            }
            Err(error) => {
                eprintln!("{}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
    }
    eprintln!("{} inputs, nothing found", inputs.len());
    ExitCode::SUCCESS
}
