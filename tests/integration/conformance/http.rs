//! `http_request` against a server of this process: on `direct`, and on `extism` where it has its HTTP client.

use std::{
    io::{Read, Write},
    net::TcpListener,
    time::Duration,
};

use evalpool::{
    HostFunction, Isolation,
    config::EngineKind,
    engine::{Val, ValType},
};

use super::{answers, pool, with_functions};

/// The engines that have an HTTP client.
const ENGINES: &[EngineKind] =
    if cfg!(feature = "extism-http") { &crate::support::ENGINES } else { &[EngineKind::Direct] };

/// Answers each connection with what `answer` makes of the request's head and body.
pub(crate) fn http_server<A: Into<Vec<u8>>>(answer: impl Fn(&str) -> A + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let read = stream.read(&mut buffer).unwrap_or(0);
                request.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&request);
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    if read == 0 {
                        break;
                    }
                    continue;
                };
                let length =
                    head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                if body.len() >= length.unwrap_or(0) {
                    let _ = stream.write_all(&answer(&text).into());
                    break;
                }
            }
        }
    });
    port
}

/// Makes the request that its input is, a body of `colour` with it if it is longer than 100 bytes, and gives status,
/// headers and body.
const REQUESTER: &str = "
    (call $body (call $http (call $copy_of_input)
        (if (result i64) (i64.gt_u (call $input_length) (i64.const 100)) (then (call $colour)) (else (i64.const 0)))))
    i32.const 0";
const REQUESTER_FUNCTIONS: &str = "
    (func $copy_of_input (result i64) (call $echo) (call $output_offset))
    (func $body (param $b i64)
        (if (i32.eq (call $status) (i32.const 201)) (then (call $block (call $headers))) (else
        (if (i32.eq (call $status) (i32.const 404)) (then (call $out (i64.const 404))) (else
            (call $block (local.get $b)))))))";

