//! `evalpool run`: one evaluation, its output as it is.

use std::io::{self, Write};

use super::{read_input, read_plugin};
use crate::{
    EvaluatorPool, Settings, Source, Spec,
    service::{Exit, cli::RunArguments},
};

pub(in crate::service) async fn run(arguments: RunArguments, settings: &Settings) -> Result<(), Exit> {
    let RunArguments { plugin, entry, input, wasi, timeout } = arguments;
    let mut spec = Spec::new(Source::Bytes(read_plugin(&plugin, settings.limits.plugin_size)?));
    if let Some(entry) = entry {
        spec = spec.with_entry_point(entry);
    }
    if let Some(wasi) = wasi {
        spec = spec.with_wasi(wasi);
    }
    if let Some(timeout) = timeout {
        spec = spec.with_exec_timeout(timeout);
    }
    let input = input.map(|input| read_input(input, settings.limits.input_size)).transpose()?.unwrap_or_default();
    let evaluator = EvaluatorPool::from_settings(settings)?.evaluator("run", spec)?;
    let response = evaluator.evaluate(input).await?;
    let mut out = io::stdout().lock();
    match out.write_all(response.bytes()).and_then(|()| out.flush()) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Exit::failed(format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}
