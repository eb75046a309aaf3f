//! What viewers see of the series: it adds up, nothing falls, and there are never more than there may be.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::advance;

use super::{
    super::top::{LINGER, Recent},
    *,
};
use crate::{ErrorKind, tenants::Meter, usage::Usage};

/// Of a series: evaluations that went well and that did not, time of guests and of all in nanoseconds.
type Figures = [u64; 4];

fn figures(usage: &UsageTotals) -> Figures {
    let ok = usage.outcomes.get("ok").copied().unwrap_or_default();
    let [guest, total] = [usage.guest, usage.total].map(|time| u64::try_from(time.as_nanos()).unwrap());
    [ok, usage.evaluations - ok, guest, total]
}

fn plus(a: Figures, b: Figures) -> Figures {
    [0, 1, 2, 3].map(|at| a[at] + b[at])
}

/// Evaluators' and tenants' series as they were last seen, and the increases that were seen since the beginning.
#[derive(Default)]
struct Viewer {
    seen: [BTreeMap<Option<String>, Figures>; 2],
    increases: [Figures; 2],
}

impl Viewer {
    fn look(&mut self, tenants: &Tenants, most: [usize; 2]) {
        let UsageSeries { evaluators, tenants } = tenants.series(Vec::new);
        for (at, rows) in [evaluators, tenants].into_iter().enumerate() {
            assert!(rows.len() <= most[at] + 1, "{} series", rows.len());
            assert_eq!(rows.iter().filter(|row| row.name.is_none()).count(), 1);
            assert!(rows.iter().all(|row| row.name.as_deref() != Some(OTHER)));
            let now: BTreeMap<_, _> = rows.iter().map(|row| (row.name.clone(), figures(&row.usage))).collect();
            for (name, now) in &now {
                let before = self.seen[at].get(name).copied().unwrap_or_default();
                let increase = [0, 1, 2, 3].map(|figure| {
                    now[figure]
                        .checked_sub(before[figure])
                        .unwrap_or_else(|| panic!("{name:?} fell: {before:?}, {now:?}"))
                });
                self.increases[at] = plus(self.increases[at], increase);
            }
            self.seen[at] = now;
        }
    }
}

fn tenants(per_evaluator: usize, per_tenant: usize) -> Arc<Tenants> {
    Tenants::new(None, &MetricSettings { per_evaluator, per_tenant })
}

fn used(seconds: u64) -> Usage {
    let guest = Duration::from_secs(seconds);
    Usage { guest, total: guest * 2, ..Usage::default() }
}

fn meter(tenants: &Arc<Tenants>, name: &str) -> Meter {
    tenants.meter(super::super::of_name(name), &name.into(), rand::random())
}

/// The evaluators that are shown, each with its evaluations; `None` are the others.
fn evaluators(tenants: &Tenants) -> BTreeMap<Option<String>, u64> {
    tenants.series(Vec::new).evaluators.into_iter().map(|row| (row.name, row.usage.evaluations)).collect()
}

