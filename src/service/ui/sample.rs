//! What a pool did in one second, and what it had at its end.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use serde::Serialize;

use super::{Change, now};
use crate::{EvaluatorId, PoolSnapshot, metrics::BUCKETS};

/// How many tenants a sample names that built something.
const TENANTS: usize = 5;

/// Evaluations by how long they took: a count for each of [`BUCKETS`], and one for those above.
pub(super) type Times = Vec<u64>;

/// What the next sample is compared with.
pub(super) struct Before {
    pub(super) snapshot: Arc<PoolSnapshot>,
    times: [Times; 2],
    /// Its runtimes: evaluator and revision.
    there: HashSet<(EvaluatorId, u64)>,
}

/// One second. Times are in seconds, sizes in bytes.
#[derive(Debug, Serialize)]
pub(super) struct Sample<'a> {
    /// Samples are numbered without a gap.
    number: u64,
    /// In milliseconds since the Unix epoch.
    at: u64,
    capacity: usize,
    /// Building, idle, busy, draining.
    runtimes: [usize; 4],
    memory_limit: u64,
    /// Code, instances, cache.
    memory: [u64; 3],
    /// For capacity, for an instance, for a build.
    waiting: [usize; 3],
    oldest_wait: f64,
    /// Idle, busy.
    instances: [usize; 2],
    registered: usize,
    /// What was counted in this second, by the words of the metrics' labels.
    evaluations: BTreeMap<&'static str, u64>,
    lookups: BTreeMap<&'static str, u64>,
    builds: BTreeMap<&'static str, u64>,
    evictions: BTreeMap<&'static str, u64>,
    /// Half of the evaluations, and 99 of 100, waited no longer than this; `null` if there was none.
    wait: Option<[f64; 2]>,
    /// The same of how long guests ran.
    exec: Option<[f64; 2]>,
    /// Tenants whose runtimes are new in this second, those with most first, and how many those are.
    built: Vec<(&'a str, usize)>,
    /// What was uploaded, changed and removed.
    changes: &'a [Change],
}

/// A sample as JSON, and what the next one is compared with.
pub(super) fn sample(
    number: u64,
    snapshot: PoolSnapshot,
    times: [Times; 2],
    changes: &[Change],
    before: Option<&Before>,
) -> (String, Before) {
    let there: HashSet<_> = snapshot.runtimes.iter().map(|runtime| (runtime.evaluator, runtime.revision)).collect();
    let mut built = BTreeMap::<&str, usize>::new();
    if let Some(before) = before {
        let is_new = |runtime: &&crate::RuntimeInfo| !before.there.contains(&(runtime.evaluator, runtime.revision));
        for runtime in snapshot.runtimes.iter().filter(is_new) {
            *built.entry(&runtime.tenant).or_default() += 1;
        }
    }
    let mut built: Vec<_> = built.into_iter().collect();
    built.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    built.truncate(TENANTS);
    let zero = crate::metrics::PoolTotals::default();
    let (totals, earlier) = (&snapshot.totals, before.map_or(&zero, |before| &before.snapshot.totals));
    let quantiles = |at: usize| {
        let now = times.get(at)?;
        let earlier = before.and_then(|before| before.times.get(at));
        let since = |(bucket, count): (usize, &u64)| {
            count.saturating_sub(earlier.and_then(|earlier| earlier.get(bucket)).copied().unwrap_or_default())
        };
        let counts: Times = now.iter().enumerate().map(since).collect();
        Some([quantile(&counts, 0.5)?, quantile(&counts, 0.99)?])
    };
    let (counts, memory, waiting) = (snapshot.counts, snapshot.memory, snapshot.waiting);
    let sample = Sample {
        number,
        at: now(),
        capacity: snapshot.capacity,
        runtimes: [counts.building, counts.idle, counts.busy, counts.draining],
        memory_limit: memory.limit,
        memory: [memory.code, memory.instances, memory.cache],
        waiting: [waiting.capacity, waiting.instance, waiting.build],
        oldest_wait: waiting.oldest.as_secs_f64(),
        instances: [snapshot.instances.idle, snapshot.instances.busy],
        registered: snapshot.registered,
        evaluations: increase(&totals.evaluations, &earlier.evaluations),
        lookups: increase(&totals.lookups, &earlier.lookups),
        builds: increase(&totals.builds, &earlier.builds),
        evictions: increase(&totals.evictions, &earlier.evictions),
        wait: quantiles(0),
        exec: quantiles(1),
        built,
        changes,
    };
    let json = serde_json::to_string(&sample).unwrap_or_else(|_| "null".to_owned());
    (json, Before { snapshot: Arc::new(snapshot), times, there })
}

fn increase(now: &BTreeMap<&'static str, u64>, earlier: &BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
    let since = |(word, count): (&&'static str, &u64)| {
        Some((*word, count.checked_sub(earlier.get(word).copied().unwrap_or_default())?)).filter(|(_, more)| *more > 0)
    };
    now.iter().filter_map(since).collect()
}

/// The time that this part of all took no longer than, as Prometheus estimates it: evenly spread within a bucket. Above the
/// last bound it is that bound.
fn quantile(counts: &[u64], part: f64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    let rank = part * all as f64;
    let (mut below, mut lower) = (0, 0.0);
    for (count, upper) in counts.iter().zip(BUCKETS) {
        let with = below + count;
        if *count > 0 && with as f64 >= rank {
            return Some(lower + (upper - lower) * ((rank - below as f64) / *count as f64).clamp(0.0, 1.0));
        }
        (below, lower) = (with, *upper);
    }
    (all > 0).then_some(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_in_the_bucket_of_its_rank() {
        let mut counts = vec![0; BUCKETS.len() + 1];
        assert_eq!(quantile(&counts, 0.5), None);
        counts[6] = 98;
        counts[9] = 2;
        let half = quantile(&counts, 0.5).unwrap();
        assert!(BUCKETS[5] < half && half < BUCKETS[6], "{half}");
        let most = quantile(&counts, 0.99).unwrap();
        assert!(BUCKETS[8] < most && most <= BUCKETS[9], "{most}");
        *counts.last_mut().unwrap() = 1000;
        assert_eq!(quantile(&counts, 0.99).as_ref(), BUCKETS.last());
    }

    #[test]
    fn a_sample_has_what_was_counted_since_the_one_before() {
        let mut snapshot = PoolSnapshot::default();
        snapshot.totals.evaluations = [("ok", 5)].into();
        let (_, before) = sample(0, snapshot.clone(), [vec![], vec![]], &[], None);
        snapshot.totals.evaluations = [("ok", 5), ("guest_trap", 2)].into();
        let (json, _) = sample(1, snapshot, [vec![], vec![]], &[], Some(&before));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["evaluations"], serde_json::json!({"guest_trap": 2}));
        assert_eq!((&json["number"], &json["wait"]), (&1.into(), &serde_json::Value::Null));
    }
}
