//! Where plugin bytes come from, and the plugin they make. Nothing else fetches; no engine types here.
//!
//! [`Source::load`] caps the size while it reads, compares the digest and [inspects](inspect) the binary: so it refuses
//! most bad plugins before they cost anyone a place or a compile. Above all it refuses bytes that are no WebAssembly
//! binary: extism would read them as a manifest, which can name files of this host.

mod digest;
mod entry_points;
#[cfg(feature = "direct")]
mod http;
mod inspect;
mod loader;
#[cfg(feature = "direct")]
mod secret;
mod weight;

use std::{
    error::Error as StdError,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use tokio::task::spawn_blocking;

pub(crate) use self::entry_points::EntryPoints;
#[cfg(feature = "extism")]
pub(crate) use self::inspect::check_wasm2;
pub use self::{
    digest::{Digest, ParseDigestError},
    inspect::{Import, Interface},
    loader::Loader,
};
#[cfg(feature = "direct")]
pub use self::{http::HttpSource, secret::Secret};
#[cfg(feature = "direct")]
pub(crate) use self::{
    inspect::{data_size, export_count, is_valid},
    weight::MOST_MEMORIES,
};
use crate::{error::Error, pages};

/// Where a plugin's bytes come from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Source {
    /// Held in memory, for as long as the spec lives.
    Bytes(Bytes),
    /// Held in memory as standard base64 with padding.
    Base64(Arc<str>),
    /// Read from a regular file at each build, so that a cold plugin takes no memory. Name its
    /// [digest](crate::Spec::digest) if the file may change under you.
    File(PathBuf),
    /// What a closure of yours gives, called at each build.
    Loader(Loader),
    /// Fetched from an HTTP server at each build.
    #[cfg(feature = "direct")]
    Http(HttpSource),
}

