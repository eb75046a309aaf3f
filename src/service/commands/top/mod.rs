//! `evalpool top`: what a server does, in a terminal. It shows what the server's page shows, and reads it from the same
//! requests.
//!
//! | file | what it holds |
//! |---|---|
//! | [`server`] | what is asked of the server |
//! | [`told`] | what it tells |
//! | [`state`] | what is shown, and what keys do to it |
//! | [`draw`] | how it is drawn |
//! | [`words`] | figures and texts in columns |
//! | [`screen`] | the terminal |

mod draw;
mod screen;
mod server;
mod state;
mod told;
mod words;

use std::{
    future::pending,
    io::{IsTerminal, stdout},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};

use self::{
    screen::{Screen, inputs},
    server::{Event, Events, Refusal, Server, Told},
    state::{After, State, Wanted},
};
use super::signals::{self, Signals};
use crate::{
    config::ServiceSettings,
    service::{Exit, cli::TopArguments},
};

/// Between two questions for the same; ten times as long as the answer took if that is more: the server looks through all of
/// its evaluators.
const AGAIN: Duration = Duration::from_secs(2);

/// The most that is waited before the next question.
const AT_LAST: Duration = Duration::from_secs(30);

/// Before the stream is asked for again that has ended.
const PAUSE: Duration = Duration::from_secs(1);

pub(in crate::service) async fn top(arguments: TopArguments, service: &ServiceSettings) -> Result<(), Exit> {
    let server = Arc::new(server(arguments, service)?);
    if !stdout().is_terminal() {
        return Err(Exit::unusable("top draws on a terminal, and standard output is none"));
    }
    // Before the terminal is taken: what is wrong is said where it was typed.
    let events = server.events(0).await.map_err(|why| Exit::failed(format!("{}: {why}", server.shown())))?;
    let (mut signals, mut hangup) = (Signals::new()?, signals::hangup()?);
    let mut state = State::new(server.shown());
    let (told, mut heard) = mpsc::channel(1);
    // It ends with the program's threads.
    tokio::spawn(read(server.clone(), events, told));
    let mut asking = Asking::new(server);
    let mut screen = Screen::take()?;
    let mut inputs = inputs()?;
    // How long the server is away, and how long ago things were.
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        screen.draw(&mut state)?;
        // What there is room for is known once it is drawn.
        let wanted = state.wanted();
        tokio::select! {
            () = signals.next() => return Ok(()),
            // The terminal may be there all the same, and is given back.
            _ = hangup.recv() => return Ok(()),
            input = inputs.recv() => match input {
                Some(input) if state.handle(&input) == After::Stay => {}
                Some(_) => return Ok(()),
                None => return Err(Exit::failed("the terminal cannot be read any more")),
            },
            Some(event) = heard.recv() => state.hear(event),
            answer = asking.answer(&wanted) => state.take(&wanted, answer),
            _ = seconds.tick() => {}
        }
    }
}

/// The server that the command line names, or the one of the settings. A token of the settings goes to that one alone.
fn server(arguments: TopArguments, service: &ServiceSettings) -> Result<Server, Exit> {
    let TopArguments { url, token_file } = arguments;
    match url {
        Some(url) => Server::new(&url, token_file),
        None if service.listen.port() == 0 => {
            Err(Exit::unusable("service.listen has no port of its own; name the server by --url"))
        }
        None => {
            let address = match service.listen.ip() {
                // No request can be sent to the unspecified address.
                ip if ip.is_unspecified() => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), service.listen.port()),
                _ => service.listen,
            };
            Server::new(&format!("http://{address}"), token_file.or_else(|| service.token_file.clone()))
        }
    }
}

/// Reads the stream, and asks for it again whenever it ends.
async fn read(server: Arc<Server>, events: Events, told: mpsc::Sender<Result<Event, Refusal>>) {
    let (mut events, mut next) = (Ok(events), 0);
    loop {
        let why = match events {
            Ok(mut stream) => loop {
                match stream.next().await {
                    Ok(event) => {
                        if let Event::Samples(samples) = &event {
                            next = samples.last().map_or(next, |last| last.number.saturating_add(1));
                        }
                        if told.send(Ok(event)).await.is_err() {
                            return;
                        }
                    }
                    Err(why) => break why,
                }
            },
            Err(why) => why,
        };
        if told.send(Err(why)).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
        events = server.events(next).await;
    }
}

type Answer = Result<Told, Refusal>;

/// What is asked, until it is answered.
type Question = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// One question at a time, asked again and again until another one is wanted.
struct Asking {
    server: Arc<Server>,
    pending: Option<(Wanted, Question)>,
    began: Instant,
    /// What was answered last, and when it may be asked again.
    last: Option<(Wanted, Instant)>,
}

impl Asking {
    fn new(server: Arc<Server>) -> Self {
        Self { server, pending: None, began: Instant::now(), last: None }
    }

    /// The next answer to this. Dropped, it goes on when it is called again; a question for something else is given up.
    async fn answer(&mut self, wanted: &Wanted) -> Answer {
        if self.pending.as_ref().is_none_or(|(asked, _)| asked != wanted) {
            self.pending = None;
            if let Some((_, due)) = self.last.as_ref().filter(|(answered, _)| answered == wanted) {
                sleep_until(*due).await;
            }
            let (server, asked) = (self.server.clone(), wanted.clone());
            self.began = Instant::now();
            self.pending = Some((wanted.clone(), Box::pin(async move { server.ask(&asked).await })));
        }
        let Some((_, asked)) = &mut self.pending else { return pending().await };
        let answer = asked.as_mut().await;
        self.pending = None;
        let pause = self.began.elapsed().saturating_mul(10).clamp(AGAIN, AT_LAST);
        self.last = Some((wanted.clone(), Instant::now() + pause));
        answer
    }
}
