//! `evalpool check`: builds and validates a plugin as an upload would, and describes it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    time::{Duration, Instant},
};

use super::read_plugin;
use crate::{
    EvaluatorPool, Plugin, Settings, Source,
    service::{
        Exit,
        cli::CheckArguments,
        exit::{one_line, print},
        store::RunOptions,
    },
};

pub(in crate::service) async fn check(arguments: CheckArguments, settings: &Settings) -> Result<(), Exit> {
    let CheckArguments { plugin, entry } = arguments;
    let bytes = read_plugin(&plugin, settings.limits.plugin_size)?;
    let began = Instant::now();
    let plugin = Plugin::new(bytes.clone(), None)?;
    let options = RunOptions { entry_point: entry, ..RunOptions::default() };
    let spec = options.spec(Source::Bytes(bytes));
    let prepared = EvaluatorPool::from_settings(settings)?.prepare_with("check", spec, Some(plugin.clone())).await?;
    let took = began.elapsed();
    let entry_point = prepared.info().and_then(|info| info.entry_point).unwrap_or_default();
    // Not published: the runtime closes in the background, or with the process.
    drop(prepared);
    print(describe(&plugin, &entry_point, took))
}

fn describe(plugin: &Plugin, entry_point: &str, took: Duration) -> String {
    let interface = plugin.interface();
    let mut imports: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for import in interface.imports() {
        imports.entry(&import.module).or_default().push(&import.name);
    }
    let mut imports = imports.iter().map(|(module, names)| format!("{module}: {}", names.join(", ")));
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(text, "{label:<14}{}", one_line(value));
    };
    line("digest", &plugin.digest().to_string());
    line("size", &format!("{} bytes", plugin.bytes().len()));
    line("entry points", &interface.entry_points().join(", "));
    line("calls", entry_point);
    line("imports", &imports.next().unwrap_or_else(|| "none".to_owned()));
    imports.for_each(|import| line("", &import));
    line("time", &format!("{:.1} ms to read, compile and initialise", took.as_secs_f64() * 1000.0));
    text
}