impl Source {
    /// Bytes in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Source::Bytes(bytes.into())
    }

    /// Standard base64 with padding; decoded at each build.
    pub fn base64(text: impl Into<Arc<str>>) -> Self {
        Source::Base64(text.into())
    }

    /// A regular file, read at each build.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Source::File(path.into())
    }

    /// What an async closure of yours gives, such as bytes from a database or an object store.
    ///
    /// ```
    /// use evalpool::{Source, Spec};
    ///
    /// # async fn read_from_store(_: &str) -> std::io::Result<Vec<u8>> { Ok(Vec::new()) }
    /// let spec = Spec::new(Source::from_fn(|| async { read_from_store("plugins/price.wasm").await }));
    /// ```
    ///
    /// Each build calls it anew, also the first one after an eviction: the plugin is what it gives then, unless the spec
    /// names a [digest](crate::Spec::digest). It is a future of the build, which runs on the pool's
    /// [background](crate::PoolBuilder::background) runtime: one that blocks holds up a thread of that. It is dropped at [`build_timeout`](crate::Spec::build_timeout), and when the evaluator or its pool is
    /// closed. It goes on when the callers that wait for the build leave.
    ///
    /// Its error becomes [`SourceUnavailable`](crate::Error::SourceUnavailable), with the error as the cause. A panic
    /// becomes [`Internal`](crate::Error::Internal). Neither is remembered: the next call tries again. More than
    /// [`plugin_size`](crate::config::LimitSettings::plugin_size) bytes are refused with
    /// [`PayloadTooLarge`](crate::Error::PayloadTooLarge), once they are there: a loader that should hold less meanwhile
    /// has to count itself. Until it is done, it is charged with `plugin_size` of the 128 MiB that a pool fetches at once,
    /// for which other builds may have to wait. So it must not call evaluators of the same pool.
    pub fn from_fn<Load, Loading, Loaded, Failed>(load: Load) -> Self
    where
        Load: Fn() -> Loading + Send + Sync + 'static,
        Loading: Future<Output = Result<Loaded, Failed>> + Send + 'static,
        Loaded: Into<Bytes>,
        Failed: Into<Box<dyn StdError + Send + Sync>>,
    {
        Source::Loader(Loader::new(load))
    }

    /// Bytes on an HTTP server, fetched at each build (feature `direct`).
    ///
    /// ```
    /// use evalpool::{Secret, Source, Spec};
    ///
    /// let source = Source::http("https://plugins.example.com/price.wasm")
    ///     .header("authorization", Secret::file("/run/secrets/plugins"));
    /// let digest = "sha256:47723a1f0c6ea8d1d4e6dd5ed1c3e9d6e2cc74b0b4fa2ac4a3a4d40d4eb2a4ec".parse()?;
    /// let spec = Spec::new(source).digest(digest);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Name the [digest](crate::Spec::digest): without one the plugin is whatever the server gives at a build, and the
    /// evaluator warns of it in the log, once.
    ///
    /// - A URL is `https://`, and its host has addresses of the open internet. [`HttpSource::allow_host`] names hosts for
    ///   which neither holds. A URL that breaks this is refused with [`InvalidRequest`](crate::Error::InvalidRequest) when
    ///   the spec is registered; a name that resolves to private addresses only, at the fetch.
    /// - At most five redirects are followed, each under the same rules, and none from `https://` to `http://`. Headers,
    ///   and what stands before the host in the URL, go to the URL's own origin alone.
    /// - An answer other than 200 is [`SourceUnavailable`](crate::Error::SourceUnavailable), as is everything else that
    ///   fails; the cause says why. It shows URLs without user, password and query.
    /// - More than [`plugin_size`](crate::config::LimitSettings::plugin_size) bytes are refused with
    ///   [`PayloadTooLarge`](crate::Error::PayloadTooLarge) as soon as they are announced or there. A fetch ends at
    ///   [`build_timeout`](crate::Spec::build_timeout), and when the evaluator or its pool is closed. It goes on when the
    ///   callers that wait for the build leave. Until it ends, it is charged with `plugin_size` of the 128 MiB that a pool
    ///   fetches at once.
    /// - Proxies are not used, and certificates are checked against the web's roots.
    #[cfg(feature = "direct")]
    pub fn http(url: impl Into<String>) -> HttpSource {
        HttpSource::new(url.into())
    }

    /// Refuses what no build could use.
    #[cfg_attr(not(feature = "direct"), expect(clippy::unnecessary_wraps, reason = "only a URL can be refused"))]
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            #[cfg(feature = "direct")]
            Source::Http(http) => http.check(),
            _ => Ok(()),
        }
    }

    /// The URL from which bytes come that nobody has named a digest of.
    pub(crate) fn unchecked_url(&self) -> Option<String> {
        match self {
            #[cfg(feature = "direct")]
            Source::Http(http) if http.expected().is_none() => Some(http.shown()),
            _ => None,
        }
    }

    /// The digest that the source itself names.
    fn expected(&self) -> Option<Digest> {
        match self {
            #[cfg(feature = "direct")]
            Source::Http(http) => http.expected(),
            _ => None,
        }
    }

    /// The most bytes that [`load`](Self::load) will allocate, within `limit`; for a connection no less than what it is worth.
    pub(crate) fn cost(&self, limit: u64) -> u64 {
        match self {
            Source::Bytes(_) => 0,
            Source::Base64(text) => (text.len() as u64 / 4 * 3).min(limit),
            // What a loader brings is not known before.
            Source::File(_) | Source::Loader(_) => limit,
            #[cfg(feature = "direct")]
            Source::Http(_) => limit.max(http::LEAST_COST),
        }
    }

    /// Fetches the bytes and makes a [`Plugin`] of them.
    ///
    /// Cancel safe: after a drop of the future, a read of a file runs to its end, and its bytes are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::SourceUnavailable`], [`Error::PayloadTooLarge`], [`Error::DigestMismatch`], [`Error::InvalidPlugin`], or
    /// [`Error::InvalidRequest`] for text that is not base64, and [`Error::Internal`] for a loader that panicked.
    pub(crate) async fn load(&self, limit: u64, expected: Option<Digest>) -> Result<Plugin, Error> {
        let bytes = match self {
            Source::Bytes(bytes) => bytes.clone(),
            Source::Base64(text) => {
                let text = text.clone();
                blocking(move || decode(&text, limit)).await?
            }
            Source::File(path) => {
                let path = path.clone();
                blocking(move || read_file(&path, limit)).await?
            }
            Source::Loader(loader) => loader.load().await?,
            #[cfg(feature = "direct")]
            Source::Http(http) => http.fetch(limit).await?,
        };
        if bytes.len() as u64 > limit {
            return Err(Error::PayloadTooLarge { what: "plugin", limit });
        }
        let expected = expected.or(self.expected());
        blocking(move || Plugin::new(bytes, expected)).await
    }
}

/// Reading, hashing and parsing megabytes takes milliseconds, too long for a thread of the executor.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|error| Error::internal("loading a plugin did not finish", error))?
}

fn decode(text: &str, limit: u64) -> Result<Bytes, Error> {
    let text = text.trim_ascii();
    // Four characters carry at most three bytes. Refuse text that must be over the limit before decoding it.
    if text.len() as u64 / 4 > limit / 3 + 1 {
        return Err(Error::PayloadTooLarge { what: "plugin", limit });
    }
    BASE64_STANDARD
        .decode(text)
        .map(Bytes::from)
        .map_err(|error| Error::invalid_request(format!("the plugin's base64 cannot be decoded: {error}")))
}

