//! Reading a plugin from a URL, that of PLUGIN or of a manifest.
//!
//! Whoever types a URL, or writes a manifest, owns the process. So the URL's own host may have a private address, as a
//! server of artifacts often has; redirects lead to public ones only. By `http://` only this machine is reached:
//! elsewhere, anybody on the way could change the plugin.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use clap::Args;
use tokio::time::timeout;

use crate::{
    Digest, Error, Source,
    service::Exit,
    source::{HttpSource, Secret},
    units::Time,
};

#[derive(Debug, Args)]
pub(super) struct FetchOptions {
    /// The SHA-256 that the plugin must have. Name it if the plugin comes from a URL.
    #[arg(long, value_name = "sha256:HEX", requires = "plugin")]
    pub(super) digest: Option<Digest>,
    /// A header for the server of a plugin's URL, such as 'authorization: @token' with the value in the file `token`.
    /// Repeatable. A value after the colon is taken as well, but other users can see it in the list of processes.
    // Taken as it is: clap shows a value that it refuses, and this one may be a secret.
    #[arg(long, value_name = "NAME: @FILE", requires = "plugin")]
    header: Vec<String>,
}

impl FetchOptions {
    /// Where the plugin that the command line names comes from.
    pub(super) fn source(&self, plugin: &Path) -> Result<Source, Exit> {
        let url = plugin.to_str().filter(|text| ["https://", "http://"].iter().any(|scheme| text.starts_with(scheme)));
        match url {
            Some(url) => self.http(url).map(Source::Http),
            None if self.header.is_empty() => Ok(Source::file(plugin)),
            None => Err(Exit::unusable("--header: it is for a plugin from a URL")),
        }
    }

    fn http(&self, url: &str) -> Result<HttpSource, Exit> {
        let mut http =
            HttpSource::named(url).map_err(|why| Exit::unusable(format!("cannot read the plugin: {why}")))?;
        for header in &self.header {
            let (name, value) =
                header.split_once(':').ok_or_else(|| Exit::unusable("--header: one is not NAME: @FILE"))?;
            let value = value.trim();
            http = http.header(name.trim(), value.strip_prefix('@').map_or_else(|| Secret::value(value), Secret::file));
        }
        Ok(http)
    }
}

/// Fetches at most `limit` bytes, within this time. What cannot be read is bad usage, and what is too large is a refused
/// plugin.
pub(super) async fn fetch(http: &HttpSource, limit: u64, within: Duration) -> Result<Bytes, Exit> {
    let fetched = timeout(within, http.fetch(limit)).await.map_err(|_| {
        let (url, within) = (http.shown(), Time(within));
        Exit::unusable(format!("cannot read {url}: it did not come within {within} (--build-timeout)"))
    })?;
    fetched.map_err(unreadable)
}

fn unreadable(error: Error) -> Exit {
    match &error {
        Error::SourceUnavailable { cause } => Exit::unusable(format!("cannot read {cause}")),
        Error::InvalidRequest { reason } => Exit::unusable(format!("cannot read the plugin: {reason}")),
        _ => error.into(),
    }
}