fn rows<const N: usize>(rows: [(&str, u64); N], others: u64) -> BTreeMap<Option<String>, u64> {
    let own = rows.into_iter().map(|(name, count)| (Some(name.to_owned()), count));
    own.chain([(None, others)]).collect()
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_goes_or_moves_two_viewers_see_each_evaluation_once() {
    const MOST: [usize; 2] = [3, 2];
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let tenants = tenants(MOST[0], MOST[1]);
    let (names, owners) = (["a", "b", "c", "d", "e", "f", "other"], ["x", "y", "z", "other", "w"]);
    let mut meters: Vec<Meter> = Vec::new();
    let (mut viewers, mut unseen) = ([Viewer::default(), Viewer::default()], [Duration::ZERO; 2]);
    let mut all = Figures::default();
    for _ in 0..20_000 {
        let name = names[random.random_range(0..names.len())];
        let owner = owners[random.random_range(0..owners.len())];
        let at = (!meters.is_empty()).then(|| random.random_range(0..meters.len()));
        match (random.random_range(0..20), at) {
            (0, _) => meters.push(tenants.meter(owner, &name.into(), random.random())),
            (1, Some(at)) if meters.len() > 4 => drop(meters.swap_remove(at)),
            (2, Some(at)) => meters[at].move_to(owner, random.random()),
            (3..12, Some(at)) => {
                let usage = used(random.random_range(0..4) * (at as u64 + 1));
                let outcome = if random.random() { Ok(()) } else { Err(ErrorKind::GuestTrap) };
                meters[at].add(outcome, &usage);
                let totals = UsageTotals { guest: usage.guest, total: usage.total, ..UsageTotals::default() };
                all = plus(all, figures(&totals));
                all[usize::from(outcome.is_err())] += 1;
            }
            (12..15, _) => {
                let passed = Duration::from_secs(random.random_range(0..20));
                advance(passed).await;
                unseen = unseen.map(|unseen| unseen + passed);
            }
            _ => {}
        }
        for (viewer, unseen) in viewers.iter_mut().zip(&mut unseen) {
            if random.random_range(0..8) == 0 || *unseen + Duration::from_secs(20) > LINGER {
                viewer.look(&tenants, MOST);
                assert_eq!(viewer.increases, [all, all]);
                *unseen = Duration::ZERO;
            }
        }
    }
}

#[test]
fn what_threads_use_while_somebody_looks_is_seen_once() {
    let (tenants, is_over) = (tenants(2, 2), AtomicBool::new(false));
    let (mut viewer, mut all) = (Viewer::default(), Figures::default());
    // Each thread gets sums of its own for this one.
    let shared = meter(&tenants, "a/3");
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (tenants, shared) = (&tenants, &shared);
                scope.spawn(move || {
                    for round in 0..200 {
                        let meter = meter(tenants, ["a/1", "a/2", "b/1", "c/1"][(thread + round) % 4]);
                        for number in 0..20 {
                            meter.add(Ok(()), &used(number));
                            shared.add(Ok(()), &used(number));
                            if number == 10 {
                                meter.move_to("d", rand::random());
                            }
                        }
                    }
                })
            })
            .collect();
        let watcher = scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                viewer.look(&tenants, [2, 2]);
            }
            viewer.look(&tenants, [2, 2]);
            viewer.increases
        });
        for thread in threads {
            thread.join().unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
        let seconds = 2 * 4 * 200 * (0..20).sum::<u64>() * 1_000_000_000;
        all = [2 * 4 * 200 * 20, 0, seconds, 2 * seconds];
        assert_eq!(watcher.join().unwrap(), [all, all]);
    });
}

#[tokio::test(start_paused = true)]
async fn those_with_the_most_processor_time_begin_at_0_and_the_rest_are_others() {
    let tenants = tenants(2, 0);
    assert_eq!(evaluators(&tenants), rows([], 0), "the others are there from the start");
    let meters = ["a", "b", "c", "other"].map(|name| meter(&tenants, name));
    let add = || {
        for (meter, seconds) in meters.iter().zip([1, 2, 3, 4]) {
            meter.add(Ok(()), &used(seconds));
        }
    };
    add();
    assert_eq!(evaluators(&tenants), rows([("b", 0), ("c", 0)], 4));
    add();
    meters[2].add(Err(ErrorKind::GuestTrap), &used(0));
    assert_eq!(evaluators(&tenants), rows([("b", 1), ("c", 2)], 6));
    assert!(tenants.series(Vec::new).tenants.is_empty(), "nobody asked for them");
}

#[tokio::test(start_paused = true)]
async fn who_uses_half_as_much_again_takes_the_place_of_another_when_everybody_has_seen_that_one_end() {
    let tenants = tenants(1, 0);
    let [a, b] = ["a", "b"].map(|name| meter(&tenants, name));
    a.add(Ok(()), &used(10));
    assert_eq!(evaluators(&tenants), rows([("a", 0)], 1));
    b.add(Ok(()), &used(14));
    a.add(Ok(()), &used(0));
    assert_eq!(evaluators(&tenants), rows([("a", 1)], 2));
    b.add(Ok(()), &used(2));
    a.add(Ok(()), &used(0));
    // From this look on it ends. What it has until here it keeps.
    assert_eq!(evaluators(&tenants), rows([("a", 2)], 3));
    a.add(Ok(()), &used(90));
    assert_eq!(evaluators(&tenants), rows([("a", 2)], 4));
    let moment = Duration::from_millis(1);
    advance(LINGER.saturating_sub(moment)).await;
    assert_eq!(evaluators(&tenants), rows([("a", 2)], 4));
    advance(moment).await;
    b.add(Ok(()), &used(0));
    assert_eq!(evaluators(&tenants), rows([("b", 0)], 5));
    a.add(Ok(()), &used(0));
    b.add(Ok(()), &used(0));
    // It is first by far again, and waits as long before it may begin anew. Then the other one has to end.
    assert_eq!(evaluators(&tenants), rows([("b", 1)], 6));
    advance(LINGER).await;
    a.add(Ok(()), &used(0));
    assert_eq!(evaluators(&tenants), rows([("b", 1)], 7));
    advance(LINGER).await;
    a.add(Ok(()), &used(0));
    assert_eq!(evaluators(&tenants), rows([("a", 0)], 8));
}

