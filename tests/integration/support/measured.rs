//! A pool whose metrics are its own, read as they are rendered.

use std::ops::Deref;

use evalpool::{EvaluatorPool, PoolBuilder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::spy::Spy;

pub(crate) struct Measured {
    pool: EvaluatorPool,
    pub(crate) metrics: PrometheusHandle,
}

impl Deref for Measured {
    type Target = EvaluatorPool;

    fn deref(&self) -> &EvaluatorPool {
        &self.pool
    }
}

impl Measured {
    pub(crate) fn new(spy: &Spy, set: impl FnOnce(PoolBuilder) -> PoolBuilder) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        let pool = metrics::with_local_recorder(&recorder, || spy.pool(set));
        Self { pool, metrics }
    }

    /// What the series of a family add up to whose labels have this text in them.
    pub(crate) fn sum(&self, name: &str, labels: &str) -> usize {
        let rendered = self.metrics.render();
        let series = rendered.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(labels));
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
    }
}
