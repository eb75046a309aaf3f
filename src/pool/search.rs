//! What the server's page asks for: registered evaluators by name, and what their plugins log.

use std::ops::Bound;

use tracing::Level;

use super::EvaluatorPool;
use crate::{evaluator::Evaluator, response::EvaluatorId};

/// How many names are looked at before others may have the lock: calls by name wait for it.
const AT_ONCE: usize = 1000;

impl EvaluatorPool {
    /// Gives what plugins with [`debug`](crate::Spec::debug) log from their next build on to this as well: whose line it is, of
    /// which tenant, how urgent, and its text.
    pub(crate) fn keep_logs(&self, keep: impl Fn(EvaluatorId, &str, Level, &str) + Send + Sync + 'static) {
        self.inner.keep_logs(keep);
    }

    /// The evaluators whose name `is_wanted`, in the order of names. What is registered or removed meanwhile may be missing.
    pub(crate) fn find(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Evaluator> {
        let (mut found, mut after) = (Vec::new(), None::<String>);
        loop {
            let names = self.names();
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut last = None;
            for (name, evaluator) in names.range::<str, _>((from, Bound::Unbounded)).take(AT_ONCE) {
                if is_wanted(name) {
                    found.push(evaluator.clone());
                }
                last = Some(name);
            }
            let Some(last) = last.cloned() else { return found };
            after = Some(last);
        }
    }
}
