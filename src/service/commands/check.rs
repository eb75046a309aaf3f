//! `evalpool check`: builds and validates a plugin as an upload would, and describes it.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    Plugin, Settings, Spec,
    config::EngineKind,
    engine::{Drawn, InitState},
    runtime::BuildTimes,
    service::{
        Exit,
        cli::CheckArguments,
        exit::{one_line, print},
    },
    source::EntryPoints,
    units::{Size, Time},
};

pub(in crate::service) async fn check(arguments: CheckArguments, settings: &Settings) -> Result<(), Exit> {
    let CheckArguments { plugin, entry, options } = arguments;
    let (bytes, spec) = options.subject(plugin.as_deref(), &settings.limits).await?;
    let plugin = Plugin::new(bytes, spec.digest)?;
    let entry_points = EntryPoints::of(plugin.interface(), entry.as_deref())?;
    // As `each` to whoever looks at its instances, and it says whether they could begin initialised.
    let asks_init = settings.engine.kind == EngineKind::Direct;
    let spec = Spec { entry_point: entry, asks_init, ..spec };
    let prepared = super::pool_builder(settings).build()?.prepare_with("check", spec, Some(plugin.clone())).await?;
    let (took, init) = (prepared.took(), prepared.init_state().clone());
    let drew = prepared.snapshot_info().map(|snapshot| snapshot.drew).unwrap_or_default();
    // Not published: the runtime closes in the background, or with the process.
    drop(prepared);
    let calls = entry_points.default().unwrap_or("it has to be named");
    print(describe(&plugin, calls, (took, &init, drew), options.memory().unwrap_or(settings.limits.memory)))
}

fn describe(
    plugin: &Plugin,
    calls: &str,
    (took, init, drew): (BuildTimes, &InitState, Drawn),
    most_memory: u64,
) -> String {
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
    line("memory", &format!("{} to start; limits.memory is {}", Size(interface.memory()), Size(most_memory)));
    line("entry points", &interface.candidates().join(", "));
    line("calls", calls);
    line("imports", &imports.next().unwrap_or_else(|| "none".to_owned()));
    imports.for_each(|import| line("", &import));
    line("exports", &interface.exports().join(", "));
    line("time", &format!("{} to compile, {} to initialise", Time(took.compile), Time(took.init)));
    let snapshot = match init {
        InitState::Pending | InitState::Once => {
            let begins = "possible: with init = once, instances begin initialised";
            let shared = match drew {
                Drawn { time: false, randomness: false } => "",
                Drawn { time: true, randomness: false } => ", and share for init_refresh the time that they were told",
                Drawn { time: false, randomness: true } => {
                    ", and share for init_refresh the random numbers that they drew"
                }
                Drawn { .. } => ", and share for init_refresh the time and the random numbers that they drew",
            };
            format!("{begins}{shared}")
        }
        InitState::Refused(why) => format!("not possible: {why}"),
        InitState::Each => "not possible: only the direct engine makes one".to_owned(),
    };
    line("snapshot", &snapshot);
    text
}
