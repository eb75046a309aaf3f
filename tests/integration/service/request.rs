//! Requests that are refused before any plugin is asked, and what may be asked where.

use std::{
    io::{ErrorKind, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    answer::Answer,
    letter,
    server::{PATIENCE, Server},
};

#[test]
fn a_body_over_its_limit_is_refused_however_it_is_sent() {
    let server = Server::start(&[("LIMITS_PLUGIN_SIZE", "100KiB"), ("LIMITS_INPUT_SIZE", "50KiB")]);
    for (method, limit, shown) in [("PUT", 100 * 1024, "100 KiB"), ("POST", 50 * 1024, "50 KiB")] {
        let path = "/v1/evaluators/greet";
        // Announced, and not a byte of it sent: answered all the same.
        let announced = server.begin(method, path, &format!("content-length: {}\r\n", limit + 1), b"");
        Answer::of(announced).is(413, "payload_too_large");
        // Not announced.
        let chunk = [format!("{:x}\r\n", limit + 1).as_bytes(), &vec![0; limit + 1], b"\r\n0\r\n\r\n"].concat();
        let chunked = server.begin(method, path, "transfer-encoding: chunked\r\n", &chunk);
        Answer::of(chunked).is(413, "payload_too_large");
        // Sent whole by a client that reads nothing until then: it is answered, not cut off.
        let answer = server.request(method, path, &[], &vec![0; 20 << 20]);
        answer.is(413, "payload_too_large");
        assert!(answer.json()["detail"].as_str().unwrap().ends_with(shown));
    }
    assert_eq!(server.post("greet", &vec![b' '; 50 * 1024]).kind(), "guest_error", "just within its limit");
    server.put("greet", &vec![0; 100 * 1024]).is(422, "invalid_plugin");
}

/// Each piece of a body counts, not only the first.
#[test]
fn bodies_that_are_being_sent_are_bounded_in_sum() {
    let server = Server::start(&[
        ("LIMITS_INPUT_SIZE", "80KiB"),
        ("LIMITS_OUTPUT_SIZE", "80KiB"),
        ("LIMITS_PLUGIN_SIZE", "64KiB"),
        ("SERVICE_BODY_MEMORY", "640KiB"),
    ]);
    let piece = [b"9c40\r\n".as_slice(), &vec![b' '; 40_000], b"\r\n"].concat();
    // Eleven of 80,000 bytes, where there is room for 640 KiB beside the 16 KiB that each has of its own; eleven of half
    // as many would fit.
    let sent: Vec<TcpStream> = (0..11)
        .map(|_| server.begin("POST", "/v1/evaluators/greet", "transfer-encoding: chunked\r\n", &piece.repeat(2)))
        .collect();
    let answered = |stream: &TcpStream| {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        match stream.peek(&mut [0]) {
            Ok(_) => true,
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => false,
            Err(error) => panic!("{error}"),
        }
    };
    let began = Instant::now();
    let refused = loop {
        if let Some(stream) = sent.iter().find(|stream| answered(stream)) {
            break stream.try_clone().unwrap();
        }
        assert!(began.elapsed() < PATIENCE, "none is refused");
    };
    refused.set_read_timeout(Some(PATIENCE)).unwrap();
    Answer::of(refused).is(429, "saturated");
    drop(sent);
    // Their room comes back with them.
    while server.post("greet", &vec![b' '; 80_000]).kind() == "saturated" {
        assert!(began.elapsed() < PATIENCE, "their room does not come back");
    }
}

#[test]
fn a_refused_request_does_not_cost_the_connection() {
    let server = Server::start(&[]);
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for (request, status) in [
        ("POST /v1/evaluators/nobody HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n", 404),
        ("GET /v1/evaluators/greet HTTP/1.1\r\nhost: localhost\r\n\r\n", 200),
        ("DELETE /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", 405),
        ("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", 200),
    ] {
        stream.write_all(request.as_bytes()).unwrap();
        if request.contains("100000") {
            stream.write_all(&vec![b'x'; 100_000]).unwrap();
        }
        assert_eq!(Answer::of(stream.try_clone().unwrap()).status, status, "{request}");
    }
}

#[test]
fn a_body_that_is_compressed_is_not_taken_for_an_input() {
    let server = Server::start(&[]);
    server.request("POST", "/v1/evaluators/greet", &[("content-encoding", "gzip")], b"{}").is(415, "invalid_request");
    server.request("POST", "/v1/evaluators/greet?timeout=1s", &[], b"{}").is(400, "invalid_request");
}

#[test]
fn names_are_held_to_their_rule_on_every_route() {
    let server = Server::start(&[]);
    let long = "n".repeat(128);
    for (name, file) in
        [("a", "a"), ("A-z_0.9", "a-z_0.9!1"), ("team%2Fapp%2Fv1", "team+app+v1"), ("%41", "a!1"), (&long, &long)]
    {
        assert_eq!(server.put(name, &letter('x')).status, 201, "{name}");
        assert_eq!(server.post(name, b"").text(), "x");
        let decoded = name.replace("%2F", "/").replace("%41", "A");
        assert_eq!(server.info(name)["name"], decoded);
        assert!(server.files("evaluators").contains(&format!("{file}.json")));
        assert_eq!(server.delete(name).status, 204);
    }
    for name in ["a..b", "..", "%2E%2E%2Fetc", "a%20b", "%C3%A9", "%FF", "a%00", "a+b", &"n".repeat(129)] {
        for (method, suffix) in [("PUT", ""), ("POST", ""), ("GET", ""), ("DELETE", ""), ("DELETE", "/runtime")] {
            let path = format!("/v1/evaluators/{name}{suffix}");
            let answer = Answer::of(server.begin(method, &path, "content-length: 0\r\n", b""));
            answer.is(400, "invalid_name");
        }
    }
    assert_eq!(server.names(), ["greet"]);
}

#[test]
fn whoever_is_not_there_is_not_found() {
    let server = Server::start(&[]);
    for (method, path) in [
        ("GET", "/v1/evaluators/nobody"),
        ("POST", "/v1/evaluators/nobody"),
        ("DELETE", "/v1/evaluators/nobody"),
        ("DELETE", "/v1/evaluators/nobody/runtime"),
        ("GET", "/v1/evaluators/a/b"),
        ("GET", "/v1"),
        ("GET", "/v2/evaluators"),
        ("POST", "/metricks"),
    ] {
        server.request(method, path, &[], b"").is(404, "not_found");
    }
}

#[test]
fn a_method_that_a_path_does_not_take_is_told_which_it_does() {
    let server = Server::start(&[]);
    for (method, path, allow) in [
        ("OPTIONS", "/v1/evaluators/greet", "GET,HEAD,PUT,PATCH,POST,DELETE"),
        ("POST", "/v1/evaluators", "GET,HEAD"),
        ("GET", "/v1/evaluators/greet/runtime", "DELETE"),
        ("OPTIONS", "/healthz", "GET,HEAD"),
        ("DELETE", "/metrics", "GET,HEAD"),
    ] {
        let answer = server.request(method, path, &[], b"");
        answer.is(405, "invalid_request");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
    for path in ["/healthz", "/readyz", "/metrics", "/v1/evaluators", "/v1/evaluators/greet"] {
        let answer = server.request("HEAD", path, &[], b"");
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{path}");
    }
}

#[test]
fn the_list_is_in_the_order_of_names_and_comes_in_pages() {
    let server = Server::start(&[]);
    let plugin = letter('x');
    for name in ["d", "b", "a", "c%2Fd"] {
        assert_eq!(server.put(name, &plugin).status, 201);
    }
    let (mut pages, mut after) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/v1/evaluators?limit=2{after}")).json();
        let names = page["evaluators"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned());
        pages.push(names.collect::<Vec<_>>());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", next.replace('/', "%2F")),
            None => break,
        }
    }
    assert_eq!(pages, [vec!["a", "b"], vec!["c/d", "d"], vec!["greet"]]);
    let whole = server.get("/v1/evaluators").json();
    assert_eq!((whole["evaluators"].as_array().unwrap().len(), &whole["next"]), (5, &Value::Null));
    for listed in whole["evaluators"].as_array().unwrap() {
        assert_eq!(
            listed["revision"],
            server.info(&listed["name"].as_str().unwrap().replace('/', "%2F"))["revision"],
            "{listed}"
        );
    }
    for query in ["limit=0", "limit=1001", "limit=x", "offset=1", "limit=1&limit=2"] {
        server.get(&format!("/v1/evaluators?{query}")).is(400, "invalid_request");
    }
}
