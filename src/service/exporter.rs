//! The Prometheus recorder of the program, and how often it needs upkeep.
//!
//! metrics-exporter-prometheus 0.18 has no exemplars, and leaves its native histograms out of the text format; so the way from a
//! slow evaluation to its trace is the page's, and the log's.

use std::{sync::Arc, time::Duration};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::{Exit, histograms::Histograms};
use crate::metrics::{CATALOGUE, Metric, MetricType};

/// How often to call [`Exporter::run_upkeep`]: samples of histograms that are not in the catalogue pile up in between.
pub(super) const UPKEEP: Duration = Duration::from_secs(5);

/// How long evaluations took.
const EVALUATION_SECONDS: &str = "evalpool_evaluation_seconds";

/// Shows what was recorded.
#[derive(Clone)]
pub struct Exporter {
    prometheus: PrometheusHandle,
    histograms: Arc<Histograms>,
}

/// The exporter's recorder, but for the catalogue's histograms.
pub struct Recorder {
    prometheus: PrometheusRecorder,
    histograms: Arc<Histograms>,
}

/// A recorder, and what shows it.
#[must_use]
pub fn recorder() -> (Recorder, Exporter) {
    let (prometheus, histograms) = (PrometheusBuilder::new().build_recorder(), Arc::<Histograms>::default());
    let exporter = Exporter { prometheus: prometheus.handle(), histograms: histograms.clone() };
    (Recorder { prometheus, histograms }, exporter)
}

/// Installs a recorder for the process. Opens no port.
///
/// # Errors
///
/// A recorder is installed already.
pub fn install() -> Result<Exporter, Exit> {
    let (recorder, exporter) = recorder();
    let installed = metrics::set_global_recorder(recorder);
    installed.map_err(|error| Exit::failed(format!("the metrics cannot be recorded: {error}")))?;
    Ok(exporter)
}

impl Exporter {
    /// All metrics, in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.prometheus.render() + &self.histograms.render()
    }

    /// How many evaluations there were so far by how long they waited, and by how long their guests ran: one count for each
    /// of [`BUCKETS`](crate::metrics::BUCKETS), and one for those above.
    pub(super) fn evaluation_times(&self) -> [Vec<u64>; 2] {
        ["phase=\"wait\"", "phase=\"exec\""].map(|labels| self.histograms.counts(EVALUATION_SECONDS, labels))
    }

    /// Makes room for more samples.
    pub fn run_upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.prometheus.describe_counter(name, unit, help);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.prometheus.describe_gauge(name, unit, help);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.prometheus.describe_histogram(name, unit, help);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.prometheus.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.prometheus.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        let ours = |metric: &&Metric| metric.kind == MetricType::Histogram && metric.name == key.name();
        match CATALOGUE.iter().find(ours) {
            Some(metric) => self.histograms.of(metric, key).into(),
            None => self.prometheus.register_histogram(key, metadata),
        }
    }
}