fn read_file(path: &Path, limit: u64) -> Result<Bytes, Error> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let failed =
        |error| Error::by_system("a plugin's file cannot be read", error, |error| Error::unavailable(named(error)));
    let bytes = read_regular(path, limit).map_err(failed)?;
    bytes.ok_or(Error::PayloadTooLarge { what: "plugin", limit })
}

/// Reads a regular file; `None` if it has more bytes than `limit`.
fn read_regular(path: &Path, limit: u64) -> io::Result<Option<Bytes>> {
    // Checked before opening: to open a named pipe would wait for a writer.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if metadata.len() > limit {
        return Ok(None);
    }
    let mut file = fs::File::open(path)?;
    if metadata.len() == 0 {
        // Some file systems do not know lengths.
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        return Ok(Some(bytes.into()).filter(|bytes: &Bytes| bytes.len() as u64 <= limit));
    }
    let bytes = pages::read(&mut file, metadata.len());
    match (bytes, file.read(&mut [0])) {
        (Ok(bytes), Ok(0)) => Ok(Some(bytes)),
        (Err(error), _) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        (_, Err(error)) => Err(error),
        _ => Err(io::Error::other("it has changed while it was read; try again")),
    }
}

/// Bytes that are a WebAssembly module, with their digest and interface.
#[derive(Debug, Clone)]
pub struct Plugin {
    bytes: Bytes,
    digest: Digest,
    interface: Arc<Interface>,
}

impl Plugin {
    /// Checks the digest, then reads the binary. Takes milliseconds for megabytes.
    ///
    /// # Errors
    ///
    /// [`Error::DigestMismatch`] or [`Error::InvalidPlugin`].
    pub fn new(bytes: Bytes, expected: Option<Digest>) -> Result<Self, Error> {
        let digest = Digest::of(&bytes);
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(Error::DigestMismatch { expected: expected.to_string(), actual: digest.to_string() });
        }
        let interface = Arc::new(inspect::inspect(&bytes)?);
        Ok(Self { bytes, digest, interface })
    }

    /// The WebAssembly binary.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its SHA-256.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What it imports and exports.
    #[must_use]
    pub fn interface(&self) -> &Interface {
        &self.interface
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module() -> Vec<u8> {
        wat::parse_str(r#"(module (func (export "run")))"#).unwrap()
    }

    #[tokio::test]
    async fn each_source_is_held_to_the_size_limit_and_the_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugin.wasm");
        std::fs::write(&path, module()).unwrap();
        let size = module().len() as u64;
        for source in [Source::bytes(module()), Source::base64(BASE64_STANDARD.encode(module())), Source::file(&path)] {
            let plugin = source.load(size, Some(Digest::of(&module()))).await.unwrap();
            assert_eq!(plugin.interface().entry_points(), ["run"], "{source:?}");
            let error = source.load(size - 1, None).await.unwrap_err();
            assert_eq!(error.kind(), "payload_too_large", "{source:?}");
            let error = source.load(size, Some(Digest::of(b"other"))).await.unwrap_err();
            assert_eq!(error.kind(), "digest_mismatch", "{source:?}");
        }
    }

    #[tokio::test]
    async fn what_is_not_base64_or_not_a_file_is_said_without_a_host_path() {
        let error = Source::base64("***").load(1024, None).await.unwrap_err();
        assert_eq!(error.kind(), "invalid_request");
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("missing")] {
            let error = Source::file(&path).load(1024, None).await.unwrap_err();
            assert_eq!(error.kind(), "source_unavailable");
            assert!(!error.to_string().contains(path.to_str().unwrap()));
            assert!(error.chain().contains(path.to_str().unwrap()));
        }
    }

    #[test]
    fn what_is_not_a_webassembly_module_is_refused() {
        let manifest = br#"{"wasm":[{"path":"/etc/passwd"}]}"#;
        let component = b"\0asm\x0d\0\x01\0";
        for bytes in [&b""[..], b"hello", manifest, b"(module)", component, b"\0asm", b"\0asm\x02\0\0\0"] {
            let error = Plugin::new(Bytes::copy_from_slice(bytes), None).unwrap_err();
            assert_eq!(error.kind(), "invalid_plugin", "{bytes:?}");
        }
        let module = module();
        for cut in 8..module.len() {
            // A prefix that ends between two sections is a module too, without the export.
            if let Ok(plugin) = Plugin::new(Bytes::copy_from_slice(&module[..cut]), None) {
                assert!(plugin.interface().entry_points().is_empty(), "cut at {cut}");
            }
        }
    }
}
