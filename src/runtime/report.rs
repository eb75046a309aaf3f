//! What guests leave behind goes to the operator's log, under the evaluator's name. A plugin that fails at each call must not
//! fill the log: a failure is a warning now and then, and between them a line at the level `debug`.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tracing::Level;

use super::Identity;
use crate::{error::Error, last_words::LastWords};

/// The target of what guests leave behind. Below that of what they log, so that one filter is for both.
macro_rules! target {
    () => {
        "evalpool::plugin::last_words"
    };
}

/// Milliseconds between two warnings about one evaluator, and between two about any.
const PAUSE_OF_ONE: u64 = 10_000;
const PAUSE_OF_ALL: u64 = 1_000;

/// Whose guests they are, and who else may see what they leave behind.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) of: Arc<Identity>,
    /// What its owner wants to find its log lines by.
    pub(crate) labels: Option<Arc<str>>,
    /// The evaluator's clients.
    pub(crate) to_clients: bool,
    /// When a failure was last a warning; 0 for never.
    warned: Arc<AtomicU64>,
    /// When it was said why initialisers run in each instance; 0 for never.
    refused: Arc<AtomicU64>,
}

impl Report {
    pub(crate) fn new(of: Arc<Identity>, labels: Option<Arc<str>>, to_clients: bool) -> Self {
        Self { of, labels, to_clients, warned: Arc::default(), refused: Arc::default() }
    }

    /// Logs what a guest left behind that failed, and says in the error who may see it.
    pub(crate) fn failure(&self, error: Error) -> Error {
        if let Some(words) = error.last_words()
            && tracing::enabled!(target: target!(), Level::WARN)
        {
            macro_rules! line {
                ($level:ident) => {{
                    let [stack, stderr, stdout] = fields(words);
                    let (evaluator, kind, labels) = (&*self.of.evaluator, error.kind().as_str(), self.labels.as_deref());
                    tracing::$level!(target: target!(), evaluator, labels, kind, stack, stderr, stdout, "{error}");
                }};
            }
            static ALL: AtomicU64 = AtomicU64::new(0);
            if may_say(&self.warned, PAUSE_OF_ONE, &ALL) {
                line!(warn);
            } else if tracing::enabled!(target: target!(), Level::DEBUG) {
                line!(debug);
            }
        }
        error.change_last_words(|words| words.show_to_clients(self.to_clients))
    }

    /// Logs what a guest wrote that did not fail.
    pub(crate) fn written(&self, words: &LastWords) {
        if !words.is_empty() && tracing::enabled!(target: target!(), Level::DEBUG) {
            let [_, stderr, stdout] = fields(words);
            let (evaluator, labels) = (&*self.of.evaluator, self.labels.as_deref());
            tracing::debug!(target: target!(), evaluator, labels, stderr, stdout, "the plugin has written");
        }
    }

    /// Logs why initialisers run in each instance although they were to run once: once for each revision, unless it is `plain`
    /// and nobody need know.
    pub(crate) fn refused(&self, why: &str, is_plain: bool) {
        static ALL: AtomicU64 = AtomicU64::new(0);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    evaluator = &*self.of.evaluator,
                    labels = self.labels.as_deref(),
                    "initialisers run in each instance, not once: {why}"
                )
            };
        }
        if !is_plain && may_say(&self.refused, u64::MAX, &ALL) {
            line!(info);
        } else {
            line!(debug);
        }
    }
}

/// Whether enough time has passed since it was said of this evaluator, and of any.
fn may_say(own: &AtomicU64, pause: u64, all: &AtomicU64) -> bool {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    // Never 0.
    let now = u64::try_from(BEGAN.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
    let is_over = |pause| move |last: u64| (last == 0 || now.saturating_sub(last) >= pause).then_some(now);
    let relaxed = Ordering::Relaxed;
    is_over(pause)(own.load(relaxed)).is_some()
        && all.fetch_update(relaxed, relaxed, is_over(PAUSE_OF_ALL)).is_ok()
        && own.fetch_update(relaxed, relaxed, is_over(pause)).is_ok()
}

/// The stack, standard error and standard output; `None` for one that is empty, which is then not shown.
fn fields(words: &LastWords) -> [Option<String>; 3] {
    [words.stack().join(" < "), words.stderr().to_owned(), words.stdout().to_owned()]
        .map(|text| (!text.is_empty()).then_some(text))
}

#[cfg(all(test, feature = "service"))]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Mutex, MutexGuard},
    };

    use tracing_subscriber::{filter::LevelFilter, fmt, layer::SubscriberExt};

    use super::{super::identity::Directory, *};
    use crate::{registry::RevisionId, turns::TenantId};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().unwrap()
        }
    }

    fn logged(log: impl FnOnce(&Report)) -> Vec<String> {
        let written = Written::default();
        let writer = written.clone();
        let layer = fmt::layer().with_writer(move || writer.clone()).with_ansi(false).without_time().with_target(false);
        let revision = RevisionId { evaluator: 1, number: 1, tenant: TenantId(1) };
        let identity = Arc::<Directory>::default().list(revision, "one".into(), "tenant");
        let report = Report::new(identity, Some("team=a".into()), true);
        let subscriber = tracing_subscriber::registry().with(LevelFilter::DEBUG).with(layer);
        tracing::subscriber::with_default(subscriber, || log(&report));
        let text = String::from_utf8(written.lock().clone()).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn what_a_guest_wrote_that_did_not_fail_is_a_line_at_debug_and_nothing_if_it_wrote_nothing() {
        let lines = logged(|report| {
            report.written(&LastWords::none());
            report.written(&LastWords::new(Vec::new(), "err".into(), "out".into()));
        });
        let line = r#"DEBUG the plugin has written evaluator="one" labels="team=a" stderr="err" stdout="out""#;
        assert_eq!(lines, [line]);
    }

    #[test]
    fn why_initialisers_run_in_each_instance_is_said_once_unless_it_is_plain() {
        let lines = logged(|report| {
            report.refused("plain", true);
            for _ in 0..2 {
                report.refused("why", false);
            }
        });
        let levels: Vec<_> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(levels, ["DEBUG", "INFO", "DEBUG"], "{lines:?}");
    }
}
