//! Connections: how many, how long a client may stall, and how they end.
//!
//! axum's own `serve` bounds neither the number of connections nor the time to read a request's head. Here each
//! connection holds one of `service.max_connections` slots, and the server waits for nothing without a bound:
//!
//! | the client | bound |
//! |---|---|
//! | is silent, or slow with a request's head | [`HEAD`], then the connection ends |
//! | is slow with a request's body | its [pace](super::connections::Pace); [`http`](super::http) answers 408 |
//! | reads the answer slowly | its pace, then the connection ends |
//! | is idle, or behind its pace, while others wait for a connection | gives way: see [`connections`](super::connections) |
//! | leaves while its request is handled | [noticed](stream) after a round trip; the handler's future is dropped |
//! | leaves after sending a second request ahead | noticed once the first is answered, which has bounds of its own |

mod stream;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use self::stream::ClientStream;
use super::connections::{Connection, Connections};
use crate::host_limits::explained;

/// How long a connection may wait for a whole request head, when it is new and between requests.
const HEAD: Duration = Duration::from_secs(30);

/// How long a server that ends keeps sending the answers that are ready.
const FLUSH: Duration = Duration::from_secs(2);

/// Bytes of requests that one connection may buffer; also the largest head.
const BUFFER: usize = 64 * 1024;

/// Bytes of an answer that the system takes for one connection before the client has them; Linux takes twice as many. By
/// itself it takes megabytes, and then says for a long time nothing of a client that reads.
const SEND_BUFFER: u32 = 128 * 1024;

/// Connections that the system keeps until they are accepted.
const BACKLOG: u32 = 1024;

/// Pause after a failure to accept: a lack of file descriptors takes a while to pass.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Listens. The connections have the listener's [`SEND_BUFFER`].
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Else a server that ends could not start again for a minute.
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections and serves `router` on them until `stop`; then sends the answers in progress.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    connections: Arc<Connections>,
    stop: impl Future<Output = ()>,
) {
    let mut tasks = JoinSet::new();
    let graceful = GracefulShutdown::new();
    let accepting = async {
        loop {
            let stream = accept(&listener, &connections).await;
            // One more than may be open is accepted, and waits here: connections beyond wait in the system's queue.
            let place = connections.admit().await;
            let service = Counted { router: TowerToHyperService::new(router.clone()), of: place.connection().clone() };
            let stream = ClientStream::new(stream, place.connection().clone());
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(BUFFER)
                // The stream itself notices who has left.
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service);
            let connection = graceful.watch(connection);
            tasks.spawn(async move {
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended early");
                    },
                    () = place.connection().ended() => tracing::debug!("a connection gave way to another"),
                }
                drop(place);
            });
            while tasks.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop => {}
    }
    drop(listener);
    let _ = timeout(FLUSH, graceful.shutdown()).await;
    // Dropping the set drops the connections that are left, and with them their requests.
}

/// Marks the time in which a request is handled, and tells its handler the connection.
struct Counted {
    router: TowerToHyperService<Router>,
    of: Arc<Connection>,
}

type Answer = <TowerToHyperService<Router> as Service<hyper::Request<Incoming>>>::Response;
type Failure = <TowerToHyperService<Router> as Service<hyper::Request<Incoming>>>::Error;

impl Service<hyper::Request<Incoming>> for Counted {
    type Response = Answer;
    type Error = Failure;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        let connection = self.of.clone();
        connection.begin_work();
        request.extensions_mut().insert(connection.clone());
        let answer = self.router.call(request);
        Box::pin(async move {
            let answer = answer.await;
            connection.end_work();
            answer
        })
    }
}

async fn accept(listener: &TcpListener, connections: &Connections) -> TcpStream {
    let mut warned = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are written whole: Nagle's algorithm would only delay them.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(error = explained(&error, &error), "connections cannot be accepted; trying again");
                }
                connections.relieve();
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
