//! The spec over the settings, and the plugin's imports against what there is.

use std::sync::Arc;

use super::{PoolInner, Revision};
use crate::{
    compiler::{self, Blueprint},
    config::default_hosts,
    engine::{CompilePriority, CompileRequest, InstanceLimits, LinkedModule, Permit},
    error::Error,
    last_words::LastWords,
    memory::MemoryAccount,
    runtime::{Policy, Report},
    source::{EntryPoints, Plugin},
    spec::Spec,
    units::cut,
};

/// Bytes of labels in a log line.
const MAX_LABELS: usize = 1024;

/// Resolves the spec against the settings, and checks the imports of all its modules.
pub(super) fn blueprint(
    inner: &PoolInner,
    revision: &Revision,
    plugin: Plugin,
    linked: &[(&str, Plugin)],
) -> Result<Blueprint, Error> {
    let Revision { name, spec, .. } = revision;
    let entry_points = EntryPoints::of(plugin.interface(), spec.entry_point.as_deref())?;
    let wasi = spec.wasi.unwrap_or(inner.engine.wasi);
    let linked = compiler::order_linked(linked.iter().map(|(name, plugin)| (*name, plugin)).collect())?;
    let all = || linked.iter().map(|(_, plugin)| *plugin).chain([&plugin]);
    for plugin in all() {
        compiler::check_imports(plugin.interface(), wasi, &spec.host_functions, &linked)?;
    }
    let wants_wasi = all().any(|plugin| plugin.interface().wants_wasi());
    let limits = InstanceLimits {
        // The slots of `direct` have no more, and so no engine gives more.
        memory: spec.memory.map_or(inner.limits.memory, |memory| memory.min(inner.limits.memory)),
        table_elements: inner.limits.table_elements,
        output_size: spec.output_size.unwrap_or(inner.limits.output_size),
        exec_timeout: spec.exec_timeout.unwrap_or(inner.limits.exec_timeout),
        build_timeout: spec.build_timeout.unwrap_or(inner.limits.build_timeout),
        fuel: spec.fuel.unwrap_or(inner.limits.fuel),
    };
    let to_start = all().fold(0_u64, |sum, plugin| sum.saturating_add(plugin.interface().memory()));
    if to_start > limits.memory {
        let (limit, to_start) = (limits.memory, Some(to_start));
        return Err(Error::OutOfMemory { limit, to_start, last_words: LastWords::none() });
    }
    let most = inner.pool.max_instances_per_evaluator.min(inner.pool.max_instances);
    let policy = Policy {
        isolation: spec.isolation.unwrap_or(inner.engine.isolation),
        max_uses: inner.pool.max_uses,
        max_instances: spec.instances.map_or(most, |instances| most.min(instances.get())),
        grace: inner.pool.grace,
        exec_timeout: limits.exec_timeout,
        build_timeout: limits.build_timeout,
        cpu: revision.cpu.clone(),
    };
    let hosts = spec.allowed_hosts.clone();
    let labels = labels(spec);
    let report = Report::new(revision.identity.clone(), labels.clone(), spec.debug);
    let request = CompileRequest {
        evaluator: name.clone(),
        tenant: revision.id.tenant,
        labels,
        log: inner.log_sink(revision.owner.clone(), &revision.identity.tenant).filter(|_| spec.debug),
        wasm: plugin.bytes().clone(),
        digest: plugin.digest(),
        linked: linked
            .iter()
            .map(|(name, plugin)| LinkedModule {
                name: (*name).to_owned(),
                wasm: plugin.bytes().clone(),
                digest: plugin.digest(),
            })
            .collect(),
        wasi: wants_wasi,
        trusted: spec.trusted.unwrap_or(inner.engine.trusted),
        config: spec.config.clone(),
        variables: revision.variables.clone(),
        init: revision.init,
        init_refresh: spec.init_refresh.unwrap_or(inner.engine.init_refresh).filter(|every| !every.is_zero()),
        allowed_hosts: hosts.unwrap_or_else(|| default_hosts(&inner.engine.allowed_hosts).collect()),
        host_functions: spec.host_functions.clone(),
        limits,
        initial_memory: to_start,
        wide: all().any(|plugin| plugin.interface().is_wide()),
        priority: CompilePriority::Normal,
        memory: MemoryAccount::unbounded(),
        permit: Permit::new(()),
    };
    Ok(Blueprint { plugin, entry_points, request, report, policy })
}

/// The labels as log lines have them, or their beginning: a plugin decides how many lines there are.
fn labels(spec: &Spec) -> Option<Arc<str>> {
    let pairs: Vec<_> = spec.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut text = pairs.join(" ");
    cut(&mut text, MAX_LABELS);
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    #[test]
    fn labels_are_one_text_that_is_cut_where_it_is_too_long() {
        let spec = || Spec::new(Source::bytes(Vec::new()));
        assert_eq!(labels(&spec()), None);
        assert_eq!(labels(&spec().label("b", "2").label("a", "1")).as_deref(), Some("a=1 b=2"));
        let fits = "x".repeat(MAX_LABELS - 2);
        assert_eq!(labels(&spec().label("a", &fits)), Some(format!("a={fits}").into()));
        assert_eq!(labels(&spec().label("a", format!("{fits}x"))), Some(format!("a={fits}…").into()));
        // Never within a character.
        let cut = labels(&spec().label("a", "é".repeat(MAX_LABELS))).unwrap();
        assert_eq!(*cut, format!("a={}…", "é".repeat(MAX_LABELS / 2 - 1)));
    }
}
