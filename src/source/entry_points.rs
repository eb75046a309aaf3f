//! Which of a plugin's exports calls may name, and which one is called when a call names none.

use super::Interface;
use crate::error::Error;

/// The entry points of one plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPoints {
    /// `None` when each call has to name its own.
    default: Option<String>,
    available: Vec<String>,
}

impl EntryPoints {
    /// Those of a plugin whose spec names one, or none.
    ///
    /// # Errors
    ///
    /// [`Error::EntryPointMissing`] when there is none at all, or none of that name.
    pub(crate) fn of(interface: &Interface, named: Option<&str>) -> Result<Self, Error> {
        let default = match interface.resolve(named) {
            Ok(name) => Some(name),
            Err(Error::EntryPointMissing { entry_point: None, available }) if !available.is_empty() => None,
            Err(error) => return Err(error),
        };
        Ok(Self { default, available: interface.candidates() })
    }

    /// The one that is called when a call names none.
    pub(crate) fn default(&self) -> Option<&str> {
        self.default.as_deref()
    }

    /// Those that calls may name: the ones that an author may mean, and the one that the spec names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.default.iter().chain(&self.available).map(String::as_str)
    }

    /// The one that a call means.
    ///
    /// # Errors
    ///
    /// [`Error::EntryPointMissing`], with the names to choose from.
    pub(crate) fn find(&self, named: Option<&str>) -> Result<&str, Error> {
        let found = match named {
            Some(name) => self.iter().find(|known| *known == name),
            None => self.default(),
        };
        found.ok_or_else(|| self.missing(named))
    }

    /// That there is none of this name.
    pub(crate) fn missing(&self, named: Option<&str>) -> Error {
        Error::EntryPointMissing { entry_point: named.map(str::to_owned), available: self.available.clone() }
    }
}
