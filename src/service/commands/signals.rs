//! Requests to end the program: SIGTERM and SIGINT.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::service::Exit;

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on, the two signals no longer end the process by themselves.
    pub(super) fn new() -> Result<Self, Exit> {
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
