//! A handle on one compiled plugin with its entry point.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    close::{Close, CloseReport},
    engine::{BoxFuture, CompiledPlugin},
    error::Error,
    pool::{Core, Facts, Version},
    source::Digest,
};

/// One version of an evaluator's plugin: the compiled plugin with its entry point.
///
/// It does not keep the runtime alive. [`look`](Self::look) takes a lease for as long as it looks, and builds the
/// runtime if it was evicted meanwhile; once the evaluator is closed or its plugin replaced, it says `closed`.
#[derive(Clone)]
pub struct Executable {
    core: Arc<Core>,
    version: Arc<Version>,
    facts: Facts,
}

impl Executable {
    pub(crate) fn new(core: Arc<Core>, version: Arc<Version>, facts: Facts) -> Self {
        Self { core, version, facts }
    }

    /// The plugin's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.facts.digest
    }

    /// The export that is called.
    #[must_use]
    pub fn entry_point(&self) -> &str {
        &self.facts.entry_point
    }

    /// Lets `look` see the compiled plugin, in the engine's own terms. The lease ends when `look` returns; it must not
    /// block.
    ///
    /// # Errors
    ///
    /// `closed`, or whatever a build fails with.
    pub async fn look<T>(&self, look: impl FnOnce(&dyn CompiledPlugin) -> T) -> Result<T, Error> {
        let leased = self.version.lease(&self.core).await?;
        let gone = Error::Internal { reason: "a lease without a runtime", cause: None };
        let runtime = leased.lease.resident().ok_or(gone)?;
        Ok(look(&*runtime.program().compiled))
    }
}

impl Close for Executable {
    /// Closes the runtime. The evaluator stays usable: its next call builds the runtime anew.
    fn close(&self) -> BoxFuture<'static, CloseReport> {
        self.close_with(self.core.pool.grace)
    }

    fn close_with(&self, grace: Duration) -> BoxFuture<'static, CloseReport> {
        let gone = self.core.registry.unload(self.version.generation, grace);
        Box::pin(CloseReport::after(gone, grace))
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executable").field("facts", &self.facts).finish_non_exhaustive()
    }
}