/// What a request must come to on both engines.
enum Expected {
    Output(&'static [u8]),
    /// The request fails, with these words among its engine's.
    Fault(&'static str),
    /// The evaluation ends, with this kind.
    Ended(&'static str),
}

use Expected::{Ended, Fault, Output};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_speak_http_alike() {
    let port = http_server(|request| {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let tagged = head.to_lowercase().contains("x-tag: yes");
        match path {
            "/missing" => "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno".to_owned(),
            "/headers" => {
                "HTTP/1.1 201 Created\r\nx-one: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
            }
            "/away" => {
                "HTTP/1.1 302 Found\r\nlocation: /here\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
            }
            "/large" => format!(
                "HTTP/1.1 200 OK\r\ncontent-length: 40000000\r\nconnection: close\r\n\r\n{}",
                "x".repeat(40_000_000)
            ),
            "/never" => loop {
                std::thread::park();
            },
            _ => {
                let text = format!("{method} {path} {tagged} {body}");
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len())
            }
        }
    });
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let requests = [
        (format!(r#"{{"url":"{}"}}"#, url("/get")), Output(b"GET /get false ")),
        (
            format!(
                r#"{{"url":"{}","method":"put","headers":{{"x-tag":"yes","x-long":"{}"}}}}"#,
                url("/put"),
                "y".repeat(60)
            ),
            Output(b"PUT /put true colour"),
        ),
        (format!(r#"{{"url":"{}"}}"#, url("/missing")), Output(&[148, 1, 0, 0, 0, 0, 0, 0])),
        (
            format!(r#"{{"url":"{}"}}"#, url("/headers")),
            Output(br#"{"connection":"close","content-length":"0","x-one":"1"}"#),
        ),
        (format!(r#"{{"url":"{}"}}"#, url("/away")), Output(b"GET /here false ")),
        (format!(r#"{{"url":"{}"}}"#, url("/large")), Fault("exceeds the configured maximum number of bytes")),
        (format!(r#"{{"url":"{}"}}"#, url("/never")), Ended("exec_timeout")),
        (r#"{"url":"http://example.org/"}"#.to_owned(), Fault("HTTP request to http://example.org/ is not allowed")),
        (r#"{"url":"no url"}"#.to_owned(), Fault("Invalid URL")),
        ("0123456789".to_owned(), Fault("")),
        (r#"{"uri":"x"}"#.to_owned(), Fault("unknown field `uri`")),
    ];
    for (request, expected) in requests {
        let mut spec = with_functions(REQUESTER_FUNCTIONS, REQUESTER).allowed_hosts(["127.0.0.1"]);
        if request.contains("/never") {
            spec = spec.exec_timeout(Duration::from_millis(300));
        }
        let mut given = Vec::new();
        for &engine in ENGINES {
            let pool = pool(engine);
            given.push(answers(&pool, spec.clone(), &[request.as_bytes()]).await.remove(0));
            pool.close().await;
        }
        for (engine, answer) in ENGINES.iter().zip(&given) {
            match (&expected, answer) {
                (Output(output), Ok(given)) => assert_eq!(given, output, "{request:.200}"),
                (Ended(wanted), Err((given, _))) => assert_eq!(given, wanted, "{request:.200}"),
                (Fault(words), Err((given, text))) => {
                    // To Extism it is the plugin that says this.
                    let kind = if *engine == EngineKind::Direct { "guest_trap" } else { "guest_error" };
                    assert!(given == kind && text.contains(words), "{request:.200}: {given} {text}");
                }
                _ => panic!("{request:.200}: {answer:?}"),
            }
        }
    }
}

/// On `direct` alone: extism frees the request before it looks for the body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_may_be_its_own_body() {
    let port = http_server(|request| {
        let (_, body) = request.split_once("\r\n\r\n").unwrap();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    });
    let request = format!(r#"{{"url":"http://127.0.0.1:{port}/","method":"POST"}}"#);
    let functions = format!(
        "{REQUESTER_FUNCTIONS} (func $same (param $p i64) (result i64) (call $http (local.get $p) (local.get $p)))"
    );
    let pool = pool(EngineKind::Direct);
    let spec = with_functions(&functions, "(call $block (call $same (call $copy_of_input))) i32.const 0")
        .allowed_hosts(["127.0.0.1"]);
    let given = answers(&pool, spec, &[request.as_bytes()]).await;
    pool.close().await;
    assert_eq!(given, [Ok(request.into_bytes())]);
}

#[tokio::test]
async fn a_request_at_a_wild_offset_is_the_guests_own_error() {
    for &engine in ENGINES {
        let pool = pool(engine);
        let spec = with_functions("", "(drop (call $http (i64.const 999) (i64.const 0))) i32.const 0");
        let (kind, text) = answers(&pool, spec, &[b""]).await.remove(0).unwrap_err();
        assert_eq!(kind, "guest_error");
        assert!(text.contains("invalid handle offset for http request: 999"), "{engine:?}: {text}");
        pool.close().await;
    }
}

/// Makes the request that its input is, or none if it is empty, and gives the status that it then knows.
const STATUS: &str = "
    (if (i64.gt_u (call $input_length) (i64.const 0)) (then (drop (call $http (call $copy_of_input) (i64.const 0)))))
    (call $out (i64.extend_i32_u (call $status))) i32.const 0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_evaluation_sees_the_response_of_another() {
    let port = http_server(|_| "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_owned());
    let request = format!(r#"{{"url":"http://127.0.0.1:{port}/"}}"#);
    for &engine in ENGINES {
        for isolation in [Isolation::Fresh, Isolation::Reuse] {
            let pool = pool(engine);
            let spec = with_functions(REQUESTER_FUNCTIONS, STATUS).allowed_hosts(["127.0.0.1"]);
            let given = answers(&pool, spec.isolation(isolation), &[request.as_bytes(), b""]).await;
            let status = |status: u64| Ok(status.to_le_bytes().to_vec());
            assert_eq!(given, [status(204), status(0)], "{engine:?} {isolation:?}");
            pool.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn this_machine_is_reached_only_by_its_name_on_direct() {
    let port = http_server(|_| "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi".to_owned());
    let away = http_server(move |_| {
        let to = format!("http://127.0.0.1:{port}/");
        format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    });
    for (hosts, url, reached) in [
        (vec!["*"], format!("http://127.0.0.1:{port}/"), false),
        (vec!["*"], format!("http://localhost:{port}/"), false),
        (vec!["127.0.0.1"], format!("http://127.0.0.1:{port}/"), true),
        (vec!["local*", "localhost"], format!("http://localhost:{port}/"), true),
        (vec!["*", "localhost"], format!("http://localhost:{away}/"), false),
    ] {
        let pool = pool(EngineKind::Direct);
        let spec = with_functions(REQUESTER_FUNCTIONS, REQUESTER).allowed_hosts(hosts.clone());
        let request = format!(r#"{{"url":"{url}"}}"#);
        let given = answers(&pool, spec, &[request.as_bytes()]).await.remove(0);
        match given {
            Ok(body) => assert!(reached && body == b"hi", "{hosts:?} {url}"),
            Err((kind, text)) => assert!(!reached && kind == "guest_trap", "{hosts:?} {url}: {text}"),
        }
        pool.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedders_own_http_request_goes_before_ours() {
    let own = HostFunction::new("http_request", [ValType::I64, ValType::I64], [ValType::I64], |memory, _| {
        Ok(vec![Val::I64(memory.write(b"mine")?.cast_signed())])
    });
    for engine in crate::support::ENGINES {
        let pool = pool(engine);
        let spec =
            with_functions(REQUESTER_FUNCTIONS, REQUESTER).host_function(own.clone().in_module("extism:host/env"));
        assert_eq!(answers(&pool, spec, &[b"x"]).await, [Ok(b"mine".to_vec())], "{engine:?}");
        pool.close().await;
    }
}
