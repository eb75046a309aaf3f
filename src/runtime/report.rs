//! What guests leave behind goes to the operator's log, under the evaluator's name.

use std::{collections::BTreeMap, sync::Arc};

use tracing::Level;

use crate::{error::Error, last_words::LastWords};

/// The target of what guests leave behind. Below that of what they log, so that one filter is for both.
macro_rules! target {
    () => {
        "evalpool::plugin::last_words"
    };
}

/// Whose guests they are, and who else may see what they leave behind.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) evaluator: Arc<str>,
    /// What its owner wants to find its log lines by.
    pub(crate) labels: Arc<BTreeMap<String, String>>,
    /// The evaluator's clients.
    pub(crate) to_clients: bool,
}

impl Report {
    /// Logs what a guest left behind that failed, and says in the error who may see it.
    pub(crate) fn failure(&self, error: Error) -> Error {
        if let Some(words) = error.last_words()
            && tracing::enabled!(target: target!(), Level::WARN)
        {
            let [stack, stderr, stdout] = fields(words);
            let (evaluator, kind) = (&*self.evaluator, error.kind().as_str());
            let labels = self.labels();
            tracing::warn!(target: target!(), evaluator, labels, kind, stack, stderr, stdout, "{error}");
        }
        error.change_last_words(|words| words.show_to_clients(self.to_clients))
    }

    /// Logs what a guest wrote that did not fail.
    pub(crate) fn written(&self, words: &LastWords) {
        if !words.is_empty() && tracing::enabled!(target: target!(), Level::DEBUG) {
            let [_, stderr, stdout] = fields(words);
            let (evaluator, labels) = (&*self.evaluator, self.labels());
            tracing::debug!(target: target!(), evaluator, labels, stderr, stdout, "the plugin has written");
        }
    }

    /// As `key=value` and a space between two; none if there are none.
    fn labels(&self) -> Option<String> {
        let pairs: Vec<_> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        (!pairs.is_empty()).then(|| pairs.join(" "))
    }
}

/// The stack, standard error and standard output; `None` for one that is empty, which is then not shown.
fn fields(words: &LastWords) -> [Option<String>; 3] {
    [words.stack().join(" < "), words.stderr().to_owned(), words.stdout().to_owned()]
        .map(|text| (!text.is_empty()).then_some(text))
}
