//! The `extism` crate as an engine: a thin adapter, for plugins that you trust.
//!
//! It cannot contain a hostile plugin. extism believes what a guest says of its memory, so that one can read and write
//! this process's; nothing interrupts its initialisers, or a guest that sleeps; tables have no bound; and an initialiser
//! that calls a function of the host ends the process. So it refuses what is not `trusted`, and everything else belongs
//! on [`direct`](super::choosing).
//!
//! What it takes to keep the two rules of [an engine](super) for plugins that mean well:
//!
//! - **An interrupt hits a whole wasmtime engine**, and with it every instance made from one `CompiledPlugin`. So an
//!   instance in use has a `CompiledPlugin` to itself: see `compiled`.
//! - **A call blocks its thread**, so it runs on one of tokio's blocking threads. Dropping the call's future cancels it,
//!   best effort: see `cancel`. A deadline is extism's own.
//! - **What its environment variables turn on is off** (`EXTISM_DEBUG`, `EXTISM_COREDUMP`, `EXTISM_MEMDUMP`,
//!   `EXTISM_PROFILE`, `EXTISM_CACHE_CONFIG`). `EXTISM_ENABLE_WASI_OUTPUT` has no switch: with it set, there is no engine.
//! - **Nothing that a customer uploads reaches extism's own manifest parser**: the bytes were read as WebAssembly
//!   before, and the manifest is made here.
//!
//! Its log, its variables and its HTTP client are extism's; the last only with the cargo feature `extism-http`.

mod cancel;
mod compiled;
mod errors;
mod functions;
mod instance;

pub use self::compiled::Compiled;
use super::{BoxFuture, CompileRequest, CompiledPlugin, Engine};
use crate::{config::HostPattern, error::Error};

/// Writes what guests print to this process's own output.
const WASI_OUTPUT: &str = "EXTISM_ENABLE_WASI_OUTPUT";

/// Runs trusted plugins through the `extism` crate.
#[derive(Debug)]
pub struct ExtismEngine(());

impl ExtismEngine {
    /// An engine. Starts no thread and compiles nothing.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequest`] when the environment variable `EXTISM_ENABLE_WASI_OUTPUT` is set: extism would let guests write
    /// to this process's standard output, and nothing else turns that off.
    pub fn new() -> Result<Self, Error> {
        if std::env::var_os(WASI_OUTPUT).is_some() {
            return Err(Error::invalid_request(format!(
                "unset {WASI_OUTPUT}: with it, extism lets plugins write to this process's standard output"
            )));
        }
        Ok(Self(()))
    }
}

impl Engine for ExtismEngine {
    fn check(&self, trusted: bool, allowed_hosts: &[String]) -> Result<(), Error> {
        if !trusted {
            return Err(Error::invalid_request(
                "the extism engine cannot contain a hostile plugin and takes trusted ones only: set engine.trusted = true \
                 (--trusted on the command line) or Spec::trusted(true), or choose the direct engine",
            ));
        }
        let hosts = HostPattern::parse_all(allowed_hosts)
            .map_err(|why| Error::invalid_request(format!("allowed_hosts has {why}")))?;
        if hosts.iter().any(HostPattern::has_port) {
            return Err(Error::invalid_request(
                "the extism engine does not tell the ports of allowed hosts apart; leave the port out, or choose the \
                 direct engine",
            ));
        }
        if !cfg!(feature = "extism-http") && !allowed_hosts.is_empty() {
            return Err(Error::invalid_request(
                "allowed hosts need the cargo feature extism-http on the extism engine; leave them out, or choose the \
                 direct engine",
            ));
        }
        Ok(())
    }

    fn compile(&self, request: CompileRequest) -> BoxFuture<'_, Result<Box<dyn CompiledPlugin>, Error>> {
        Box::pin(async move {
            self.check(request.trusted, &request.allowed_hosts)?;
            let compile = move || Ok(Box::new(Compiled::new(request)?) as Box<dyn CompiledPlugin>);
            blocking("compiling did not finish", compile).await
        })
    }
}

/// Runs blocking work where it may block. A panic in it is an `internal` error here; when this future is dropped, the
/// work runs to its end and its result is dropped on its own thread.
async fn blocking<T: Send + 'static>(
    unfinished: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(unfinished, error)),
    }
}
