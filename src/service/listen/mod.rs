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
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are written whole: Nagle's algorithm would only delay them.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                connections.relieve();
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, net::SocketAddr};

    use axum::{body::Bytes, routing::get};
    use tokio::{io::AsyncWriteExt, sync::oneshot, task::JoinHandle, time::Instant};

    use super::*;

    /// More than the system buffers for a connection.
    const LARGE: usize = 64 * 1024 * 1024;

    /// Bytes a second.
    const RATE: u64 = 1024 * 1024;

    struct Served {
        address: SocketAddr,
        /// Ends one request for `/held`.
        held: Arc<tokio::sync::Notify>,
        connections: Arc<Connections>,
        _stop: oneshot::Sender<()>,
        _server: JoinHandle<()>,
    }

    fn served(max_connections: usize) -> Served {
        served_within(max_connections, Duration::from_mins(1))
    }

    fn served_within(max_connections: usize, whole: Duration) -> Served {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let held = Arc::new(tokio::sync::Notify::new());
        let waited = held.clone();
        let router = Router::new()
            .route("/", get(async || "here"))
            .route("/large", get(async || Bytes::from(vec![0; LARGE])))
            .route(
                "/held",
                get(async move || {
                    waited.notified().await;
                    "here"
                }),
            );
        let connections = Connections::bounded(max_connections, 1 << 20, RATE, whole);
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(listener, router, connections.clone(), async {
            let _ = stopped.await;
        }));
        Served { address, held, connections, _stop: stop, _server: server }
    }

    impl Served {
        async fn connect(&self) -> TcpStream {
            let socket = TcpSocket::new_v4().unwrap();
            // So that the system takes little of an answer that is not read.
            socket.set_recv_buffer_size(64 * 1024).unwrap();
            socket.connect(self.address).await.unwrap()
        }

        /// Waits until so many requests are being handled.
        async fn is_at_work(&self, requests: usize) {
            while self.connections.at_work() != requests {
                tokio::task::yield_now().await;
            }
        }

        /// Waits until the only connection has begun to write its answer.
        async fn is_written_to(&self) {
            while self.connections.writing() != 1 {
                tokio::task::yield_now().await;
            }
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
        let served = served(8);
        for begun in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\nx-more: "] {
            let stream = served.connect().await;
            send(&stream, begun).await;
            assert_eq!(receive(&stream, |_| false).await, b"", "after {begun:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_used_again_and_let_go_when_nothing_more_comes() {
        let served = served(8);
        let stream = served.connect().await;
        for _ in 0..2 {
            send(&stream, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert!(is_answered(&receive(&stream, is_answered).await));
        }
        assert_eq!(receive(&stream, |_| false).await, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_over_the_bound_waits_while_all_are_at_work() {
        let served = served(1);
        let first = served.connect().await;
        send(&first, b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.is_at_work(1).await;
        let second = served.connect().await;
        send(&second, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(timeout(HEAD * 2, receive(&second, is_answered)).await.is_err());
        served.held.notify_one();
        assert!(is_answered(&receive(&first, is_answered).await));
        assert!(is_answered(&receive(&second, is_answered).await), "the first is idle now");
        assert_eq!(receive(&first, |_| false).await, b"");
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_ends_the_connection_that_is_idle_longest() {
        let served = served(3);
        let mut idle = Vec::new();
        for _ in 0..2 {
            let stream = served.connect().await;
            send(&stream, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert!(is_answered(&receive(&stream, is_answered).await));
            idle.push(stream);
            sleep(Duration::from_secs(1)).await;
        }
        // The older of the two is not idle any more, and then is so for less long than the other.
        send(&idle[0], b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(is_answered(&receive(&idle[0], is_answered).await));
        let works = served.connect().await;
        send(&works, b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.is_at_work(1).await;
        let newcomer = served.connect().await;
        send(&newcomer, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(is_answered(&receive(&newcomer, is_answered).await));
        assert_eq!(receive(&idle[1], |_| false).await, b"", "it was idle longest");
        send(&idle[0], b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(is_answered(&receive(&idle[0], is_answered).await));
        served.held.notify_one();
        assert!(is_answered(&receive(&works, is_answered).await), "what was at work has ended as it would have");
        assert_eq!(served.connections.figures(), (3, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answer_is_let_go() {
        let served = served(1);
        let deaf = served.connect().await;
        send(&deaf, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.is_written_to().await;
        // Before anybody wants its place, and although the client stays connected.
        let began = Instant::now();
        while served.connections.figures().0 > 0 {
            sleep(Duration::from_millis(100)).await;
        }
        assert!((14..=16).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        assert!(receive(&deaf, |_| false).await.len() < LARGE);
    }

    /// One byte now and then is no patience without end.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_its_answer_byte_by_byte_is_let_go() {
        let served = served(1);
        let slow = served.connect().await;
        send(&slow, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.is_written_to().await;
        let began = Instant::now();
        while served.connections.figures().0 > 0 {
            sleep(Duration::from_millis(100)).await;
            let _ = slow.try_read(&mut [0]);
        }
        assert!((14..=16).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn an_answer_has_a_total_time_however_steadily_it_is_read() {
        let served = served_within(1, Duration::from_secs(1));
        let slow = served.connect().await;
        let began = Instant::now();
        send(&slow, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.is_written_to().await;
        let mut read = 0;
        // Faster than the least rate.
        while served.connections.figures().0 > 0 {
            read += receive(&slow, |all| all.len() >= 64 * 1024).await.len();
            sleep(Duration::from_millis(10)).await;
        }
        assert!(began.elapsed() >= Duration::from_secs(1) && read < LARGE, "{:?}, {read}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_behind_gives_way_to_a_newcomer() {
        let served = served(1);
        let deaf = served.connect().await;
        send(&deaf, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.is_written_to().await;
        let next = served.connect().await;
        let began = Instant::now();
        send(&next, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(is_answered(&receive(&next, is_answered).await));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_client_that_ends_its_own_side_is_answered() {
        let served = served(1);
        for head in ["GET /held HTTP/1.1\r\nhost: x\r\n\r\n", "GET /held HTTP/1.0\r\n\r\n"] {
            let mut stream = served.connect().await;
            send(&stream, head.as_bytes()).await;
            stream.shutdown().await.unwrap();
            served.is_at_work(1).await;
            // The byte that is sent ahead, and the rest when the handler is done.
            let begun = receive(&stream, |all| !all.is_empty()).await;
            assert_eq!(begun, b"H");
            served.held.notify_one();
            let answer = [begun, receive(&stream, |_| false).await].concat();
            let answer = String::from_utf8(answer).unwrap();
            let version = &head[head.find("HTTP").unwrap()..][..8];
            assert!(
                answer.starts_with(&format!("{version} 200 OK\r\n")) && answer.ends_with("\r\n\r\nhere"),
                "{answer}"
            );
        }
        // One that was answered before its side ended, and one that has sent another request ahead.
        let mut stream = served.connect().await;
        send(&stream, b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET /held HTTP/1.1\r\nhost: x\r\n\r\n").await;
        stream.shutdown().await.unwrap();
        assert!(is_answered(&receive(&stream, is_answered).await));
        served.held.notify_one();
        assert!(is_answered(&receive(&stream, |_| false).await));
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_its_request() {
        let served = served(1);
        for half_first in [false, true] {
            let mut stream = served.connect().await;
            send(&stream, b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await;
            served.is_at_work(1).await;
            if half_first {
                stream.shutdown().await.unwrap();
            }
            drop(stream);
            served.is_at_work(0).await;
        }
        // Nobody has taken the signal.
        served.held.notify_one();
        let stream = served.connect().await;
        send(&stream, b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(is_answered(&receive(&stream, is_answered).await));
    }
}
