//! What an operator relies on: tokens, metrics, and an end in order.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use evalpool::metrics::{CATALOGUE, MetricType};
use tempfile::TempDir;

use super::{
    SPIN,
    answer::{Answer, split},
    letter,
    server::{PATIENCE, Server, eventually},
};
use crate::{
    conformance::{IMPORTS, http::http_server},
    dashboards::{HTTP, HTTP_STATUS, PROCESS},
    support::{GREET, wasm},
};

#[test]
fn with_a_token_file_only_its_tokens_are_let_in() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tokens");
    fs::write(&file, "first token\n\n  second \n").unwrap();
    let server = Server::start(&[("SERVICE_TOKEN_FILE", file.to_str().unwrap())]);
    let paths = ["/v1/evaluators", "/v1/evaluators/greet", "/metrics"];
    for path in paths {
        for shown in ["", "Bearer", "Bearer wrong", "Bearer first", "Basic second", "second"] {
            let answer = server.request("GET", path, &[("authorization", shown)], b"");
            answer.is(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
        server.get(path).is(401, "unauthorized");
        for shown in ["Bearer first token", "bearer second"] {
            assert_eq!(server.request("GET", path, &[("authorization", shown)], b"").status, 200, "{shown}");
        }
    }
    server.put("x", &letter('x')).is(401, "unauthorized");
    assert_eq!(server.get("/healthz").status, 200);
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn tokens_are_read_again_when_the_server_is_told_to() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tokens");
    fs::write(&file, "first").unwrap();
    let server = Server::start(&[("SERVICE_TOKEN_FILE", file.to_str().unwrap())]);
    let status = |token: &str| {
        server.request("GET", "/v1/evaluators", &[("authorization", &format!("Bearer {token}"))], b"").status
    };
    assert_eq!((status("first"), status("second")), (200, 401));
    fs::write(&file, "second").unwrap();
    assert_eq!((status("first"), status("second")), (200, 401), "not before");
    server.signal("HUP");
    eventually("the second is a token", || status("second") == 200);
    assert_eq!(status("first"), 401);
    // Nor does who reads the page's events go on with a token of before.
    let begun = server.begin("GET", "/ui/events", "authorization: Bearer second\r\n", b"");
    let mut events = BufReader::new(begun);
    let mut line = String::new();
    events.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    fs::write(&file, "second\nthird").unwrap();
    server.signal("HUP");
    eventually("the third is a token", || status("third") == 200);
    while line != "0\r\n" {
        line.clear();
        assert_ne!(events.read_line(&mut line).unwrap(), 0, "the answer has an end");
    }
    fs::write(&file, "").unwrap();
    server.signal("HUP");
    server.has_logged("the tokens stay as they are");
    assert_eq!(status("second"), 200);
}

#[test]
fn every_metric_is_there_before_anything_has_happened() {
    let server = Server::start(&[]);
    let answer = server.get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    for metric in CATALOGUE {
        let of_type = match metric.kind {
            MetricType::Gauge => "gauge",
            MetricType::Counter => "counter",
            MetricType::Histogram => "histogram",
        };
        assert!(text.contains(&format!("# TYPE {} {of_type}", metric.name)), "{}", metric.name);
    }
    for (prefix, known) in [("process_", PROCESS), ("evalpool_http_", HTTP)] {
        let shown: BTreeSet<_> = text
            .lines()
            .filter(|line| line.starts_with(prefix))
            .filter_map(|line| line.split([' ', '{']).next())
            .collect();
        assert_eq!(shown, known.iter().copied().collect(), "what dashboards and alerts may ask of the server");
    }
    for status in HTTP_STATUS {
        assert!(text.contains(&format!("evalpool_http_requests_total{{status=\"{status}\"}} 0")), "{status}");
    }
    assert_eq!(server.metric("evalpool_evaluators_registered", ""), 1);
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    assert!(server.metric("evalpool_evaluation_seconds_bucket", r#"le="+Inf""#) >= 1);
    assert_eq!(server.metric("evalpool_evaluations_total", r#"outcome="ok""#), 1);
    server.post("greeet", b"").is(404, "not_found");
    let requests =
        HTTP_STATUS.map(|status| server.metric("evalpool_http_requests_total", &format!("status=\"{status}\"")));
    assert_eq!(requests, [1, 0, 1, 0, 0]);
}

#[test]
fn a_server_that_is_told_to_end_drains_first() {
    // The call in flight goes on for as long as this test likes.
    let (entered, inside) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let port = http_server(move |_| {
        entered.send(()).unwrap();
        wait.recv().unwrap();
        "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned()
    });
    let asks = wasm(&format!(
        r#"(module {IMPORTS} (func (export "run") (result i32)
            (call $echo) (drop (call $http (call $output_offset) (i64.const 0))) i32.const 0))"#
    ));
    let mut server =
        Server::start(&[("POOL_GRACE", "10m"), ("LIMITS_EXEC_TIMEOUT", "10m"), ("ENGINE_ALLOWED_HOSTS", "127.0.0.1")]);
    assert_eq!(server.put("asks", &asks).status, 201);
    let request = format!(r#"{{"url":"http://127.0.0.1:{port}/"}}"#);
    let length = format!("content-length: {}\r\n", request.len());
    let call = server.begin("POST", "/v1/evaluators/asks", &length, request.as_bytes());
    inside.recv_timeout(PATIENCE).expect("the guest asks");
    server.signal("TERM");
    eventually("it says that it takes no more", || server.get("/readyz").status == 503);
    server.get("/readyz").is(503, "shutting_down");
    server.post("greet", b"{}").is(503, "shutting_down");
    server.put("x", GREET).is(503, "shutting_down");
    assert_eq!(server.get("/healthz").status, 200, "it is alive");
    // The call in flight ends as it would have.
    go_on.send(()).unwrap();
    let answer = Answer::of(call);
    assert_eq!((answer.status, answer.text()), (200, request.as_str()));
    assert!(server.ended().success());
    assert!(TcpStream::connect(&server.address).is_err());
}

#[test]
fn a_call_that_outlasts_the_grace_is_interrupted_and_answered() {
    let mut server = Server::start(&[("POOL_GRACE", "200ms"), ("LIMITS_EXEC_TIMEOUT", "10m")]);
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    let call = server.begin_evaluation("spin");
    server.signal("INT");
    Answer::of(call).is(503, "shutting_down");
    assert!(server.ended().success());
}

#[test]
fn a_second_signal_ends_the_grace() {
    let mut server = Server::start(&[("POOL_GRACE", "10m"), ("LIMITS_EXEC_TIMEOUT", "10m")]);
    assert_eq!(server.put("spin", &wasm(SPIN)).status, 201);
    let call = server.begin_evaluation("spin");
    server.signal("TERM");
    eventually("it drains", || server.get("/readyz").status == 503);
    server.signal("TERM");
    Answer::of(call).is(503, "shutting_down");
    assert!(server.ended().success());
}

#[test]
fn a_signal_in_the_middle_of_a_load_ends_in_order() {
    let mut server = Server::start(&[]);
    let (ok, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // Until the listener is gone. An answer that has begun comes whole.
                while let Ok(mut stream) = TcpStream::connect(&server.address) {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let request = "POST /v1/evaluators/greet HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                                   content-length: 14\r\n\r\n{\"name\":\"Ada\"}";
                    let mut answer = Vec::new();
                    if stream.write_all(request.as_bytes()).is_err() || stream.read_to_end(&mut answer).is_err() {
                        continue;
                    }
                    match split(&answer) {
                        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => {
                            assert_eq!(body, br#"{"greeting":"Hello, Ada!"}"#);
                            ok.fetch_add(1, Ordering::Relaxed);
                        }
                        Some((head, _)) => {
                            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        // Was never accepted.
                        None => assert!(answer.is_empty()),
                    }
                }
            });
        }
        eventually("the load is on", || ok.load(Ordering::Relaxed) > 50);
        server.signal("TERM");
    });
    assert!(server.ended().success(), "{}", server.log());
    server.has_logged("ended");
}
