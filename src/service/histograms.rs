//! Histograms of the program's recorder: a count for each bucket. The exporter's own keep each time apart, in 16 bytes,
//! until they are shown or kept up, and many equal ones cost as much as many different ones.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use metrics::{HistogramFn, Key};

use crate::metrics::{AGE_BUCKETS, BUCKETS, Metric};

/// Those of the catalogue that are in use.
#[derive(Default)]
pub(super) struct Histograms(Mutex<BTreeMap<&'static str, Family>>);

struct Family {
    help: &'static str,
    /// By their labels as they are shown. The values are words of the catalogue, which need no quoting.
    series: BTreeMap<String, Arc<Buckets>>,
}

pub(super) struct Buckets {
    bounds: &'static [f64],
    /// Of times up to each bound and above the one before. The last is for those above every bound.
    counts: Box<[AtomicU64]>,
    /// In seconds: the bits of an `f64`.
    sum: AtomicU64,
}

impl Histograms {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        // Nothing panics under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The series of this key, which is of this metric.
    pub(super) fn of(&self, metric: &Metric, key: &Key) -> Arc<Buckets> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}=\"{}\"", label.key(), label.value())).collect();
        let bounds = if metric.name == "evalpool_eviction_age_seconds" { AGE_BUCKETS } else { BUCKETS };
        let mut families = self.lock();
        let family =
            families.entry(metric.name).or_insert_with(|| Family { help: metric.help, series: BTreeMap::new() });
        family.series.entry(labels.join(",")).or_insert_with(|| Arc::new(Buckets::new(bounds))).clone()
    }

    /// What a series has counted in each of its buckets. Empty if there is no such series.
    pub(super) fn counts(&self, metric: &str, labels: &str) -> Vec<u64> {
        let families = self.lock();
        let buckets = families.get(metric).and_then(|family| family.series.get(labels));
        buckets.map_or_else(Vec::new, |it| it.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }

    /// In Prometheus's text format.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        for (name, Family { help, series }) in &*self.lock() {
            // Writing to a string does not fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
            for (labels, buckets) in series {
                let _ = buckets.render(&mut text, name, labels);
            }
            text.push('\n');
        }
        text
    }
}

impl Buckets {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0_f64.to_bits()) }
    }

    fn render(&self, text: &mut String, name: &str, labels: &str) -> std::fmt::Result {
        let (comma, of) = if labels.is_empty() { ("", String::new()) } else { (",", format!("{{{labels}}}")) };
        let bounds = self.bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        let mut count = 0;
        for (bound, more) in bounds.zip(&self.counts) {
            count += more.load(Ordering::Relaxed);
            writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}")?;
        }
        writeln!(text, "{name}_sum{of} {}", f64::from_bits(self.sum.load(Ordering::Relaxed)))?;
        writeln!(text, "{name}_count{of} {count}")
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(counted) = self.counts.get(bucket) {
            counted.fetch_add(count as u64, Ordering::Relaxed);
        }
        let plus = |bits| Some((f64::from_bits(bits) + value * count as f64).to_bits());
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, plus);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use metrics::Label;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::metrics::CATALOGUE;

    #[test]
    fn they_show_what_the_exporter_would() {
        let recorder = PrometheusBuilder::new().set_buckets(BUCKETS).unwrap().build_recorder();
        let histograms = Histograms::default();
        let series = [("evalpool_evaluation_seconds", Some(("phase", "exec"))), ("evalpool_close_seconds", None)];
        metrics::with_local_recorder(&recorder, || {
            for (name, label) in series {
                let labels: Vec<_> = label.into_iter().map(|(key, value)| Label::new(key, value)).collect();
                let metric = CATALOGUE.iter().find(|metric| metric.name == name).unwrap();
                metrics::describe_histogram!(name, metric.help);
                let theirs = metrics::histogram!(name, labels.clone());
                let ours = histograms.of(metric, &Key::from_parts(name, labels));
                for micros in [0, 1, 10, 11, 2_500, 9_999_999, 10_000_000, 86_400_000] {
                    let time = Duration::from_micros(micros);
                    theirs.record_many(time, 3);
                    ours.record_many(time.as_secs_f64(), 2);
                    ours.record(time.as_secs_f64());
                }
            }
        });
        let [theirs, ours] = [recorder.handle().render(), histograms.render()];
        let lines = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
        assert_eq!(lines(&theirs), lines(&ours));
    }
}
