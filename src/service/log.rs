//! The program's log. It goes to standard error; standard output is for answers.
//!
//! Plugins choose much of its text: what they log, their errors, the names of their imports. Control characters are
//! written as their numbers, so that no plugin can begin a line that looks like the program's own, or drive the
//! reader's terminal.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal},
};

use tracing::{Event, Subscriber, field::Field};
use tracing_subscriber::{
    Layer, Registry,
    field::MakeExt,
    filter::{LevelFilter, Targets},
    fmt::{
        self, FmtContext, FormatEvent, FormatFields,
        format::{Writer, debug_fn},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use super::telemetry::Telemetry;
use crate::{
    TraceParent,
    config::{LogFormat, LogLevel, LogSettings},
    spans::TARGET as SPANS,
};

/// The target under which `direct` logs for plugins, and that under which extism does.
const PLUGINS: &str = "evalpool::plugin";
/// Below it: what guests leave behind.
const LAST_WORDS: &str = "evalpool::plugin::last_words";
const EXTISM_PLUGINS: &str = "extism::pdk";
/// extism logs each failed call under this target.
const ENGINE: &str = "extism";
/// What evaluations used, for billing.
const USAGE: &str = "evalpool::usage";
/// It warns of each call of a WASI function that it does not have.
const WASI: &str = "wasmtime_wasi";

/// How to log.
#[derive(Debug, Clone, Copy)]
pub struct Log<'a> {
    /// Level and format.
    pub settings: &'a LogSettings,
    /// Whether to show what plugins log at every level. Otherwise it is shown at `debug` and `trace` only, as are the
    /// engine's lines about guests that fail: a customer's plugin must not be able to fill the server's log. What guests
    /// leave behind that fail is a warning now and then, and is shown with the rest.
    pub with_plugins: bool,
    /// Whether what guests leave behind is logged with the rest. Otherwise the command prints it.
    pub with_last_words: bool,
    /// Whether to write what is used. Such a line is JSON, whatever the level and the format of others.
    pub with_usage: bool,
}

/// Installs the subscriber for the process, with what takes spans. Does nothing when there is one already.
pub fn install(log: Log<'_>, telemetry: Option<&Telemetry>) {
    let colours = io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(colours);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match log.settings.format {
        LogFormat::Text => {
            let lines = lines.fmt_fields(on_one_line()).map_event_format(|format| WithIds { format, ids: ids_as_text });
            Box::new(lines.with_filter(targets(log)))
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            let lines = lines.map_event_format(|format| WithIds { format, ids: ids_as_json });
            Box::new(lines.with_filter(targets(log)))
        }
    };
    let mut layers = vec![lines];
    if log.with_usage {
        let usage = fmt::layer().with_writer(io::stderr).event_format(MessageAlone);
        layers.push(Box::new(usage.with_filter(Targets::new().with_target(USAGE, LevelFilter::INFO))));
    }
    layers.extend(telemetry.map(Telemetry::layer));
    // Fails only if a subscriber is installed already; then that one stays.
    let _ = tracing_subscriber::registry().with(layers).try_init();
}

/// Writes an event as `format` does, and which trace and span it belongs to, if that is known.
struct WithIds<F> {
    format: F,
    /// Adds them to a line, which ends with its newline.
    ids: fn(&mut String, &TraceParent),
}

impl<S, N, F> FormatEvent<S, N> for WithIds<F>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let Some(current) = TraceParent::current() else { return self.format.format_event(context, writer, event) };
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        (self.ids)(&mut line, &current);
        writer.write_str(&line)
    }
}

fn ids_as_text(line: &mut String, current: &TraceParent) {
    line.truncate(line.trim_end().len());
    // A string takes what it is given.
    let _ = writeln!(line, " trace_id={} span_id={}", current.trace_id(), current.span_id());
}

fn ids_as_json(line: &mut String, current: &TraceParent) {
    if let Some(end) = line.rfind('}') {
        line.truncate(end);
        let _ = writeln!(line, r#","trace_id":"{}","span_id":"{}"}}"#, current.trace_id(), current.span_id());
    }
}

/// Writes an event's message, a line of its own, and nothing else of it.
struct MessageAlone;

impl<S, N> FormatEvent<S, N> for MessageAlone
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let mut result = Ok(());
        event.record(&mut |field: &Field, value: &dyn std::fmt::Debug| {
            if field.name() == "message" {
                result = writeln!(writer, "{value:?}");
            }
        });
        result
    }
}

