//! A connection as hyper reads and writes it: answers keep a pace, and a client that leaves is noticed.
//!
//! # Who has left
//!
//! A client that closes and one that only ends its own side (`nc -N`, a proxy) look the same: nothing more will come. They
//! differ when something is sent to them: the system of one that has closed answers with a reset. So when a client's side
//! ends while its request is handled, the first byte of the answer is sent ahead. It is the same for every answer, `H` of
//! `HTTP/1.1`. Who is still there waits for the rest; who is not is known to have left, after one round trip.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, Sleep, sleep_until},
};

use crate::service::connections::{Connection, Pace};

/// With what every answer begins.
const FIRST: &[u8] = b"H";

pub(super) struct ClientStream {
    connection: Arc<Connection>,
    reading: Reading,
    writing: OwnedWriteHalf,
    ahead: Ahead,
    /// Of the answer that is being written.
    pace: Option<Pace>,
    /// The timer of a write that waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

enum Reading {
    Open(OwnedReadHalf),
    /// The client's side has ended; the future ends with the connection.
    Ended(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// The first byte of an answer, sent ahead of the rest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ahead {
    No,
    Due,
    Sent,
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        let (reading, writing) = stream.into_split();
        Self { connection, reading: Reading::Open(reading), writing, ahead: Ahead::No, pace: None, stalled: None }
    }

    /// Fails when the client has left. Otherwise wakes the task when it may have.
    fn watch(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Reading::Open(stream) = &mut self.reading {
            let mut byte = [0];
            match stream.poll_peek(context, &mut ReadBuf::new(&mut byte)) {
                // A request sent ahead hides what comes after it.
                Poll::Pending | Poll::Ready(Ok(1..)) => return Ok(()),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(0)) => {}
            }
            self.ahead = Ahead::Due;
            self.end_reading();
        }
        if let Reading::Ended(reset) = &mut self.reading
            && reset.as_mut().poll(context).is_ready()
        {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.ahead == Ahead::Due
            && let Poll::Ready(sent) = Pin::new(&mut self.writing).poll_write(context, FIRST)
            && sent? > 0
        {
            self.ahead = Ahead::Sent;
        }
        Ok(())
    }

    fn end_reading(&mut self) {
        // Takes the half out of its place, which gets the future that has it.
        let none: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(std::future::pending());
        if let Reading::Open(stream) = std::mem::replace(&mut self.reading, Reading::Ended(none)) {
            self.reading = Reading::Ended(Box::pin(async move {
                let _ = stream.ready(Interest::ERROR).await;
            }));
        }
    }

    /// Writes at the answer's pace.
    fn paced(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut OwnedWriteHalf>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let pace = self.pace.get_or_insert_with(|| self.connection.pace());
        let too_slow = || Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly")));
        match write(Pin::new(&mut self.writing), context) {
            Poll::Ready(Ok(bytes)) => {
                pace.moved(bytes);
                if Instant::now() > pace.deadline() { too_slow() } else { Poll::Ready(Ok(bytes)) }
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let deadline = pace.deadline();
                if !self.connection.is_working() {
                    self.connection.writes(pace.due());
                }
                let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                ready!(timer.as_mut().poll(context));
                too_slow()
            }
        }
    }

    /// The first of `slices` that has bytes, less the byte that was sent ahead.
    fn rest<'a>(&self, slices: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
        let mut filled = slices.filter(|slice| !slice.is_empty());
        filled.next().filter(|_| self.ahead == Ahead::Sent)?.get(FIRST.len()..)
    }

    fn write_rest(&mut self, context: &mut Context<'_>, rest: &[u8]) -> Poll<io::Result<usize>> {
        let written = if rest.is_empty() {
            0
        } else {
            ready!(self.paced(context, |stream, context| stream.poll_write(context, rest)))?
        };
        self.ahead = Ahead::No;
        Poll::Ready(Ok(written + FIRST.len()))
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.reading {
            Reading::Open(stream) => Pin::new(stream).poll_read(context, buffer),
            Reading::Ended(_) => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.rest([bytes].into_iter()) {
            Some(rest) => self.write_rest(context, rest),
            None => self.paced(context, |stream, context| stream.poll_write(context, bytes)),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.rest(slices.iter().map(|slice| &**slice)) {
            Some(rest) => self.write_rest(context, rest),
            None => self.paced(context, |stream, context| stream.poll_write_vectored(context, slices)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.writing.is_write_vectored()
    }

    /// hyper calls this when it has nothing left to write, and each time that the connection is driven.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stalled = None;
        let has_written = self.pace.take().is_some();
        if self.connection.is_working() {
            return Poll::Ready(self.watch(context));
        }
        if has_written {
            self.connection.rests();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writing).poll_shutdown(context)
    }
}
