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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{Isolation, Spec};

    /// It logs when it starts, and when it is run.
    const SAYS: &str = r#"(module
        (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
        (import "extism:host/env" "log_error" (func $error (param i64)))
        (func $say (call $error (call $alloc (i64.const 1))))
        (start $say)
        (func (export "run") (call $say)))"#;

    #[tokio::test]
    async fn lines_are_those_of_who_is_published_whatever_it_was_prepared_as() {
        let pool = EvaluatorPool::builder().build().unwrap();
        let lines: Arc<Mutex<Vec<EvaluatorId>>> = Arc::default();
        let kept = lines.clone();
        pool.keep_logs(move |evaluator, tenant, _, _| {
            assert_eq!(tenant, "a");
            kept.lock().unwrap().push(evaluator);
        });
        let taken = || std::mem::take(&mut *lines.lock().unwrap());
        let spec = || Spec::bytes(wat::parse_str(SAYS).unwrap()).debug(true).isolation(Isolation::Reuse);
        // Nobody has the name, so that each is prepared under a number of its own.
        let first = pool.prepare("a/says", spec()).await.unwrap();
        let second = pool.prepare("a/says", spec()).await.unwrap();
        assert_eq!(taken(), [], "nobody has published them");
        let (evaluator, _) = first.publish();
        assert!(second.publish().1);
        evaluator.evaluate("").await.unwrap();
        assert_eq!(taken(), [evaluator.id()]);
        drop(pool.prepare("a/says", spec()).await.unwrap());
        assert_eq!(taken(), [], "it was refused after it was built");
        evaluator.unload().await;
        evaluator.evaluate("").await.unwrap();
        let again = taken();
        assert!(!again.is_empty() && again.iter().all(|owner| *owner == evaluator.id()), "{again:?}");
        let (replaced, _) = pool.prepare("a/says", spec()).await.unwrap().publish();
        replaced.evaluate("").await.unwrap();
        assert_eq!(taken(), [evaluator.id()]);
        pool.close().await;
    }
}
