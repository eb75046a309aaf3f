//! Requests to end, from whoever runs the program.

use crate::service::Exit;

/// Requests to end.
pub(super) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    /// From here on, they no longer end the process by themselves.
    pub(super) fn new() -> Result<Self, Exit> {
        use tokio::signal::unix::{SignalKind, signal};

        let receive = |kind| signal(kind).map_err(|error| Exit::failed(format!("signals cannot be received: {error}")));
        Ok(Self { terminate: receive(SignalKind::terminate())?, interrupt: receive(SignalKind::interrupt())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    #[expect(clippy::unnecessary_wraps, reason = "fails on Unix")]
    pub(super) fn new() -> Result<Self, Exit> {
        Ok(Self {})
    }

    pub(super) async fn next(&mut self) {
        // Without a handler there is no signal to wait for.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
