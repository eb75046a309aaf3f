//! A handle on one of an evaluator's entry points.

use std::sync::Arc;

use super::{Call, Evaluator};
use crate::{data::Data, error::Error, response::Response};

/// One entry point of an evaluator's plugin: calls through it run that export. Cheap to clone.
///
/// All entry points of a plugin share its runtime. With [`Isolation::Reuse`](crate::Isolation::Reuse) they share the state
/// of its instances too; with [`Isolation::Fresh`](crate::Isolation::Fresh) no call sees what another has left.
#[derive(Debug, Clone)]
pub struct EntryPoint {
    evaluator: Evaluator,
    name: Arc<str>,
}

impl EntryPoint {
    pub(super) fn new(evaluator: Evaluator, name: Arc<str>) -> Self {
        Self { evaluator, name }
    }

    /// The name of the export.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The evaluator whose entry point it is.
    #[must_use]
    pub fn evaluator(&self) -> &Evaluator {
        &self.evaluator
    }

    /// Runs the plugin once, by this entry point: see [`Evaluator::evaluate`], also for what dropping the future does.
    ///
    /// # Errors
    ///
    /// As there, and [`EntryPointMissing`](Error::EntryPointMissing), with the names that exist, if the plugin has none of
    /// this name.
    pub async fn evaluate(&self, data: impl Into<Data>) -> Result<Response, Error> {
        self.evaluator.evaluate_from(&data.into(), Call::by(Some(&self.name))).await
    }

    /// The same with a context for host functions: see [`Evaluator::evaluate_with`].
    ///
    /// # Errors
    ///
    /// As [`evaluate`](Self::evaluate).
    pub async fn evaluate_with<C>(&self, data: impl Into<Data>, context: C) -> Result<Response, Error>
    where
        C: Send + Sync + 'static,
    {
        self.evaluator.evaluate_from(&data.into(), Call::by(Some(&self.name)).with(context)).await
    }

    /// The same for callers without tokio: see [`Evaluator::evaluate_blocking`].
    ///
    /// # Errors
    ///
    /// As [`evaluate`](Self::evaluate).
    pub fn evaluate_blocking(&self, data: impl Into<Data>) -> Result<Response, Error> {
        self.evaluator.block_on(data.into(), Some(self.name.clone()))
    }
}
