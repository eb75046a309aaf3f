//! How the program ends: exit codes, and the one line that says why.

use std::process::ExitCode;

use super::log::write_harmless;
use crate::{Error, LastWords, SettingsError};

/// Why the program ends without having run a command to its end.
#[derive(Debug)]
pub enum Exit {
    /// The help or the version was asked for: it goes to standard output, exit code 0.
    Help(String),
    /// A plugin was refused, or the command failed: exit code 1. What a guest left behind follows the line.
    Failed(String, LastWords),
    /// Bad usage, or a file, folder or address that cannot be used: exit code 2.
    Unusable(String),
    /// No command was given: the help goes to standard error, exit code 2.
    Usage(String),
}

impl Exit {
    pub(super) fn failed(line: impl Into<String>) -> Self {
        Exit::Failed(line.into(), LastWords::none())
    }

    pub(super) fn unusable(line: impl Into<String>) -> Self {
        Exit::Unusable(line.into())
    }

    /// The same, naming the option whose value cannot be used.
    pub(super) fn of_option(self, name: &str) -> Self {
        match self {
            Exit::Unusable(line) => Exit::Unusable(format!("{name}: {line}")),
            other => other,
        }
    }

    /// Prints the text and returns the exit code.
    #[must_use]
    pub fn report(self) -> ExitCode {
        let (line, code) = match self {
            Exit::Help(text) => return print(text).map_or_else(Exit::report, |()| ExitCode::SUCCESS),
            Exit::Usage(help) => (help, 2),
            Exit::Failed(line, words) => (format!("error: {}\n{}", one_line(&line), shown(&words)), 1),
            Exit::Unusable(line) => (format!("error: {}\n", one_line(&line)), 2),
        };
        eprint!("{line}");
        ExitCode::from(code)
    }
}

impl From<Error> for Exit {
    fn from(error: Error) -> Self {
        // The program's user may see host paths; a client of the server may not.
        let text = match &error {
            Error::Internal { .. } | Error::Overloaded { .. } | Error::SourceUnavailable { .. } => error.chain(),
            _ => error.to_string(),
        };
        let last_words = error.last_words().cloned().unwrap_or_default();
        Exit::Failed(format!("{}: {text}", error.kind()), last_words)
    }
}

impl From<SettingsError> for Exit {
    fn from(error: SettingsError) -> Self {
        Exit::Unusable(error.to_string())
    }
}

/// Writes an answer to standard output. A reader that closed the pipe has read enough; any other failure to write is an
/// error.
pub(super) fn print(answer: impl AsRef<[u8]>) -> Result<(), Exit> {
    use std::io::{ErrorKind, Write};

    let mut out = std::io::stdout().lock();
    match out.write_all(answer.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Exit::failed(format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// What a guest left behind, in lines that a terminal only shows.
pub(super) fn shown(words: &LastWords) -> String {
    let mut shown = String::new();
    for line in words.to_string().lines() {
        shown.push_str("  ");
        push_harmless(&mut shown, line);
        shown.push('\n');
    }
    shown
}

/// Joins a text into one line that a terminal only shows: names and messages in it may come from a plugin.
pub(super) fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut shown = String::new();
    push_harmless(&mut shown, &lines.join(" "));
    shown
}

fn push_harmless(shown: &mut String, text: &str) {
    for character in text.chars() {
        // A `String` takes every character.
        let _ = write_harmless(shown, character);
    }
}
