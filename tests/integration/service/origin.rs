//! Web pages of elsewhere, as a browser on this machine sends their requests.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use tempfile::TempDir;

use super::{letter, server::Server};

/// What is answered to a head as it stands.
fn raw(address: &str, head: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_page_that_took_this_machines_address_for_its_own_name_reaches_nothing() {
    let server = Server::start(&[("SERVICE_HOST_NAMES", "proxy.example, other.example")]);
    let port = server.address.rsplit(':').next().unwrap();
    let evil = [("host", "evil.example"), ("sec-fetch-site", "same-origin"), ("origin", "http://evil.example")];
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/ui/app.js"),
        ("GET", "/ui/evaluators"),
        ("GET", "/metrics"),
        ("GET", "/v1/evaluators"),
        ("GET", "/v1/tenants"),
        ("POST", "/v1/evaluators/greet"),
        ("PUT", "/v1/evaluators/new"),
        ("DELETE", "/v1/evaluators/greet"),
    ] {
        let refused = server.request(method, path, &evil, b"");
        refused.is(421, "invalid_request");
        assert!(
            refused.text().contains("service.host_names") && refused.text().contains("evil.example"),
            "{refused:?}"
        );
    }
    assert_eq!(server.get("/v1/evaluators/greet").status, 200, "it is still there");
    for own in ["localhost", "[::1]", "10.0.0.7", "evalpool", "a.localhost", "proxy.example", "Other.example"] {
        let host = format!("{own}:{port}");
        assert_eq!(server.request("GET", "/v1/evaluators", &[("host", &host)], b"").status, 200, "{host}");
    }
    // Whoever probes these may name any.
    for path in ["/healthz", "/readyz"] {
        assert_eq!(server.request("GET", path, &[("host", "evil.example")], b"").status, 200, "{path}");
    }
    let get = |target: &str, version: &str, host: &str| {
        raw(&server.address, &format!("GET {target} HTTP/{version}\r\n{host}connection: close\r\n\r\n"))
    };
    assert!(get("/v1/tenants", "1.0", "").starts_with("HTTP/1.0 200"), "HTTP/1.0 need not name a host");
    assert!(get("/v1/tenants", "1.1", "host:\r\n").starts_with("HTTP/1.1 200"), "nor HTTP/1.1 a name");
    assert!(get("http://evil.example/v1/tenants", "1.1", "host: localhost\r\n").starts_with("HTTP/1.1 421"));
    assert!(get("http://localhost/v1/tenants", "1.1", "host: localhost\r\n").starts_with("HTTP/1.1 200"));
    assert!(get("/v1/tenants", "1.1", "host: localhost\r\nhost: evil.example\r\n").starts_with("HTTP/1.1 421"));
}

#[test]
fn a_page_of_elsewhere_cannot_use_the_server_by_what_any_page_may_send() {
    let server = Server::start(&[("SERVICE_HOST_NAMES", "proxy.example")]);
    let before = server.get("/v1/evaluators/greet").json()["evaluations"].clone();
    for origin in ["http://evil.example", "http://localhost:1", "null"] {
        let refused = server.request("POST", "/v1/evaluators/greet", &[("origin", origin)], b"{}");
        refused.is(403, "invalid_request");
        assert!(refused.text().contains("service.token_file") && refused.text().contains(origin), "{refused:?}");
    }
    server.request("GET", "/ui/events", &[("sec-fetch-site", "cross-site")], b"").is(403, "invalid_request");
    assert_eq!(server.get("/v1/evaluators/greet").json()["evaluations"], before);
    let own = format!("http://{}", server.address);
    for origin in [&*own, "https://proxy.example"] {
        let called = server.request("POST", "/v1/evaluators/greet", &[("origin", origin)], br#"{"name":"Ada"}"#);
        assert_eq!(called.status, 200, "{origin}");
    }
}

#[test]
fn with_tokens_the_host_is_whoevers_and_a_page_of_elsewhere_has_no_token() {
    let folder = TempDir::new().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "sesame\n").unwrap();
    let server = Server::start(&[("SERVICE_TOKEN_FILE", tokens.to_str().unwrap())]);
    let elsewhere = [("host", "evil.example"), ("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")];
    server.request("GET", "/v1/evaluators", &elsewhere, b"").is(401, "unauthorized");
    let shown = [&elsewhere[..], &[("authorization", "Bearer sesame"), ("content-type", "application/wasm")]].concat();
    assert_eq!(server.request("PUT", "/v1/evaluators/a", &shown, &letter('a')).status, 201);
}

#[test]
fn the_operators_own_address_is_guarded_likewise() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _server = Server::start(&[("SERVICE_ADMIN_LISTEN", &free.to_string())]);
    let ask = |host: &str| {
        raw(&free.to_string(), &format!("GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
    };
    assert!(ask("localhost").starts_with("HTTP/1.1 200"));
    assert!(ask("evil.example").starts_with("HTTP/1.1 421"));
}
