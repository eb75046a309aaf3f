//! What servers get, and how a request's failure is told.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use evalpool::config::EngineKind;
use serde_json::json;

use super::{Recorder, answer, ask, ask_with, requester, values};
use crate::support::{builder, on_threads};

#[tokio::test]
async fn a_request_says_who_asks_unless_the_plugin_says_so_itself() {
    let server = Recorder::ok();
    ask(requester(false, false), json!({"url": server.url("/")})).await.unwrap();
    let own = json!({"url": server.url("/"), "headers": {"user-agent": "plugin/1"}});
    ask(requester(false, false), own).await.unwrap();
    let set = |settings: &mut evalpool::Settings| settings.engine.http_user_agent = "a-house/2".to_owned();
    ask_with(requester(false, false), json!({"url": server.url("/")}), set).await.unwrap();
    let heard = server.heard();
    let agents: Vec<_> = heard.iter().map(|request| values(request, "user-agent")).collect();
    let default = concat!("evalpool/", env!("CARGO_PKG_VERSION"));
    assert_eq!(agents, [[default], ["plugin/1"], ["a-house/2"]]);
}

#[tokio::test]
async fn a_method_that_is_for_bodies_says_its_length_though_it_be_0() {
    let server = Recorder::ok();
    for (method, with_body, length) in [
        ("POST", false, vec!["0"]),
        ("PUT", false, vec!["0"]),
        ("PATCH", false, vec!["0"]),
        ("post", false, vec!["0"]),
        ("GET", false, vec![]),
        ("DELETE", false, vec![]),
        ("POST", true, vec!["6"]),
        ("GET", true, vec!["6"]),
    ] {
        let request = json!({"url": server.url("/"), "method": method});
        ask(requester(with_body, false), request).await.unwrap();
        let heard = server.heard().remove(0);
        assert_eq!(values(&heard, "content-length"), length, "{heard}");
        assert_eq!(values(&heard, "transfer-encoding"), [""; 0], "{heard}");
        assert_eq!(heard.ends_with("\r\n\r\ncolour"), with_body, "{heard}");
    }
}

#[tokio::test]
async fn a_redirect_keeps_an_empty_body_as_it_keeps_the_method() {
    let server = Recorder::start(|request| match request.split(' ').nth(1) {
        Some("/307") => answer("307 Temporary Redirect", &["location: /"], b""),
        Some("/303") => answer("303 See Other", &["location: /"], b""),
        _ => answer("200 OK", &[], b"ok"),
    });
    for (path, method, length) in [("/307", "PUT", vec!["0"]), ("/303", "GET", vec![])] {
        ask(requester(false, false), json!({"url": server.url(path), "method": "PUT"})).await.unwrap();
        let last = server.heard().remove(1);
        assert!(last.starts_with(&format!("{method} / ")), "{last}");
        assert_eq!(values(&last, "content-length"), length, "{last}");
    }
}

#[tokio::test]
async fn ten_redirects_are_followed_and_no_more() {
    let server = Recorder::start(|request| {
        let left = request.split(' ').nth(1).and_then(|path| path[1..].parse::<u32>().ok());
        match left.and_then(|left| left.checked_sub(1)) {
            Some(left) => answer("307 Temporary Redirect", &[&format!("location: /{left}")], b""),
            None => answer("200 OK", &[], b"ok"),
        }
    });
    let after = |redirects: u32| ask(requester(false, false), json!({"url": server.url(&format!("/{redirects}"))}));
    assert_eq!(after(10).await.unwrap(), b"ok");
    let (kind, text) = after(11).await.unwrap_err();
    assert!(kind == "guest_trap" && text.contains("too many redirects"), "{kind} {text}");
}

#[tokio::test]
async fn a_redirect_to_another_host_tells_it_no_secret_and_not_where_the_plugin_comes_from() {
    let other = Recorder::ok();
    let to = format!("http://localhost:{}/", other.port);
    let server = Recorder::start(move |request| match request.split(' ').nth(1) {
        Some("/away?token=1") => answer("302 Found", &[&format!("location: {to}")], b""),
        Some("/here?token=1") => answer("302 Found", &["location: /"], b""),
        _ => answer("200 OK", &[], b"ok"),
    });
    let headers = json!({"authorization": "Bearer secret", "cookie": "secret=1", "x-own": "kept"});
    for (path, ended_at, keeps) in [("/away?token=1", &other, false), ("/here?token=1", &server, true)] {
        ask(requester(false, false), json!({"url": server.url(path), "headers": headers})).await.unwrap();
        let last = ended_at.heard().pop().unwrap();
        server.heard();
        assert_eq!(values(&last, "x-own"), ["kept"], "{last}");
        assert_eq!(values(&last, "user-agent").len(), 1, "{last}");
        assert_eq!(values(&last, "referer"), [""; 0], "{last}");
        assert_eq!(values(&last, "authorization").len(), usize::from(keeps), "{last}");
        assert_eq!(values(&last, "cookie").len(), usize::from(keeps), "{last}");
    }
}