/// Writes fields as `tracing_subscriber` does, the message bare and others with their names, but without characters that
/// could do harm. (JSON escapes them by itself.)
fn on_one_line() -> impl for<'writer> FormatFields<'writer> + 'static {
    debug_fn(|writer: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug| {
        if field.name() != "message" {
            write!(writer, "{}=", field.name())?;
        }
        // The one error of the writer that is worth telling: the text is too long.
        write!(OneLine { writer, left: MOST }, "{value:?}").or_else(|_| writer.write_char('…'))
    })
    .delimited(" ")
}

/// The most bytes written of one field. An error may be as long as a plugin's memory allows.
const MOST: usize = 16 * 1024;

/// Writes [harmless](write_harmless) characters, and fails once it has been given more than [`MOST`] bytes.
struct OneLine<'a, 'writer> {
    writer: &'a mut Writer<'writer>,
    left: usize,
}

impl std::fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        text.chars().try_for_each(|character| {
            self.left = self.left.checked_sub(character.len_utf8()).ok_or(std::fmt::Error)?;
            write_harmless(self.writer, character)
        })
    }
}

/// Writes a character, or its number if it would end a line, drive a terminal or turn the direction of text: control
/// characters, line and paragraph separators, and marks that embed, override or isolate a direction.
pub(super) fn write_harmless(to: &mut impl std::fmt::Write, character: char) -> std::fmt::Result {
    match character {
        '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            write!(to, "{}", character.escape_default())
        }
        _ if character.is_control() => write!(to, "{}", character.escape_default()),
        _ => to.write_char(character),
    }
}

/// This crate logs at the level that is set; the crates below it only warnings and errors.
fn targets(log: Log<'_>) -> Targets {
    let level = match log.settings.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let strangers = if level >= LevelFilter::DEBUG { level } else { LevelFilter::OFF };
    let plugins = if log.with_plugins { level } else { strangers };
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("evalpool", level)
        .with_target(USAGE, LevelFilter::OFF)
        .with_target(SPANS, LevelFilter::OFF)
        .with_target(ENGINE, strangers)
        .with_target(WASI, strangers)
        .with_target(PLUGINS, plugins)
        .with_target(LAST_WORDS, if log.with_last_words { level } else { LevelFilter::OFF })
        .with_target(EXTISM_PLUGINS, plugins)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged meanwhile.
    pub(in crate::service) fn logged(log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = fmt::layer().with_writer(move || writer.clone()).with_ansi(false).without_time();
        let subscriber = tracing_subscriber::registry().with(layer.fmt_fields(on_one_line()));
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn nobody_can_end_a_line_of_the_log_or_drive_a_terminal() {
        let log = logged(|| {
            let said = "a\nERROR forged\r\u{1b}[2J\u{9b}\0\u{202e}é\\n";
            tracing::info!(error = %said, name = said, count = 7, "it said: {said}");
        });
        let bare = r"a\nERROR forged\r\u{1b}[2J\u{9b}\u{0}\u{202e}é\n";
        let (message, rest) = log.split_once(" error=").unwrap();
        assert!(message.ends_with(&format!("it said: {bare}")), "{message}");
        assert!(rest.starts_with(&format!("{bare} name=\"a\\nERROR")) && rest.ends_with(" count=7\n"), "{rest}");
        assert_eq!(log.lines().count(), 1);
    }

    #[test]
    fn a_message_of_any_length_is_a_line_of_some_length() {
        let log = logged(|| {
            tracing::info!("{}{}", "é".repeat(MOST / 2), "cut");
            tracing::info!("x{}", "é".repeat(1 << 20));
        });
        let lines: Vec<_> = log.lines().collect();
        assert!(lines.len() == 2 && lines.iter().all(|line| line.len() < MOST + 200), "{}", log.len());
        assert!(lines.iter().all(|line| line.ends_with("éé…")), "{log}");
    }
}
