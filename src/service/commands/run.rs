//! `evalpool run`: one evaluation, whose output goes to standard output as it is.

use super::{read_input, read_plugin};
use crate::{
    EvaluatorPool, Settings, Source,
    service::{
        Exit,
        cli::RunArguments,
        exit::{print, shown},
        store::RunOptions,
    },
};

pub(in crate::service) async fn run(arguments: RunArguments, settings: &Settings) -> Result<(), Exit> {
    let RunArguments { plugin, entry, input, wasi, timeout } = arguments;
    let options = RunOptions { entry_point: entry, wasi, ..RunOptions::default() };
    let mut spec = options.spec(Source::Bytes(read_plugin(&plugin, settings.limits.plugin_size)?));
    if let Some(timeout) = timeout {
        spec = spec.with_exec_timeout(timeout);
    }
    let input = input.map(|input| read_input(input, settings.limits.input_size)).transpose()?.unwrap_or_default();
    let evaluator = EvaluatorPool::from_settings(settings)?.evaluator("run", spec)?;
    let response = evaluator.evaluate(input).await?;
    if let Some(written) = response.written() {
        eprint!("{}", shown(written));
    }
    print(response.bytes())
}
