//! `evalpool load`: drives many evaluators through one bounded pool, and checks that it kept its promises.
//!
//! Everything is counted twice: the tasks count what they asked for and got, and the pool's metrics, rendered as a
//! server would, count what happened. The command fails if the two disagree, if a bound was broken, or if something is
//! left after the close.
//!
//! | file | what it holds |
//! |---|---|
//! | [`subject`] | what each evaluator runs |
//! | [`drive`] | the tasks that evaluate |
//! | [`chaos`] | what they also do with `--chaos` |
//! | [`watch`] | the thread that samples the pool and memory |
//! | [`figures`] | the metrics, as numbers |
//! | [`report`] | the outcome, for people and as JSON |

mod chaos;
mod drive;
mod figures;
mod report;
mod subject;
mod watch;

use std::{pin::pin, sync::Arc, time::Instant};

use metrics_exporter_prometheus::PrometheusHandle;

use self::{drive::Workload, figures::Figures, report::Report, subject::Subject, watch::Watch};
use super::{pool_builder, signals::Signals};
use crate::{
    Settings,
    service::{Exit, cli::LoadArguments, exit::print},
};

/// The capacity if neither a flag nor a setting gives one.
const CAPACITY: usize = 16;

pub(in crate::service) async fn load(
    arguments: LoadArguments,
    mut settings: Settings,
    exporter: PrometheusHandle,
) -> Result<(), Exit> {
    if let Some(isolation) = arguments.isolation {
        settings.engine.isolation = isolation;
    }
    if let Some(code_cache) = &arguments.code_cache {
        settings.engine.code_cache.clone_from(code_cache);
    }
    let (subject, input) = Subject::read(&arguments, &settings).await?;
    settings.limits.plugin_size = settings.limits.plugin_size.max(subject.size());
    let capacity = match arguments.capacity {
        Some(capacity) => capacity.get(),
        // The general default has room for all of this command's evaluators, and would show no eviction.
        None if settings.pool.capacity == Settings::default().pool.capacity => CAPACITY,
        None => settings.pool.capacity,
    };
    let pool = pool_builder(&settings).capacity(capacity).build()?;
    // 32 bits: readers that take JSON numbers for doubles would round a larger one.
    let seed = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));

    let mut signals = Signals::new()?;
    let live_max = Arc::default();
    let watch = Watch::start(pool.clone(), exporter.clone(), arguments.duration, Arc::clone(&live_max))?;
    let workload = Arc::new(Workload::new(&pool, subject, input, arguments.evaluators, live_max)?);
    let began = Instant::now();
    {
        let mut running = pin!(workload.run(&arguments, seed));
        tokio::select! {
            ended = &mut running => ended?,
            () = signals.next() => {
                // Reports what was measured so far, unless a second signal comes.
                workload.stop();
                tokio::select! {
                    ended = running => ended?,
                    () = signals.next() => return Err(Exit::failed("interrupted")),
                }
            }
        }
    }
    let took = began.elapsed();
    let tally = workload.into_tally()?;
    let closed = pool.close().await;
    let left = pool.runtimes();
    let metrics = exporter.render();
    let report = Report {
        seed,
        took,
        capacity,
        tally,
        seen: watch.stop()?,
        closed,
        left,
        figures: Figures::of(&metrics),
        with_chaos: arguments.chaos,
    };
    print(if arguments.json { report.json() } else { report.table() })?;
    match report.broken().as_slice() {
        [] => Ok(()),
        broken => Err(Exit::failed(broken.join("; "))),
    }
}
