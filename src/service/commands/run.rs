//! `evalpool run`: one evaluation, whose output goes to standard output as it is.

use super::{pool_builder, read_input};
use crate::{
    Data, Settings, Spec,
    service::{
        Exit,
        cli::RunArguments,
        exit::{print, shown},
    },
};

pub(in crate::service) async fn run(arguments: RunArguments, settings: &Settings) -> Result<(), Exit> {
    let RunArguments { plugin, entry, input, options } = arguments;
    let (_, spec) = options.subject(plugin.as_deref(), &settings.limits).await?;
    let spec = Spec { entry_point: entry, ..spec };
    let input = input.map(|input| read_input(input, settings.limits.input_size)).transpose()?;
    let data = input.map_or(Data::Empty, |input| options.data(input));
    let evaluator = pool_builder(settings).build()?.evaluator("run", spec)?;
    let response = evaluator.evaluate(data).await?;
    if let Some(written) = response.written() {
        eprint!("{}", shown(written));
    }
    print(response.bytes())
}
