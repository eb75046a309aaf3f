//! What plugins log, within the same bounds on every engine: into `tracing`, under the target `evalpool::plugin`.

use tracing::{Level, level_filters::LevelFilter};

use crate::source::Digest;

/// What PDKs call to log, and at which level.
pub(super) const FUNCTIONS: [(&str, Level); 5] = [
    ("log_trace", Level::TRACE),
    ("log_debug", Level::DEBUG),
    ("log_info", Level::INFO),
    ("log_warn", Level::WARN),
    ("log_error", Level::ERROR),
];

/// Lines that one evaluation may write.
const LINES: u32 = 100;

/// Bytes of one line.
const LINE: usize = 4096;

/// Whether anybody reads messages of this level.
pub(super) fn is_read(level: Level) -> bool {
    level <= LevelFilter::current()
}

/// How much one evaluation may still write to the log.
#[derive(Debug)]
pub(super) struct LogBudget {
    lines: u32,
}

impl Default for LogBudget {
    fn default() -> Self {
        Self { lines: LINES }
    }
}

impl LogBudget {
    /// Whether one more line may be written. The last one is to say that it is.
    pub(super) fn take(&mut self) -> Logging {
        match self.lines {
            0 => Logging::Nothing,
            1 => {
                self.lines = 0;
                Logging::LastLine
            }
            _ => {
                self.lines -= 1;
                Logging::Line
            }
        }
    }
}

/// What becomes of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Logging {
    Line,
    LastLine,
    Nothing,
}

impl Logging {
    /// The text to write for this message, if any.
    pub(super) fn text(self, message: &[u8]) -> Option<String> {
        match self {
            Logging::Nothing => None,
            Logging::LastLine => Some("this evaluation has written enough; the rest is not shown".to_owned()),
            Logging::Line => Some(String::from_utf8_lossy(&message[..message.len().min(LINE)]).into_owned()),
        }
    }
}

/// Writes one line.
pub(super) fn write(level: Level, plugin: Digest, text: &str) {
    macro_rules! write {
        ($($level:ident),*) => { match level {
            $(Level::$level => tracing::event!(target: "evalpool::plugin", Level::$level, %plugin, "{text}"),)*
        } };
    }
    write!(TRACE, DEBUG, INFO, WARN, ERROR);
}
