//! What a guest left behind: what it wrote to its standard streams, and where it was when it trapped. Plain data.

use std::{fmt, sync::Arc};

/// What a plugin wrote to its standard output and error in one evaluation, and where it was when it failed.
///
/// All of it is the plugin's own text, bounded by the engine, and of that evaluation alone: no evaluation sees another's,
/// even on the same instance. The `direct` engine keeps the first 4 KiB and the last 12 KiB of each stream and the 32
/// innermost functions; `extism` keeps nothing.
///
/// Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastWords {
    /// `None` when there is nothing, which costs nothing.
    words: Option<Arc<Words>>,
    /// Whether the evaluator's owner wants its clients to see them.
    for_clients: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Words {
    stack: Vec<String>,
    stderr: String,
    stdout: String,
}

impl LastWords {
    /// For an engine: the functions that were active, the innermost first, and what was written.
    #[must_use]
    pub fn new(stack: Vec<String>, stderr: String, stdout: String) -> Self {
        let is_empty = stack.is_empty() && stderr.is_empty() && stdout.is_empty();
        Self { words: (!is_empty).then(|| Arc::new(Words { stack, stderr, stdout })), for_clients: false }
    }

    /// Nothing was left.
    pub(crate) const fn none() -> Self {
        Self { words: None, for_clients: false }
    }

    /// Whether nothing was left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_none()
    }

    /// The functions that were active when the guest failed, the innermost first: each its offset in the plugin's
    /// binary and its demangled name. A plugin that was stripped has numbers instead of names. Empty if it did not fail by
    /// a trap.
    #[must_use]
    pub fn stack(&self) -> &[String] {
        self.words.as_ref().map_or(&[], |words| &words.stack)
    }

    /// What it wrote to WASI's standard error. Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn stderr(&self) -> &str {
        self.words.as_ref().map_or("", |words| &words.stderr)
    }

    /// What it wrote to WASI's standard output. Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn stdout(&self) -> &str {
        self.words.as_ref().map_or("", |words| &words.stdout)
    }

    /// Says whether the evaluator's clients may see them.
    pub(crate) fn show_to_clients(&mut self, show: bool) {
        self.for_clients = show;
    }

    /// Themselves, if the evaluator's clients may see them: see [`Spec::debug`](crate::Spec::debug). The server of
    /// this crate answers with no others.
    #[must_use]
    pub fn for_clients(&self) -> Option<&Self> {
        (self.for_clients && !self.is_empty()).then_some(self)
    }
}

/// Several lines: what there is, each part under its name.
impl fmt::Display for LastWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = [("stderr", self.stderr()), ("stdout", self.stdout())];
        let streams = streams.iter().map(|(name, text)| (*name, text.lines().collect::<Vec<_>>()));
        let stack = ("stack", self.stack().iter().map(String::as_str).collect());
        for (name, lines) in std::iter::once(stack).chain(streams).filter(|(_, lines)| !lines.is_empty()) {
            writeln!(f, "{name}:")?;
            lines.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        Ok(())
    }
}
