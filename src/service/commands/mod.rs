//! The commands of the program, and how they read the files that the command line names.

mod check;
mod fetch;
mod load;
mod manifest;
mod options;
mod run;
mod serve;
mod signals;
mod top;

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use bytes::Bytes;
use tokio::runtime::Handle;

pub(super) use self::{check::check, load::load, options::PluginOptions, run::run, serve::serve, top::top};
use super::{Exit, cli::Input};
use crate::{Error, PoolBuilder, Settings, units::Size};

/// For a pool that does all of its work on the program's own runtime.
fn pool_builder(settings: &Settings) -> PoolBuilder {
    PoolBuilder::from(settings.clone()).background(Handle::current())
}

/// Reads the input for a guest.
fn read_input(input: Input, limit: u64) -> Result<Bytes, Exit> {
    match input {
        Input::Text(text) => Ok(text.into()),
        Input::File(path) => read_file(&path, "input", limit),
        Input::Stdin => read(io::stdin().lock(), "input", limit)
            .map_err(|error| Exit::unusable(format!("cannot read standard input: {error}")))?,
    }
}

fn read_file(path: &Path, what: &'static str, limit: u64) -> Result<Bytes, Exit> {
    File::open(path)
        .and_then(|file| read(file, what, limit))
        .map_err(|error| Exit::unusable(format!("cannot read {}: {error}", path.display())))?
}

/// Reads at most one byte more than allowed, so that a longer file is refused without being held.
fn read(from: impl Read, what: &'static str, limit: u64) -> io::Result<Result<Bytes, Exit>> {
    let mut bytes = Vec::new();
    from.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Ok(Err(Error::PayloadTooLarge { what, limit }.into()));
    }
    Ok(Ok(bytes.into()))
}

/// Reads a text of at most `limit` bytes.
fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    let (name, mut text) = (path.display(), String::new());
    let read = File::open(path).and_then(|file| file.take(limit.saturating_add(1)).read_to_string(&mut text));
    match read {
        Err(error) => Err(format!("cannot read {name}: {error}")),
        Ok(size) if size as u64 > limit => Err(format!("{name} is over {}", Size(limit))),
        Ok(_) => Ok(text),
    }
}
