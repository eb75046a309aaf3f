//! `evalpool load`: drives many evaluators through one bounded pool, and checks that it kept its promises.
//!
//! Everything is counted twice: the tasks count what they asked for and got, and the pool's metrics, rendered as a
//! server would, count what happened. The command fails if the two disagree, if a bound was broken, or if something is
//! left after the close.
//!
//! | file | what it holds |
//! |---|---|
//! | [`subject`] | what each evaluator runs |
//! | [`plan`] | which evaluators there are, who calls them, and when |
//! | [`customers`] | whose the evaluators are, and who calls which |
//! | [`trace`] | calls as a file has them |
//! | [`drive`] | the tasks that evaluate without pause |
//! | [`chaos`] | what they also do with `--chaos` |
//! | [`open`] | evaluations that are due at times of their own |
//! | [`tally`] | what they count |
//! | [`watch`] | the thread that samples the pool and memory |
//! | [`figures`] | the metrics, as numbers |
//! | [`seconds`] | what was counted in each second, as a file |
//! | [`report`] | the outcome, for people and as JSON |
//! | [`bars`] | a histogram in plain text |

mod bars;
mod chaos;
mod customers;
mod drive;
mod figures;
mod open;
mod plan;
mod report;
mod seconds;
mod subject;
mod tally;
mod trace;
mod watch;

use std::{pin::pin, sync::Arc, time::Instant};

use self::{
    drive::Workload,
    figures::Figures,
    plan::{Evaluators, Plan},
    report::Report,
    seconds::Seconds,
    subject::Subject,
    watch::Watch,
};
use super::{pool_builder, signals::Signals};
use crate::{
    Settings,
    service::{Exit, cli::LoadArguments, exit::print, exporter::Exporter},
};

/// The capacity if neither a flag nor a setting gives one.
const CAPACITY: usize = 16;

pub(in crate::service) async fn load(
    arguments: LoadArguments,
    mut settings: Settings,
    exporter: Exporter,
) -> Result<(), Exit> {
    if let Some(isolation) = arguments.isolation {
        settings.engine.isolation = isolation;
    }
    if let Some(code_cache) = &arguments.code_cache {
        settings.engine.code_cache.clone_from(code_cache);
    }
    let evaluators = Evaluators::of(&arguments, settings.limits.input_size)?;
    let names = evaluators.names();
    let (subject, input) = Subject::read(&arguments, &settings, names.len()).await?;
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

    let plan = Plan::of(&arguments, evaluators, &input, seed)?;
    let (length, flooding, open_loop) = (plan.length, plan.flooding, plan.schedule.is_some());
    let seconds = arguments.csv.as_deref().map(Seconds::create).transpose()?;

    let mut signals = Signals::new()?;
    let (live_max, memory_start) = (Arc::default(), watch::memory());
    let second = seconds.as_ref().map(Seconds::current);
    let workload = Arc::new(Workload::new(&pool, subject, input, names, Arc::clone(&live_max), second)?);
    let watch = Watch::start(pool.clone(), exporter.clone(), length, live_max, memory_start, seconds)?;
    let began = Instant::now();
    {
        let mut running = pin!(workload.run(plan));
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
    let counted = workload.into_counted()?;
    let closed = pool.close().await;
    let left = pool.runtimes();
    let metrics = exporter.render();
    let (watched, written) = watch.stop()?;
    let report = Report {
        seed,
        took,
        capacity,
        all: counted.all(),
        counted,
        flooding,
        seen: watched,
        closed,
        left,
        figures: Figures::of(&metrics),
        open_loop,
        with_chaos: arguments.chaos,
    };
    print(if arguments.json { report.json() } else { report.table() })?;
    match report.broken().as_slice() {
        [] => written,
        broken => Err(Exit::failed(broken.join("; "))),
    }
}
