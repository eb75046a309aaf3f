//! Queries as the dashboards write them. Whoever names a metric that does not exist, finds out here.

use std::{collections::BTreeSet, sync::LazyLock};

use super::super::exposed;

/// All names of series that there can be.
static NAMES: LazyLock<BTreeSet<String>> = LazyLock::new(|| exposed().into_iter().map(|series| series.name).collect());

/// The series of the chosen jobs and instances that match: `of("evalpool_waiting", r#"for="build""#)`.
pub(super) fn of(name: &str, matchers: &str) -> String {
    assert!(NAMES.contains(name), "no metric is named {name}");
    let comma = if matchers.is_empty() { "" } else { ", " };
    format!("{name}{{job=~\"$job\", instance=~\"$instance\"{comma}{matchers}}}")
}

/// How fast a counter grows, a second.
pub(super) fn rate(name: &str, matchers: &str) -> String {
    format!("rate({}[$__rate_interval])", of(name, matchers))
}

/// The same over all the time that the dashboard shows.
pub(super) fn rate_of_range(name: &str, matchers: &str) -> String {
    format!("rate({}[$__range])", of(name, matchers))
}

pub(super) fn increase(name: &str, matchers: &str) -> String {
    format!("increase({}[$__rate_interval])", of(name, matchers))
}

pub(super) fn sum(of: &str) -> String {
    format!("sum({of})")
}

pub(super) fn sum_by(labels: &str, of: &str) -> String {
    format!("sum by ({labels}) ({of})")
}

/// Nothing where there is nothing to divide by, rather than a gap in the line.
pub(super) fn ratio(part: &str, whole: &str) -> String {
    format!("{part} / clamp_min({whole}, 1e-9)")
}

/// What a part of all stay below, by `labels` if any.
pub(super) fn quantile(part: f64, labels: &str, histogram: &str, matchers: &str) -> String {
    let labels = if labels.is_empty() { "le".to_owned() } else { format!("{labels}, le") };
    let buckets = rate(&format!("{histogram}_bucket"), matchers);
    format!("histogram_quantile({part}, {})", sum_by(&labels, &buckets))
}

pub(super) fn mean(histogram: &str, matchers: &str) -> String {
    let [sums, counts] = ["sum", "count"].map(|what| sum(&rate(&format!("{histogram}_{what}"), matchers)));
    ratio(&sums, &counts)
}
