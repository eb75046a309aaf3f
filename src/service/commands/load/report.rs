//! The report of a load, as a table and as JSON, and the promises that were broken.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use serde_json::{Value, json};

use super::{
    bars::bars,
    chaos::Act,
    figures::Figures,
    tally::{Counted, Evaluations, mib},
    watch::Seen,
};
use crate::{CloseReport, metrics::OUTCOMES};

pub(super) struct Report<'a> {
    pub(super) seed: u64,
    pub(super) took: Duration,
    pub(super) capacity: usize,
    pub(super) with_chaos: bool,
    /// Whether evaluations were due at times of their own.
    pub(super) open_loop: bool,
    pub(super) counted: Counted,
    /// Of all callers.
    pub(super) all: Evaluations,
    /// Customers who flooded.
    pub(super) flooding: usize,
    pub(super) seen: Seen,
    pub(super) closed: CloseReport,
    /// Runtimes that exist after the close.
    pub(super) left: usize,
    pub(super) figures: Figures<'a>,
}

impl Report<'_> {
    /// A line for each promise that was broken.
    pub(super) fn broken(&self) -> Vec<String> {
        let mut broken: Vec<String> =
            self.counted.unexpected.iter().map(|(outcome, times)| format!("{outcome} {times} times")).collect();
        let mut unless = |kept: bool, line: String| {
            if !kept {
                broken.push(line);
            }
        };
        let (live_max, left) = (self.seen.live_max, self.left);
        unless(self.all.count() > 0, "there was no evaluation".to_owned());
        unless(live_max <= self.capacity, format!("{live_max} runtimes at once, over the capacity {}", self.capacity));
        unless(left == 0, format!("{left} runtimes are left after the close"));
        unless(self.figures.left() == 0, "the gauges show that something is left after the close".to_owned());
        unless(!matches!(self.closed, CloseReport::Unfinished { .. }), "the close has not ended in time".to_owned());
        unless(self.metrics_agree(), "the metrics disagree with what was counted".to_owned());
        broken
    }

    /// Whether tasks and metrics agree on each outcome's count, and every runtime that was built was closed.
    fn metrics_agree(&self) -> bool {
        let counted = |outcome: &str| self.all.outcomes.get(outcome).copied().unwrap_or_default();
        OUTCOMES.iter().all(|outcome| counted(outcome) == self.figures.evaluations(outcome))
            && self.figures.built() == self.figures.closed()
    }

    fn per_second(&self, of: &Evaluations) -> f64 {
        of.count() as f64 / self.took.as_secs_f64()
    }

    /// A part of the evaluations: those of customers who flood, or of the others.
    fn part(&self, of: &Evaluations) -> Value {
        json!({
            "evaluations": of.count(),
            "errors": of.errors(),
            "per_second": rounded(self.per_second(of)),
            "latency_us": latencies(of),
        })
    }

    pub(super) fn json(&self) -> String {
        let Seen { live_max, memory_start, memory_max, memory_end } = self.seen;
        let mut report = json!({
            "seed": self.seed,
            "seconds": rounded(self.took.as_secs_f64()),
            "evaluations": self.all.count(),
            "errors": self.all.errors(),
            "per_second": rounded(self.per_second(&self.all)),
            "latency_us": latencies(&self.all),
            "runtimes": {
                "capacity": self.capacity,
                "live_max": live_max,
                "live_end_after_close": self.left,
                "built": self.figures.built(),
                "evicted": self.figures.evicted(),
                "closed": self.figures.closed(),
            },
            "rss_mib": {
                "start": rounded(mib(memory_start)),
                "max": rounded(mib(memory_max)),
                "end": rounded(mib(memory_end)),
            },
            "hit_ratio": self.figures.hit_ratio(),
            "metrics_agree": self.metrics_agree(),
        });
        if self.flooding > 0 {
            report["others"] = self.part(&self.counted.ordinary);
            report["flooding"] = self.part(&self.counted.flooding);
            report["flooding"]["customers"] = self.flooding.into();
        }
        if self.open_loop {
            let Counted { due, late, not_begun, .. } = self.counted;
            report["open_loop"] = json!({ "due": due, "late": late, "not_begun": not_begun });
        }
        if self.with_chaos {
            let acts = Act::ALL.iter().map(|act| (act.as_str().to_owned(), self.acts(*act).into()));
            report["chaos"] = Value::Object(acts.collect());
            report["left_after_close"] = self.figures.left().into();
            report["unexpected"] = json!(self.counted.unexpected);
        }
        format!("{report}\n")
    }

    fn acts(&self, act: Act) -> u64 {
        self.counted.acts.get(&act).copied().unwrap_or_default()
    }

    pub(super) fn table(&self) -> String {
        let Seen { live_max, memory_start, memory_max, memory_end } = self.seen;
        let listed = |pairs: BTreeMap<&str, u64>| match pairs.len() {
            0 => "none".to_owned(),
            _ => pairs.iter().map(|(word, times)| format!("{word} {times}")).collect::<Vec<_>>().join(", "),
        };
        let mut text = String::new();
        let mut line = |label: &str, value: String| {
            let _ = writeln!(text, "{label:<14}{value}");
        };
        line("seed", self.seed.to_string());
        let seconds = self.took.as_secs_f64();
        let mut part = |label: &str, of: &Evaluations| {
            line(label, format!("{} in {seconds:.1} s, {:.0} a second", of.count(), self.per_second(of)));
            line("errors", listed(of.errors()));
            line("latency", QUANTILES.map(|(name, _, at)| format!("{name} {:.2} ms", millis(of, at))).join(", "));
        };
        if self.flooding == 0 {
            part("evaluations", &self.all);
        } else {
            part("of the others", &self.counted.ordinary);
            part("of the flood", &self.counted.flooding);
        }
        if self.open_loop {
            let Counted { due, late, not_begun, .. } = self.counted;
            line("open loop", format!("{due} due, {late} of them late, {not_begun} not begun"));
            line("", "latency counts from when each was due".to_owned());
        }
        line("runtimes", format!("at most {live_max} of {} at once, {} after the close", self.capacity, self.left));
        let (built, evicted, closed) = (self.figures.built(), self.figures.evicted(), self.figures.closed());
        line("", format!("{built} built, {evicted} evicted, {closed} closed"));
        line("hit ratio", self.figures.hit_ratio().map_or("none".to_owned(), |ratio| format!("{ratio:.3}")));
        let [before, most, after] = [memory_start, memory_max, memory_end].map(mib);
        line("memory", format!("{before:.0} MiB before, {most:.0} MiB at most, {after:.0} MiB after"));
        if self.with_chaos {
            line("chaos", listed(Act::ALL.iter().map(|act| (act.as_str(), self.acts(*act))).collect()));
            let left = self.figures.left();
            let what = "of runtimes, instances and callers";
            line("left", if left == 0 { format!("nothing {what}") } else { format!("{left} {what}") });
        }
        line("metrics", if self.metrics_agree() { "agree" } else { "DISAGREE with what was counted" }.to_owned());
        let (whose, of) = match self.flooding {
            0 => ("", &self.all),
            _ => (" of the others", &self.counted.ordinary),
        };
        if !of.latency.is_empty() {
            let _ = write!(text, "\nlatency{whose}\n{}", bars(&of.latency));
        }
        text
    }
}

/// As people write them, as JSON has them, and what they are.
const QUANTILES: [(&str, &str, f64); 5] =
    [("p50", "p50", 0.5), ("p90", "p90", 0.9), ("p99", "p99", 0.99), ("p99.9", "p999", 0.999), ("max", "max", 1.0)];

/// The latency of successful evaluations at a quantile.
fn millis(of: &Evaluations, quantile: f64) -> f64 {
    of.latency.value_at_quantile(quantile) as f64 / 1e6
}

fn latencies(of: &Evaluations) -> Value {
    let all = QUANTILES.map(|(_, name, at)| (name.to_owned(), rounded(millis(of, at) * 1000.0).into()));
    Value::Object(all.into_iter().collect())
}

/// To three decimal places: more would be noise.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
