//! Connections: how many, how long a client may stall, and how they end.
//!
//! axum's own `serve` bounds neither the number of connections nor the time to read a request's head. Here each
//! connection holds one of `service.max_connections` slots, and the server waits for nothing without a bound:
//!
//! | the client | bound |
//! |---|---|
//! | is silent, or slow with a request's head | [`HEAD`], then the connection ends |
//! | is slow with a request's body | [`http`](super::http) answers 408 |
//! | does not read the answer | [`WRITE`], then the connection ends |
//! | leaves while its request is handled | hyper notices at once and drops the handler's future |
//! | leaves after sending a second request ahead | noticed once the first is answered, which has bounds of its own |

mod writes;

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use self::writes::BoundedWrites;

/// How long a connection may wait for a whole request head, when it is new and between requests.
const HEAD: Duration = Duration::from_secs(30);

/// How long a client may leave an answer unread.
const WRITE: Duration = Duration::from_secs(30);

/// How long a server that ends keeps sending the answers that are ready.
const FLUSH: Duration = Duration::from_secs(2);

/// Bytes of requests that one connection may buffer; also the largest head.
const BUFFER: usize = 64 * 1024;

/// Pause after a failure to accept: a lack of file descriptors takes a while to pass.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Accepts connections and serves `router` on them until `stop`; then sends the answers in progress.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    max_connections: usize,
    stop: impl Future<Output = ()>,
) {
    let mut connections = JoinSet::new();
    let graceful = GracefulShutdown::new();
    let accepting = async {
        let slots = Arc::new(Semaphore::new(max_connections));
        // Take the slot first: connections beyond the bound wait in the system's queue.
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let stream = accept(&listener).await;
            let service = TowerToHyperService::new(router.clone());
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(BUFFER)
                .serve_connection(TokioIo::new(BoundedWrites::new(stream, WRITE)), service);
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended early");
                }
                drop(slot);
            });
            while connections.try_join_next().is_some() {}
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

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are written whole: Nagle's algorithm would only delay them.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, net::SocketAddr};

    use axum::{body::Bytes, routing::get};
    use tokio::{sync::oneshot, task::JoinHandle};

    use super::*;

    /// More than the system buffers for a connection.
    const LARGE: usize = 64 * 1024 * 1024;

    struct Served {
        address: SocketAddr,
        _stop: oneshot::Sender<()>,
        _server: JoinHandle<()>,
    }

    async fn served(max_connections: usize) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router =
            Router::new().route("/", get(async || "here")).route("/large", get(async || Bytes::from(vec![0; LARGE])));
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(listener, router, max_connections, async {
            let _ = stopped.await;
        }));
        Served { address, _stop: stop, _server: server }
    }

    impl Served {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }
    }

    async fn send(stream: &TcpStream, bytes: &[u8]) {
        let mut sent = 0;
        while sent < bytes.len() {
            stream.writable().await.unwrap();
            match stream.try_write(&bytes[sent..]) {
                Ok(more) => sent += more,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }

    /// Receives until `enough`, or until the server closes.
    async fn receive(stream: &TcpStream, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut all = Vec::new();
        while !enough(&all) {
            stream.readable().await.unwrap();
            let mut some = [0; 4096];
            match stream.try_read(&mut some) {
                Ok(0) => break,
                Ok(more) => all.extend_from_slice(&some[..more]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        all
    }

    fn is_answered(bytes: &[u8]) -> bool {
        bytes.ends_with(b"here")
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_silent_or_never_ends_its_head_is_let_go() {
        let served = served(8).await;
        for begun in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\nx-more: "] {
            let stream = served.connect().await;
            send(&stream, begun).await;
            assert_eq!(receive(&stream, |_| false).await, b"", "after {begun:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_used_again_and_let_go_when_nothing_more_comes() {
        let served = served(8).await;
        let stream = served.connect().await;
        for _ in 0..2 {
            send(&stream, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert!(is_answered(&receive(&stream, is_answered).await));
        }
        assert_eq!(receive(&stream, |_| false).await, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_over_the_bound_waits_for_one_to_end() {
        let served = served(1).await;
        let first = served.connect().await;
        send(&first, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(is_answered(&receive(&first, is_answered).await));
        let second = served.connect().await;
        send(&second, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(timeout(HEAD / 2, receive(&second, is_answered)).await.is_err());
        drop(first);
        assert!(is_answered(&receive(&second, is_answered).await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answer_is_let_go() {
        let served = served(1).await;
        let deaf = served.connect().await;
        send(&deaf, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
        // The only slot comes free although the first client stays connected.
        let next = served.connect().await;
        send(&next, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(is_answered(&receive(&next, is_answered).await));
        assert!(receive(&deaf, |_| false).await.len() < LARGE);
    }
}
