//! The metrics as numbers, parsed from the text that a server would serve, so that the text itself is checked.

/// The samples of one rendering.
pub(super) struct Figures<'a>(Vec<Sample<'a>>);

struct Sample<'a> {
    name: &'a str,
    /// As written: `a="b",c="d"`. The catalogue's labels are closed sets: no name or value has a space or a quote.
    labels: &'a str,
    value: f64,
}

impl<'a> Figures<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self(text.lines().filter_map(sample).collect())
    }

    /// Sums a metric over its series that have `label`, written `name="value"`; over all of them if `label` is empty.
    pub(super) fn sum(&self, name: &str, label: &str) -> u64 {
        let has = |labels: &str| label.is_empty() || labels.split(',').any(|each| each == label);
        let sum: f64 = self.0.iter().filter(|it| it.name == name && has(it.labels)).map(|it| it.value).sum();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts, far below 2^53")]
        let sum = sum as u64;
        sum
    }

    pub(super) fn evaluations(&self, outcome: &str) -> u64 {
        self.sum("evalpool_evaluations_total", &format!("outcome={outcome:?}"))
    }

    pub(super) fn built(&self) -> u64 {
        self.sum("evalpool_builds_total", r#"outcome="ok""#)
    }

    pub(super) fn evicted(&self) -> u64 {
        self.sum("evalpool_evictions_total", "")
    }

    /// Without runtimes that the guard closed: their builds failed.
    pub(super) fn closed(&self) -> u64 {
        let name = "evalpool_closes_total";
        self.sum(name, "").saturating_sub(self.sum(name, r#"reason="invalid""#))
    }

    /// The share of evaluations that needed no build of their own: they found a runtime, or joined the build that another
    /// began. `None` before there was any.
    pub(super) fn hit_ratio(&self) -> Option<f64> {
        let all = self.sum("evalpool_evaluations_total", "");
        let built = self.sum("evalpool_lookups_total", r#"result="miss""#);
        (all > 0).then(|| all.saturating_sub(built) as f64 / all as f64)
    }

    /// Runtimes, instances and callers that the gauges show; 0 once everything is closed.
    pub(super) fn left(&self) -> u64 {
        ["evalpool_runtimes_live", "evalpool_instances_live", "evalpool_waiting"]
            .iter()
            .map(|name| self.sum(name, ""))
            .sum()
    }
}

fn sample(line: &str) -> Option<Sample<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    Some(Sample { name, labels: labels.trim_end_matches('}'), value: value.parse().ok()? })
}
