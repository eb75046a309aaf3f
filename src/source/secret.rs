//! Values that are sent and never shown.

use std::{env, ffi::OsStr, fmt, path::PathBuf, sync::Arc};

use super::read_regular;
use crate::{error::Error, units::Size};

/// The longest secret, in bytes: servers refuse longer headers.
const MOST: u64 = 16 << 10;

/// A value that no `Debug` output, log line or error shows: itself, or where to read it at each fetch.
///
/// A secret in a file or in the environment can change while the process runs. A line break at its end is no part of it.
#[derive(Clone)]
pub struct Secret(Kept);

#[derive(Clone)]
enum Kept {
    Value(Arc<str>),
    File(PathBuf),
    Variable(String),
}

impl Secret {
    /// A value that the code has at hand.
    pub fn value(value: impl Into<Arc<str>>) -> Self {
        Self(Kept::Value(value.into()))
    }

    /// What is in a regular file, of at most 16 KiB.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Kept::File(path.into()))
    }

    /// What an environment variable holds.
    pub fn env(variable: impl Into<String>) -> Self {
        Self(Kept::Variable(variable.into()))
    }

    /// Reads it. May block, on a file.
    pub(super) fn read(&self) -> Result<Vec<u8>, Error> {
        let failed = |why: &dyn fmt::Display| Error::unavailable(format!("{self:?}: {why}"));
        let mut value = match &self.0 {
            Kept::Value(value) => value.as_bytes().to_vec(),
            Kept::File(path) => read_regular(path, MOST)
                .map_err(|error| Error::by_system("a secret's file cannot be read", error, |error| failed(&error)))?
                .ok_or_else(|| failed(&format_args!("it is over {}", Size(MOST))))?
                .to_vec(),
            Kept::Variable(name) => {
                env::var_os(OsStr::new(name)).ok_or_else(|| failed(&"it is not set"))?.into_encoded_bytes()
            }
        };
        let end = value.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
        value.truncate(end);
        if value.is_empty() { Err(failed(&"it is empty")) } else { Ok(value) }
    }
}

/// Says where it is, not what it is.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kept::Value(_) => f.write_str("a secret value"),
            Kept::File(path) => write!(f, "the secret in the file {}", path.display()),
            Kept::Variable(name) => write!(f, "the secret in the environment variable {name}"),
        }
    }
}
