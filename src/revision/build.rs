//! How a revision's runtime is built: source → checks → place → compiler → registry.

use std::sync::Arc;

use tokio::time::{Instant, timeout};
use tracing::{Instrument, Span};

use super::{PluginInfo, PoolInner, Revision, resolve::blueprint};
use crate::{
    engine::CompilePriority,
    error::Error,
    memory::MemoryKind,
    registry::BuildTicket,
    runtime::Runtime,
    source::Source,
    spans::{self, phase},
    spec::Linked,
    units::Time,
};

/// Builds for a caller that is `inside` a host function, or not.
pub(super) async fn build(
    inner: Arc<PoolInner>,
    revision: Arc<Revision>,
    mut ticket: BuildTicket<Runtime>,
    inside: bool,
) {
    if revision.is_retired() {
        return ticket.fail(&revision.closed());
    }
    match attempt(&inner, &revision, &mut ticket, inside).await {
        // If it was retired while it was built, nobody else has it, and dropping it closes it.
        Ok(Some(runtime)) => {
            let weak = runtime.downgrade();
            let published = ticket.publish(runtime);
            spans::record_build(published.as_ref().map(drop).map_err(|_| &Error::Cancelled));
            if let Some(runtime) = weak.upgrade().filter(|_| published.is_ok() && !revision.spec.asks_init) {
                inner.compiler.snapshot(&runtime);
            }
        }
        // Nobody wants it any more, and nothing was begun.
        Ok(None) => ticket.abandon(),
        Err(error) => {
            tracing::debug!(evaluator = &*revision.name, error = %error.chain(), "a build failed");
            spans::record_build(Err(&error));
            ticket.fail(&error);
        }
    }
}

async fn attempt(
    inner: &PoolInner,
    revision: &Revision,
    ticket: &mut BuildTicket<Runtime>,
    inside: bool,
) -> Result<Option<Runtime>, Error> {
    let (spec, wait) = (&revision.spec, inner.limits.wait_timeout);
    // Before anything is held that others may want. Whoever waits inside a host function may hold what others wait for.
    let building = match inner.share.as_ref().filter(|_| !inside) {
        Some(share) => tokio::select! {
            biased;
            () = ticket.unwanted() => return Ok(None),
            begun = timeout(wait, share.begin_build(revision.id.tenant)) => {
                Some(begun.map_err(|_| Error::WaitTimeout { after: wait })?)
            }
        },
        None => None,
    };
    let kib = |bytes: u64| u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(inner.fetching_total);
    let known = revision.take_plugin();
    // What is in memory already costs nothing.
    let own = known.is_none().then_some(&spec.source);
    let sources = || own.into_iter().chain(spec.linked.iter().map(|linked| &linked.source));
    let cost = kib(sources().map(|source| source.cost(inner.limits.plugin_size)).sum());
    // Held until the build ends: what is fetched is in memory for as long.
    let mut fetched =
        inner.fetching.acquire_many(cost).await.map_err(|error| Error::internal("fetching is over", error))?;
    let started = Instant::now();
    let within = spec.build_timeout.unwrap_or(inner.limits.build_timeout);
    let load = async {
        let plugin = match known {
            Some(plugin) => plugin,
            None => spec.source.load(inner.limits.plugin_size, spec.digest).await?,
        };
        let mut linked = Vec::with_capacity(spec.linked.len());
        for Linked { name, source, digest } in &spec.linked {
            linked.push((name.as_str(), source.load(inner.limits.plugin_size, *digest).await?));
        }
        Ok::<_, Error>((plugin, linked))
    };
    let loaded = tokio::select! {
        biased;
        () = ticket.unwanted() => return Ok(None),
        loaded = timeout(within, load).instrument(phase!("fetch")) => loaded,
    };
    let Ok(loaded) = loaded else {
        let slow = std::io::Error::other(format!("it was not read within {}", Time(within)));
        return Err(Error::SourceUnavailable { cause: Arc::new(slow) });
    };
    let (plugin, linked) = loaded?;
    let fetching = started.elapsed();
    inner.metrics.build_phase("fetch", fetching);
    // What was charged above the real size is given back.
    let held = sources()
        .zip(own.map(|_| &plugin).into_iter().chain(linked.iter().map(|(_, plugin)| plugin)))
        .filter(|(source, _)| source.cost(inner.limits.plugin_size) > 0)
        .map(|(_, plugin)| plugin.bytes().len() as u64);
    let held: u64 = held.sum();
    drop(fetched.split(cost.saturating_sub(kib(held)) as usize));
    let _held = inner.memory.charge(MemoryKind::Code, held);
    let mut blueprint = blueprint(inner, revision, plugin, &linked)?;
    inner.compiler.check(&blueprint)?;
    let info = PluginInfo {
        digest: blueprint.plugin.digest(),
        entry_point: blueprint.entry_points.default().map(str::to_owned),
        size: blueprint.plugin.bytes().len() as u64,
    };
    spans::record_plugin(&Span::current(), &info.digest, Some(info.size));
    // A file may have changed since the last build; what was seen first is what was validated and is shown.
    let _ = revision.info.set(info);
    let followed = inner.compiler.follow(&blueprint.request, ticket.interest());
    tokio::select! {
        biased;
        () = ticket.unwanted() => return Ok(None),
        () = followed => {}
    }
    let Some(admission) = ticket.admit(fetching).await else { return Ok(None) };
    if inner.share.as_ref().zip(building.as_ref()).is_some_and(|(share, building)| share.gives_way(building)) {
        blueprint.request.priority = CompilePriority::Low;
    }
    let began = Instant::now();
    let plugin = matches!(spec.source, Source::Bytes(_)).then(|| blueprint.plugin.clone());
    let (interest, unwanted) = (ticket.interest(), ticket.unwanted());
    let built = inner.compiler.build(blueprint, admission, interest, unwanted, wait).await;
    if let Some(building) = building {
        // What it waited for, such as a compile slot, is not its tenant's. A failed one has used what it could.
        let took = built.as_ref().map_or(began.elapsed().min(within), |runtime| {
            let took = runtime.program().took;
            took.compile + took.init
        });
        building.built(took);
    }
    let runtime = built?;
    if let Some(plugin) = plugin {
        revision.set_plugin(plugin);
    }
    Ok(Some(runtime))
}
