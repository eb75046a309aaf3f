//! A handle on one compiled plugin with its entry point.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    close::{Close, CloseReport},
    engine::{BoxFuture, CompiledPlugin},
    error::Error,
    revision::{PluginInfo, PoolInner, Revision},
    source::Digest,
};

/// One revision of an evaluator's plugin: the compiled plugin with its entry point.
///
/// It holds the spec, and with it the plugin's bytes if they are held in memory, but not the runtime, which may be evicted
/// meanwhile. [`with_compiled`](Self::with_compiled) then builds the runtime anew. Once the evaluator is closed or its
/// plugin replaced, it returns [`Error::Closed`].
#[derive(Clone)]
pub struct Executable {
    inner: Arc<PoolInner>,
    revision: Arc<Revision>,
    info: PluginInfo,
}

impl Executable {
    pub(crate) fn new(inner: Arc<PoolInner>, revision: Arc<Revision>, info: PluginInfo) -> Self {
        Self { inner, revision, info }
    }

    /// The plugin's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.info.digest
    }

    /// The export that is called when a call names none; `None` if each has to name its own.
    #[must_use]
    pub fn entry_point(&self) -> Option<&str> {
        self.info.entry_point.as_deref()
    }

    /// Calls `view` with the compiled plugin, in the engine's own terms. Takes a lease for as long as `view` runs, and
    /// builds the runtime if need be. `view` must not block.
    ///
    /// Cancel safe: a build that has begun goes on.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], or whatever a build fails with.
    pub async fn with_compiled<T>(&self, view: impl FnOnce(&dyn CompiledPlugin) -> T) -> Result<T, Error> {
        let lease = self.revision.lease(&self.inner).await?;
        let gone = Error::Internal { reason: "a lease without a runtime", cause: None };
        let runtime = lease.resident().ok_or(gone)?;
        Ok(view(&*runtime.program().compiled))
    }
}

impl Close for Executable {
    /// Closes the runtime. The evaluator stays usable: its next call builds the runtime anew.
    fn close(&self) -> BoxFuture<'static, CloseReport> {
        self.close_with(self.inner.pool.grace)
    }

    fn close_with(&self, grace: Duration) -> BoxFuture<'static, CloseReport> {
        let gone = self.inner.registry.unload(self.revision.id, grace);
        Box::pin(CloseReport::after(gone, grace))
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executable").field("info", &self.info).finish_non_exhaustive()
    }
}