#[tokio::test]
async fn what_frames_a_message_is_not_the_plugins_to_set() {
    let server = Recorder::ok();
    for name in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "connection",
        "upgrade",
        "TE",
        "trailer",
        "keep-alive",
        "proxy-authorization",
        "Proxy-Connection",
        "http2-settings",
    ] {
        let request = json!({"url": server.url("/"), "headers": {name: "1"}});
        let (kind, text) = ask(requester(false, false), request).await.unwrap_err();
        let wanted = format!("{} failed: a plugin may not set the header {name:?}", server.url("/"));
        assert!(kind == "guest_trap" && text.ends_with(&wanted), "{kind} {text}");
    }
    let (kind, text) =
        ask(requester(false, false), json!({"url": server.url("/"), "method": "connect"})).await.unwrap_err();
    assert!(kind == "guest_trap" && text.ends_with("a plugin may not use the method CONNECT"), "{kind} {text}");
    assert_eq!(server.heard(), [""; 0]);
}

#[tokio::test]
async fn a_header_that_cannot_be_sent_is_named() {
    let server = Recorder::ok();
    for (name, value) in [("x y", "1"), ("", "1"), ("x-y", "a\r\nhost: b"), ("x-y", "a\0")] {
        let request = json!({"url": server.url("/"), "headers": {name: value}});
        let (kind, text) = ask(requester(false, false), request).await.unwrap_err();
        assert!(kind == "guest_trap" && text.contains(&format!("the header {name:?} cannot be sent")), "{text}");
    }
    assert_eq!(server.heard(), [""; 0]);
}

#[tokio::test]
async fn a_failure_names_the_url_without_what_may_be_secret() {
    // A port on which nobody listens.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let away = Recorder::start(|_| answer("302 Found", &["location: http://u:p@example.org/y?token=1"], b""));
    let cut = Recorder::start(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort".to_vec());
    for (url, said) in [
        (
            format!("http://user:secret@127.0.0.1:{free}/x?token=1#part"),
            format!("http_request to http://127.0.0.1:{free}/x failed: Connection refused"),
        ),
        (
            "https://user:secret@example.org/x?token=1".to_owned(),
            "http_request to https://example.org/x failed: HTTP request to https://example.org/x is not allowed: \
             allowed_hosts has no entry for it"
                .to_owned(),
        ),
        (
            away.url("/x?token=1"),
            format!(
                "http_request to {} failed: it redirects to http://example.org/y, which is not allowed: allowed_hosts \
                 has no entry for it",
                away.url("/x")
            ),
        ),
        (cut.url("/x?token=1"), format!("http_request to {} failed: ", cut.url("/x"))),
        ("user:secret@example.org".to_owned(), "http_request failed: Invalid URL: it has no host".to_owned()),
    ] {
        let (kind, text) = ask(requester(false, false), json!({"url": url})).await.unwrap_err();
        assert_eq!(kind, "guest_trap");
        assert!(text.starts_with(&format!("the plugin trapped: {said}")), "{text}");
        assert!(!text.contains("secret") && !text.contains("token"), "{text}");
    }
}

/// Answers one request after the other, and keeps the connection.
fn keeps_answering(mut stream: TcpStream) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    while lines.by_ref().map_while(Result::ok).any(|line| line.is_empty()) {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").ok()?;
    }
    None
}

/// The next request finds the connection that an earlier caller has opened, and that caller's runtime stands still.
#[test]
fn a_connection_does_not_need_the_runtime_of_the_caller_that_opened_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let request = json!({"url": format!("http://{}/", listener.local_addr().unwrap())});
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(|| keeps_answering(stream));
        }
    });
    let pool = builder(EngineKind::Direct).build().unwrap();
    let spec = requester(false, false).exec_timeout(Duration::from_secs(30));
    let evaluator = pool.evaluator("asks", spec).unwrap();
    let parked = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..3 {
        assert_eq!(parked.block_on(evaluator.evaluate(request.clone())).unwrap().bytes(), "ok");
    }
    on_threads(async {
        assert_eq!(evaluator.evaluate(request).await.unwrap().bytes(), "ok");
        pool.close().await;
    });
    drop(parked);
}
