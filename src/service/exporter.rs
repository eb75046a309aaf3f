//! The Prometheus recorder of the program, and how often it needs upkeep.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::Exit;
use crate::metrics::{AGE_BUCKETS, BUCKETS, CATALOGUE, MetricType};

/// How often to call [`PrometheusHandle::run_upkeep`]: samples of histograms pile up in between.
pub(super) const UPKEEP: Duration = Duration::from_secs(5);

/// Installs a Prometheus recorder for the process. Opens no port.
///
/// # Errors
///
/// A recorder is installed already.
pub fn install() -> Result<PrometheusHandle, Exit> {
    // Without buckets the exporter makes summaries of histograms, and those cannot be added up over servers.
    CATALOGUE
        .iter()
        .filter(|metric| metric.kind == MetricType::Histogram)
        .try_fold(PrometheusBuilder::new(), |builder, metric| {
            let buckets = if metric.name == "evalpool_eviction_age_seconds" { AGE_BUCKETS } else { BUCKETS };
            builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
        })
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| Exit::failed(format!("the metrics cannot be recorded: {error}")))
}
