//! Loaders of the embedder's own.

use std::{
    error::Error as StdError,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::FutureExt;

use crate::error::{Error, panic_text};

type Loading = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>;

/// A closure that gives a plugin's bytes: see [`Source::from_fn`](super::Source::from_fn).
#[derive(Clone)]
pub struct Loader(Arc<dyn Fn() -> Loading + Send + Sync>);

impl Loader {
    pub(super) fn new<Load, Loading, Loaded, Failed>(load: Load) -> Self
    where
        Load: Fn() -> Loading + Send + Sync + 'static,
        Loading: Future<Output = Result<Loaded, Failed>> + Send + 'static,
        Loaded: Into<Bytes>,
        Failed: Into<Box<dyn StdError + Send + Sync>>,
    {
        Self(Arc::new(move || {
            let loading = load();
            Box::pin(async move { loading.await.map(Into::into).map_err(Error::unavailable) })
        }))
    }

    /// Calls it. Dropping the future drops the loader's own. A panic in either is an error.
    pub(super) async fn load(&self) -> Result<Bytes, Error> {
        let loading = match catch_unwind(AssertUnwindSafe(|| (self.0)())) {
            Ok(loading) => AssertUnwindSafe(loading).catch_unwind().await,
            Err(panic) => Err(panic),
        };
        loading.unwrap_or_else(|panic| Err(Error::internal("a source's loader panicked", panic_text(&*panic))))
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loader")
    }
}
