//! What the page keeps of a call: how long it took and its trace, why it failed, and what its plugin wrote.

use std::{sync::Arc, time::Instant};

use super::App;
use crate::{
    Error, ErrorKind, EvaluatorId, LastWords, Response, Timings, TraceParent,
    service::{
        telemetry::requests,
        ui::{Slow, Ui},
    },
};

/// A call that is noted when this is dropped, however it ends: its client may leave, which drops the handler.
pub(super) struct Noted {
    app: Arc<App>,
    ui: Arc<Ui>,
    evaluator: EvaluatorId,
    name: String,
    /// What its client says.
    parent: Option<TraceParent>,
    began: Instant,
    outcome: &'static str,
    timings: Option<Timings>,
}

impl Noted {
    /// `None` if there is no page.
    pub(super) fn begin(
        app: &Arc<App>,
        (evaluator, name): (EvaluatorId, String),
        parent: Option<TraceParent>,
    ) -> Option<Self> {
        let (app, ui, outcome) = (app.clone(), app.ui.clone()?, ErrorKind::Cancelled.as_str());
        Some(Self { app, ui, evaluator, name, parent, began: Instant::now(), outcome, timings: None })
    }

    /// The call has ended, and its client is there.
    pub(super) fn end(mut self, evaluated: Result<&Response, &Error>, timings: Timings) {
        self.timings = Some(timings);
        self.outcome = evaluated.map_or_else(|error| error.kind().as_str(), |_| "ok");
        match evaluated.map(|response| response.written().and_then(LastWords::for_clients)) {
            Ok(None) => {}
            Ok(Some(words)) => {
                if let Some((tenant, true)) = self.owner() {
                    self.ui.lines.written(self.evaluator, &tenant, words);
                }
            }
            Err(error) => {
                if let Some((tenant, _)) = self.owner() {
                    let trace = requests::trace(self.parent.as_ref());
                    self.ui.failures.note(self.evaluator, &tenant, error, trace);
                }
            }
        }
    }

    /// Whose the evaluator is, and whether its debug is on, which may have been changed meanwhile. If it was removed, so is
    /// what it left.
    fn owner(&self) -> Option<(Arc<str>, bool)> {
        let evaluator = self.app.pool.get(&self.name).filter(|evaluator| evaluator.id() == self.evaluator)?;
        Some((evaluator.tenant(), evaluator.is_debugged()))
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let (ui, took) = (&self.ui, self.began.elapsed());
        ui.latencies.note(self.evaluator, took);
        if ui.slowest.wants(self.evaluator, took)
            && let Some((tenant, _)) = self.owner()
        {
            let trace = requests::trace(self.parent.as_ref());
            ui.slowest.note(self.evaluator, &tenant, Slow::new(took, self.timings, self.outcome, trace));
        }
    }
}
