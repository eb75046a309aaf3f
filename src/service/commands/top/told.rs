//! What the server tells, as far as it is shown. Fields that another version lacks are empty, figures are floats, so that
//! none is too large to add, and a text is written harmlessly however it is written.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;
use serde_json::Value;

use crate::service::log::write_harmless;

/// Bytes that are kept of one text.
const TEXT: usize = 8 * 1024;

/// Entries that are kept of one list.
const ENTRIES: usize = 64;

/// Lines that are kept of one evaluator's log: as many as the server has.
const LINES: usize = 200;

/// Bytes that a word of the metrics' labels has at most, and a text of a change.
const WORD: usize = 64;
const CHANGED: usize = 512;

/// A text from the server. Names, errors and outputs in it come from others.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(from = "String")]
pub(super) struct Text(String);

impl Text {
    /// As it came, for a request.
    pub(super) fn as_sent(&self) -> &str {
        &self.0
    }

    fn cut(&mut self, bytes: usize) {
        self.0.truncate(self.0.floor_char_boundary(bytes));
        self.0.shrink_to_fit();
    }

    /// Its lines, each of them harmless.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.0.lines().map(|line| Text(line.to_owned()).to_string())
    }
}

impl From<String> for Text {
    fn from(mut text: String) -> Self {
        text.truncate(text.floor_char_boundary(TEXT));
        Self(text)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| write_harmless(f, character))
    }
}

/// What was counted, by the words of the metrics' labels.
pub(super) type Counts = BTreeMap<Text, f64>;

pub(super) fn sum(counts: &Counts) -> f64 {
    counts.values().sum()
}

/// What was counted by this word.
pub(super) fn of(counts: &Counts, word: &str) -> f64 {
    counts.get(&Text(word.to_owned())).copied().unwrap_or_default()
}

/// One second.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Sample {
    pub(super) number: u64,
    /// By the server's clock, in milliseconds since the Unix epoch.
    pub(super) at: u64,
    pub(super) capacity: f64,
    /// Building, idle, busy, draining.
    pub(super) runtimes: [f64; 4],
    pub(super) memory_limit: f64,
    /// Code, instances, kept code.
    pub(super) memory: [f64; 3],
    /// For a place, for an instance, for a build.
    pub(super) waiting: [f64; 3],
    pub(super) oldest_wait: f64,
    pub(super) evaluations: Counts,
    pub(super) builds: Counts,
    pub(super) evictions: Counts,
    /// Half of the evaluations, and 99 of 100, waited no longer; in seconds.
    pub(super) wait: Option<[f64; 2]>,
    /// The same of how long guests ran.
    pub(super) exec: Option<[f64; 2]>,
    pub(super) changes: Vec<Change>,
}

impl Sample {
    pub(super) fn bounded(mut self) -> Self {
        self.changes.truncate(ENTRIES);
        for change in &mut self.changes {
            change.name.cut(CHANGED);
            change.what.cut(CHANGED);
        }
        for counts in [&mut self.evaluations, &mut self.builds, &mut self.evictions] {
            counts.retain(|word, _| word.0.len() <= WORD);
            while counts.len() > ENTRIES {
                counts.pop_last();
            }
        }
        self
    }
}

/// Something that was done to an evaluator.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Change {
    pub(super) at: u64,
    pub(super) name: Text,
    pub(super) what: Text,
}

/// A page of evaluators.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Found {
    pub(super) rows: Vec<Row>,
    /// How many there are on all pages.
    pub(super) found: usize,
}

/// An evaluator in the table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Row {
    pub(super) name: Text,
    pub(super) tenant: Text,
    pub(super) state: Text,
    pub(super) evaluations: f64,
    pub(super) errors: f64,
    pub(super) mean_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
    pub(super) guest_seconds: f64,
    pub(super) memory_bytes: f64,
    pub(super) last_used: Option<u64>,
}