#[tokio::test(start_paused = true)]
async fn processor_time_of_yesterday_does_not_keep_out_who_floods_now() {
    let tenants = tenants(1, 1);
    let [old, new] = ["old/x", "new/x"].map(|name| meter(&tenants, name));
    old.add(Ok(()), &used(36_000));
    assert_eq!(evaluators(&tenants), rows([("old/x", 0)], 1));
    advance(Duration::from_hours(2)).await;
    new.add(Ok(()), &used(1));
    let shown = || {
        let UsageSeries { evaluators, tenants } = tenants.series(Vec::new);
        [evaluators, tenants].map(|rows| rows[0].name.clone().unwrap())
    };
    assert_eq!(shown(), ["old/x", "old"]);
    advance(LINGER).await;
    new.add(Ok(()), &used(1));
    assert_eq!(shown(), ["new/x", "new"]);
}

#[tokio::test(start_paused = true)]
async fn the_series_of_an_evaluator_that_is_gone_ends_and_a_namesake_keeps_it() {
    let tenants = tenants(2, 0);
    let [a, namesake, b] = ["a", "a", "b"].map(|name| meter(&tenants, name));
    let add = || [&a, &namesake, &b].into_iter().for_each(|meter| meter.add(Ok(()), &used(1)));
    add();
    evaluators(&tenants);
    add();
    drop((a, b));
    assert_eq!(evaluators(&tenants), rows([("a", 2), ("b", 1)], 3));
    namesake.add(Ok(()), &used(1));
    advance(LINGER).await;
    assert_eq!(evaluators(&tenants), rows([("a", 3)], 3));
    drop(namesake);
    evaluators(&tenants);
    advance(LINGER).await;
    assert_eq!(evaluators(&tenants), rows([], 3));
}

#[tokio::test(start_paused = true)]
async fn a_tenant_whose_evaluators_are_gone_when_somebody_looks_has_its_series_for_as_long_as_it_is_remembered() {
    let tenants = tenants(0, 1);
    let shown = || tenants.series(Vec::new).tenants.iter().map(|row| row.usage.evaluations).collect::<Vec<_>>();
    for counts in [[0, 1], [1, 1], [2, 1]] {
        meter(&tenants, "a/x").add(Ok(()), &used(1));
        assert_eq!(shown(), counts);
    }
    for number in 0..10_000 {
        let one = meter(&tenants, &number.to_string());
        one.add(Ok(()), &used(u64::from(number == 0)));
    }
    assert_eq!(tenants.state().series.as_ref().unwrap().active.len(), 10_000, "none that is forgotten");
    assert_eq!(shown(), [2, 10_001]);
    advance(LINGER).await;
    meter(&tenants, "b").add(Ok(()), &used(1));
    let rows = tenants.series(Vec::new).tenants;
    assert_eq!(rows.iter().map(|row| row.name.as_deref()).collect::<Vec<_>>(), [Some("b"), None]);
}

#[tokio::test(start_paused = true)]
async fn without_series_nothing_is_kept_for_them() {
    let tenants = tenants(0, 0);
    let a = meter(&tenants, "a");
    a.add(Ok(()), &used(1));
    assert_eq!(tenants.series(|| panic!("nobody asks for it")), UsageSeries::default());
    assert_eq!(UsageSeries::default().to_string(), "");
    a.move_to("b", 0);
    let state = tenants.state();
    assert!(state.meters.values().all(|metered| metered.recent == Recent::default()));
    assert!(state.tenants.values().all(|tenant| tenant.recent == Recent::default()));
}

#[tokio::test(start_paused = true)]
async fn runtimes_and_what_they_hold_are_their_evaluators() {
    let tenants = tenants(1, 1);
    let meters = [("a/1", 1), ("a/2", 2)].map(|(name, id)| tenants.meter("a", &name.into(), id));
    for (meter, seconds) in meters.iter().zip([5, 1]) {
        meter.add(Ok(()), &used(seconds));
    }
    let shown = || {
        let UsageSeries { evaluators, tenants } = tenants.series(|| vec![(2, 1), (1, 10), (1, 100), (3, 1000)]);
        [evaluators, tenants].map(|rows| rows.iter().map(|row| (row.runtimes, row.memory_bytes)).collect::<Vec<_>>())
    };
    assert_eq!(shown(), [[(2, 110), (2, 1001)], [(3, 111), (1, 1000)]]);
    // It was replaced by what was built under another id.
    meters[0].move_to("a", 3);
    meters[0].move_to("a", 3);
    assert_eq!(shown(), [[(3, 1110), (1, 1)], [(4, 1111), (0, 0)]]);
    drop(meters);
    assert_eq!(shown(), [[(0, 0), (4, 1111)], [(0, 0), (4, 1111)]]);
    let state = tenants.state();
    let series = state.series.as_ref().unwrap();
    assert!(series.ids.is_empty() && series.names.is_empty() && series.changed.take().is_empty());
}
