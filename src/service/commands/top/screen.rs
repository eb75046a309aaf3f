//! The terminal: taken, given back however the command ends, and read.

use std::{io, thread};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use tokio::sync::mpsc;

use super::{draw::draw, state::State};
use crate::service::Exit;

/// Keys that may wait.
const KEYS: usize = 64;

/// The terminal while it is ours: raw, and its other screen.
pub(super) struct Screen(DefaultTerminal);

impl Screen {
    /// A panic gives the terminal back before it says anything.
    pub(super) fn take() -> Result<Self, Exit> {
        let taken = ratatui::try_init().and_then(|mut terminal| {
            terminal.hide_cursor()?;
            Ok(terminal)
        });
        taken.map(Self).map_err(|error| {
            give_back();
            cannot(&error)
        })
    }

    /// Draws, in the size that the terminal has now.
    pub(super) fn draw(&mut self, state: &mut State) -> Result<(), Exit> {
        self.0.draw(|frame| draw(frame, state)).map(drop).map_err(|error| cannot(&error))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    // Who cannot be written to has no terminal any more.
    let _ = ratatui::try_restore();
}

fn cannot(error: &io::Error) -> Exit {
    Exit::failed(format!("cannot use the terminal: {error}"))
}

/// What is typed, and each change of the terminal's size; ends when the terminal does. On a thread of its own, which ends
/// with the process: nothing interrupts it while it reads.
pub(super) fn inputs() -> Result<mpsc::Receiver<Event>, Exit> {
    let (sender, receiver) = mpsc::channel(KEYS);
    let read = move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    };
    let started = thread::Builder::new().name("evalpool-keys".into()).spawn(read);
    started.map_err(|error| Exit::failed(format!("no thread can be started: {error}")))?;
    Ok(receiver)
}
