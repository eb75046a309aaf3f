//! Which names have a series of their own: those that used the most processor time of late. The others share one.
//!
//! Between two looks of one viewer, the increases of all series add up to what was used in between. So what is used is
//! added to one series, once, and a series neither begins nor ends with a value that some viewer has not seen:
//!
//! - It begins at 0. What was used under its name until then is among the others'.
//! - It ends in steps. First it grows no more, and is shown for [`LINGER`]: its last value is also for viewers at whose look
//!   it did not end. Then it is shown no more, and for as long its name gets no other: every viewer sees that it has ended
//!   before it begins at 0 again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::usage::UsageTotals;

/// The label of all others. An evaluator or a tenant of this name is one of them.
pub(super) const OTHER: &str = "other";

/// How long a series is shown after it has ended, and its name has none after that. Longer than Prometheus's scrape
/// interval, which is a minute unless it is set.
pub(super) const LINGER: Duration = Duration::from_secs(90);

/// After how long processor time counts half. Short enough that a new flooder is seen within minutes.
const HALF_LIFE: Duration = Duration::from_mins(5);

/// How many times as much a name must have used to take another's place. Two that use about the same would take turns.
const LEAD: f64 = 1.5;

/// Less processor time of late is as none, in seconds.
const NOTHING: f64 = 1e-9;

/// Processor time of late: what is longer ago counts for less. Kept so that it is the same however much time passes: one has
/// more than another for as long as neither uses any.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Recent {
    /// log2 of seconds at the beginning of time: half as much, used a half-life later, counts the same.
    log2: f64,
}

/// A moment, in half-lives since the first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(f64);

impl Moment {
    pub(super) fn after(passed: Duration) -> Self {
        Self(passed.as_secs_f64() / HALF_LIFE.as_secs_f64())
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self { log2: f64::NEG_INFINITY }
    }
}

impl Recent {
    pub(super) fn add(&mut self, used: Duration, now: Moment) {
        self.log2 = (self.seconds(now) + used.as_secs_f64()).log2() + now.0;
    }

    fn seconds(self, now: Moment) -> f64 {
        (self.log2 - now.0).exp2()
    }
}

/// The series of evaluators, or those of tenants. At most `most` names and the others are shown.
#[derive(Debug)]
pub(super) struct Top {
    most: usize,
    own: BTreeMap<Arc<str>, Own>,
    others: UsageTotals,
}

/// The series of one name.
#[derive(Debug)]
struct Own {
    usage: UsageTotals,
    recent: Recent,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Counts,
    /// It grows no more since then, and is shown.
    Ends(Instant),
    /// It is not shown since then.
    Ended(Instant),
}

impl Top {
    pub(super) fn new(most: usize) -> Self {
        Self { most, own: BTreeMap::new(), others: UsageTotals::default() }
    }

    /// Whether any are shown at all.
    pub(super) fn is_on(&self) -> bool {
        self.most > 0
    }

    pub(super) fn add(&mut self, name: &str, used: &UsageTotals, now: Moment) {
        let Some(own) = self.own.get_mut(name) else { return self.others.add(used) };
        own.recent.add(used.guest, now);
        let series = if own.phase == Phase::Counts { &mut own.usage } else { &mut self.others };
        series.add(used);
    }

    /// Those of these that used most, the first of them first: enough that all who may begin a series are among them.
    pub(super) fn best<T>(&self, mut all: Vec<(Recent, T)>) -> impl Iterator<Item = (Recent, T)> + use<T> {
        // As many as may be new, those that have one, and `OTHER`.
        let enough = self.most.saturating_add(self.own.len()).saturating_add(1);
        if all.len() > enough {
            all.select_nth_unstable_by(enough, |(a, _), (b, _)| b.log2.total_cmp(&a.log2));
            all.truncate(enough);
        }
        all.sort_unstable_by(|(a, _), (b, _)| b.log2.total_cmp(&a.log2));
        all.into_iter()
    }

    /// Begins and ends series. `best` are those by which something was used since the last look, the first of them first.
    /// Others stay as they are, but for those that are gone.
    pub(super) fn choose(
        &mut self,
        at: Instant,
        now: Moment,
        is_there: impl Fn(&str) -> bool,
        best: impl Iterator<Item = (Recent, Arc<str>)>,
    ) {
        let is_over = |since: Instant| at.saturating_duration_since(since) >= LINGER;
        self.own.retain(|name, own| {
            match own.phase {
                Phase::Counts if !is_there(name) => own.phase = Phase::Ends(at),
                Phase::Ends(since) if is_over(since) => own.phase = Phase::Ended(at),
                _ => {}
            }
            !matches!(own.phase, Phase::Ended(since) if is_over(since))
        });
        let counting = self.own.iter().filter(|(_, own)| own.phase == Phase::Counts);
        let mut weakest: Vec<_> = counting.map(|(name, own)| (own.recent, name.clone())).collect();
        weakest.sort_unstable_by(|(a, _), (b, _)| a.log2.total_cmp(&b.log2));
        let mut ending = self.own.values().filter(|own| matches!(own.phase, Phase::Ends(_))).count();
        let (mut shown, mut weakest) = (weakest.len() + ending, weakest.into_iter());
        for (recent, name) in best {
            if recent.seconds(now) < NOTHING || *name == *OTHER || self.own.contains_key(&name) {
                continue;
            }
            if shown < self.most {
                shown += 1;
                self.own.insert(name, Own { usage: UsageTotals::default(), recent, phase: Phase::Counts });
            } else if ending > 0 {
                // One that ends makes room for it.
                ending -= 1;
            } else {
                let weaker = weakest.next().filter(|(least, _)| least.log2 + LEAD.log2() < recent.log2);
                let Some(own) = weaker.and_then(|(_, name)| self.own.get_mut(&name)) else { break };
                own.phase = Phase::Ends(at);
            }
        }
    }

    /// What is shown, by name; the others are the last. Nothing, if no name may have its own.
    pub(super) fn shown(&self) -> impl Iterator<Item = (Option<&Arc<str>>, &UsageTotals)> {
        let own = self.own.iter().filter(|(_, own)| own.is_shown()).map(|(name, own)| (Some(name), &own.usage));
        own.chain(self.is_on().then_some((None, &self.others)))
    }
}

impl Own {
    fn is_shown(&self) -> bool {
        !matches!(self.phase, Phase::Ended(_))
    }
}
