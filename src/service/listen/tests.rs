//! Real connections on loopback, mostly on a paused clock.

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
async fn a_connection_that_is_idle_ends_when_the_system_is_short_of_files() {
    let served = served(8);
    let (older, newer) = (served.connect().await, served.connect().await);
    for stream in [&older, &newer] {
        send(stream, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(is_answered(&receive(stream, is_answered).await));
        sleep(Duration::from_secs(2)).await;
    }
    served.connections.relieve();
    assert_eq!(receive(&older, |_| false).await, b"");
    send(&newer, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(is_answered(&receive(&newer, is_answered).await));
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
        assert!(answer.starts_with(&format!("{version} 200 OK\r\n")) && answer.ends_with("\r\n\r\nhere"), "{answer}");
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
    for way in ["closes", "ends its side first", "resets"] {
        let mut stream = served.connect().await;
        send(&stream, b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.is_at_work(1).await;
        match way {
            "ends its side first" => stream.shutdown().await.unwrap(),
            "resets" => stream.set_zero_linger().unwrap(),
            _ => {}
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