/// All that is told of one evaluator.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Evaluator {
    pub(super) name: Text,
    pub(super) tenant: Text,
    pub(super) state: Text,
    pub(super) revision: u64,
    pub(super) entry_point: Option<Text>,
    pub(super) size_bytes: Option<f64>,
    pub(super) digest: Option<Text>,
    pub(super) instances: f64,
    pub(super) evaluations: f64,
    pub(super) last_used: Option<u64>,
    pub(super) debug: bool,
    pub(super) usage: Usage,
    pub(super) spec: Value,
    pub(super) runtime: Option<Runtime>,
    /// Of its calls of late, half took no longer, and 99 of 100.
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
    pub(super) failures: Vec<Failure>,
    /// The last lines of its log; `None` if none are kept.
    pub(super) log: Option<Vec<Logged>>,
}

impl Evaluator {
    pub(super) fn bounded(mut self) -> Self {
        self.failures.truncate(ENTRIES);
        self.failures.iter_mut().for_each(|failure| failure.stack.truncate(ENTRIES));
        if let Some(log) = &mut self.log {
            log.truncate(LINES);
        }
        self
    }
}

/// A line of its log.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Logged {
    pub(super) at: u64,
    pub(super) level: Text,
    pub(super) text: Text,
}

/// What its evaluations have used.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Usage {
    pub(super) evaluations: f64,
    pub(super) outcomes: Counts,
    pub(super) seconds: f64,
    pub(super) guest_seconds: f64,
}

/// Its live runtime.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Runtime {
    pub(super) busy: f64,
    pub(super) memory_bytes: f64,
    pub(super) age_seconds: Option<f64>,
}

/// Why evaluations failed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    /// When the first failed, and when the last one did.
    pub(super) at: u64,
    pub(super) last: u64,
    pub(super) times: f64,
    pub(super) kind: Text,
    pub(super) detail: Text,
    pub(super) stack: Vec<Text>,
    pub(super) stderr: Text,
    pub(super) stdout: Text,
    /// It left words that are shown only with `debug`.
    pub(super) hides: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_harmless_however_it_is_written_and_is_sent_as_it_came() {
        let name: Text = serde_json::from_str("\"a\\u001b[2Jb\\u009b\\u202ec\\nd\"").unwrap();
        assert_eq!(name.to_string(), r"a\u{1b}[2Jb\u{9b}\u{202e}c\nd");
        assert_eq!(name.lines().collect::<Vec<_>>(), [r"a\u{1b}[2Jb\u{9b}\u{202e}c", "d"]);
        assert_eq!(name.as_sent(), "a\u{1b}[2Jb\u{9b}\u{202e}c\nd");
        assert_eq!(Text::from("é".repeat(TEXT)).as_sent().len(), TEXT);
    }

    #[test]
    fn what_is_told_may_lack_fields_and_have_others() {
        let row: Row = serde_json::from_str(r#"{"name":"a","mean_seconds":null,"colour":"red"}"#).unwrap();
        assert!(row.name.as_sent() == "a" && row.mean_seconds.is_none() && row.state == Text::default());
        let many = (0..1000).map(|at| format!("\"{at}\":1.7e308")).collect::<Vec<_>>().join(",");
        let sample: Sample = serde_json::from_str(&format!("{{\"evaluations\":{{{many}}}}}")).unwrap();
        assert_eq!(sample.bounded().evaluations.len(), ENTRIES);
        let long = format!("{{\"builds\":{{\"{}\":1,\"ok\":2}}}}", "x".repeat(1000));
        let sample: Sample = serde_json::from_str(&long).unwrap();
        assert_eq!(sample.bounded().builds.into_values().collect::<Vec<_>>(), [2.0]);
        let lines = vec!["{}"; 5000].join(",");
        let evaluator: Evaluator = serde_json::from_str(&format!("{{\"log\":[{lines}]}}")).unwrap();
        assert_eq!(evaluator.bounded().log.map(|log| log.len()), Some(LINES));
    }
}
