//! Requests to end the program, SIGTERM and SIGINT, and to read its tokens again, SIGHUP.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::service::Exit;

/// SIGHUP, which from here on no longer ends the process.
pub(super) fn hangup() -> Result<Signal, Exit> {
    receive(SignalKind::hangup())
}

fn receive(kind: SignalKind) -> Result<Signal, Exit> {
    signal(kind).map_err(|error| Exit::failed(format!("signals cannot be received: {error}")))
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on, the two signals no longer end the process by themselves.
    pub(super) fn new() -> Result<Self, Exit> {
        Ok(Self { terminate: receive(SignalKind::terminate())?, interrupt: receive(SignalKind::interrupt())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
