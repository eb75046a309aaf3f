//! `Source::http`, against real servers of this process: what is fetched, and under which bounds.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use evalpool::{Digest, Error, ErrorKind, HttpSource, Source, Spec};
use tokio::sync::mpsc;

use super::{evaluate, module};
use crate::{
    http::{Recorder, answer},
    support::spy::Spy,
};

/// The URL of a server of this process, at which it may be reached.
fn at(server: &Recorder, path: &str) -> HttpSource {
    Source::http(server.url(path)).allow_host(format!("127.0.0.1:{}", server.port))
}

fn serves(bytes: impl Into<Vec<u8>>) -> Recorder {
    let bytes = bytes.into();
    Recorder::start(move |_| answer("200 OK", &[], &bytes))
}

/// The error of an evaluation, and all of its text.
async fn refused(source: impl Into<Source>) -> (ErrorKind, String) {
    let error = evaluate(Spec::new(source)).await.unwrap_err();
    (error.kind(), error.chain())
}

/// A server of one connection, which hears a request's head, and then does as it is told.
fn once(and_then: impl FnOnce(TcpStream) + Send + 'static) -> HttpSource {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        and_then(stream);
    });
    Source::http(format!("http://{host}/")).allow_host(host)
}

#[tokio::test]
async fn a_plugin_is_fetched_at_each_build_and_is_what_the_server_gives_then() {
    let spy = Spy::default();
    let pool = spy.pool(|builder| builder.capacity(1));
    let server = serves(module());
    let spec = Spec::new(at(&server, "/plugin.wasm")).digest(Digest::of(&module()));
    let fetched = pool.evaluator("fetched", spec).unwrap();
    for _ in 0..2 {
        fetched.evaluate("").await.unwrap();
        fetched.evaluate("").await.unwrap();
        let heard = server.heard();
        assert_eq!(heard.len(), 1);
        assert!(heard[0].starts_with("GET /plugin.wasm HTTP/1.1\r\n"), "{}", heard[0]);
        // Evicts it.
        pool.evaluator("other", Spy::spec()).unwrap().evaluate("").await.unwrap();
    }
    pool.close().await;
    spy.assert_nothing_left();
}

#[tokio::test]
async fn bytes_of_another_digest_are_refused_also_of_a_linked_module() {
    let server = serves(module());
    let other = Digest::of(b"other");
    let plugin = Spec::new(at(&server, "/")).digest(other);
    let own = Spec::new(at(&server, "/").digest(other));
    let linked = Spy::spec().link("linked", at(&server, "/").digest(other));
    for spec in [plugin, own, linked] {
        assert_eq!(evaluate(spec).await.unwrap_err().kind(), "digest_mismatch");
    }
    evaluate(Spec::new(at(&server, "/").digest(Digest::of(&module())))).await.unwrap();
}

#[tokio::test]
async fn an_answer_other_than_200_is_named() {
    for status in
        ["201 Created", "204 No Content", "206 Partial Content", "304 Not Modified", "404 Not Found", "500 Oops"]
    {
        let server = Recorder::start(move |_| answer(status, &[], &module()));
        let (kind, text) = refused(at(&server, "/x.wasm?key=hidden")).await;
        assert_eq!(kind, "source_unavailable", "{text}");
        let expected = format!("{}: the server answered {}", server.url("/x.wasm"), &status[..3]);
        assert!(text.contains(&expected) && !text.contains("hidden"), "{text}");
    }
}

#[tokio::test]
async fn a_plugin_over_its_limit_is_refused_as_soon_as_that_is_known() {
    let limit = module().len();
    // Announced, and never sent: the server holds the connection open until it is closed.
    let announced = once(move |mut stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", limit + 1).unwrap();
        let _ = stream.read(&mut [0]);
    });
    // Not announced, and without end.
    let endless = once(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        while stream.write_all(b"4\r\n\0asm\r\n").is_ok() {}
    });
    let until_closed = once(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(b"\0asm").is_ok() {}
    });
    for source in [announced, endless, until_closed] {
        assert_eq!(refused(source).await.0, "payload_too_large");
    }
}

#[tokio::test]
async fn a_length_that_is_not_true_gives_no_other_plugin() {
    let (whole, longer) = (module(), module());
    let cut = once(move |mut stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", whole.len()).unwrap();
        stream.write_all(&whole[..whole.len() - 1]).unwrap();
    });
    assert_eq!(refused(cut).await.0, "source_unavailable");
    let short = once(move |mut stream| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").unwrap();
        let _ = stream.write_all(&longer);
    });
    assert_eq!(refused(short.digest(Digest::of(&module()))).await.0, "digest_mismatch");
}

#[tokio::test]
async fn what_is_no_plain_answer_is_said_to_be_none() {
    let garbage = once(|mut stream| drop(stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n")));
    let nothing = once(drop);
    for source in [garbage, nothing] {
        assert_eq!(refused(source).await.0, "source_unavailable");
    }
    let coded = Recorder::start(|_| answer("200 OK", &["content-encoding: gzip"], &module()));
    let (kind, text) = refused(at(&coded, "/")).await;
    assert!(kind == "source_unavailable" && text.contains("its body is encoded (\"gzip\")"), "{text}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    std::thread::spawn(move || listener.accept().unwrap().0.write_all(&answer("200 OK", &[], &module())));
    let (kind, text) = refused(Source::http(url).allow_host("127.0.0.1")).await;
    assert!(kind == "source_unavailable" && text.contains("InvalidContentType"), "{text}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_costs_a_build_its_time_and_is_hung_up_on() {
    for begins in [false, true] {
        let (tell, mut told) = mpsc::unbounded_channel();
        let source = once(move |mut stream| {
            if begins {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n\0asm").unwrap();
            }
            tell.send("asked").unwrap();
            let closed = matches!(stream.read(&mut [0]), Ok(0) | Err(_));
            tell.send(if closed { "closed" } else { "asked again" }).unwrap();
        });
        let spec = Spec::new(source).build_timeout(Duration::from_secs(7));
        let evaluating = tokio::spawn(evaluate(spec));
        assert_eq!(told.recv().await, Some("asked"));
        // From here on time passes as fast as nothing happens.
        tokio::time::pause();
        let error = evaluating.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), "source_unavailable");
        assert!(error.chain().ends_with("it was not read within 7 s"), "{}", error.chain());
        tokio::time::resume();
        assert_eq!(told.recv().await, Some("closed"));
    }
}

#[test]
fn a_fetch_ends_with_the_runtime_that_builds() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let source = once(move |mut stream| {
        tell.send("asked").unwrap();
        let closed = matches!(stream.read(&mut [0]), Ok(0) | Err(_));
        tell.send(if closed { "closed" } else { "asked again" }).unwrap();
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(evaluate(Spec::new(source)));
    assert_eq!(told.blocking_recv(), Some("asked"));
    runtime.shutdown_background();
    assert_eq!(told.blocking_recv(), Some("closed"));
}

// ---- redirects --------------------------------------------------------------------------------------------------------

/// Redirects `/n` to `/n-1`, and `/0` gives the plugin.
fn staircase() -> Recorder {
    Recorder::start(|request| {
        let path = request.split(' ').nth(1).unwrap();
        match path.trim_start_matches('/').parse::<u32>().unwrap() {
            0 => answer("200 OK", &[], &module()),
            left => answer("302 Found", &[&format!("location: /{}", left - 1)], b""),
        }
    })
}

#[tokio::test]
async fn redirects_are_followed_up_to_a_bound() {
    let server = staircase();
    evaluate(Spec::new(at(&server, "/5"))).await.unwrap();
    assert_eq!(server.heard().len(), 6);
    let (kind, text) = refused(at(&server, "/6")).await;
    assert!(kind == "source_unavailable" && text.contains("/6: more than 5 redirects"), "{text}");
    assert_eq!(server.heard().len(), 6);
    let circle = Recorder::start(|_| answer("307 Temporary Redirect", &["location: /"], b""));
    assert!(refused(at(&circle, "/")).await.1.contains("more than 5 redirects"));
    let nowhere = Recorder::start(|_| answer("302 Found", &[], b""));
    assert!(refused(at(&nowhere, "/")).await.1.contains("the server answered 302"));
}

#[tokio::test]
async fn a_redirect_reaches_no_host_that_the_url_itself_might_not() {
    let other = serves(module());
    for (to, why) in [
        (other.url("/x?key=hidden"), "HttpSource::allow_host names its host with another port"),
        (format!("http://localhost:{}/", other.port), "http:// is for hosts that HttpSource::allow_host names"),
        (format!("https://localhost:{}/", other.port), "its host has private addresses only"),
        ("https://[::1]/".to_owned(), "it is a private address"),
        ("https://169.254.169.254/".to_owned(), "it is a private address"),
        ("http://example.com/".to_owned(), "http:// is for hosts that HttpSource::allow_host names"),
        ("file:///etc/passwd".to_owned(), "plugins are fetched by https:// only"),
    ] {
        let server = Recorder::start(move |_| answer("301 Moved Permanently", &[&format!("location: {to}")], b""));
        let (kind, text) = refused(at(&server, "/")).await;
        assert!(kind == "source_unavailable" && text.contains(why) && !text.contains("hidden"), "{text}");
        assert_eq!(other.heard(), [""; 0]);
    }
}

// ---- hosts ------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_host_that_is_not_named_is_reached_by_https_and_at_public_addresses_alone() {
    let server = serves(module());
    let port = server.port;
    for (source, kind, why) in [
        (Source::http(server.url("/")), "invalid_request", "http:// is for hosts that"),
        (Source::http(format!("https://127.0.0.1:{port}/")), "invalid_request", "it is a private address"),
        (Source::http(format!("https://2130706433:{port}/")), "invalid_request", "it is a private address"),
        (Source::http("https://[::ffff:10.0.0.1]/"), "invalid_request", "it is a private address"),
        (Source::http(format!("https://localhost:{port}/")), "source_unavailable", "private addresses only"),
        (Source::http(server.url("/")).allow_host("127.0.0.1:1"), "invalid_request", "with another port"),
        (Source::http(server.url("/")).allow_host("127.0.0.*"), "invalid_request", "http:// is for hosts that"),
        (Source::http(server.url("/")).allow_host("http://127.0.0.1"), "invalid_request", "no request could match"),
    ] {
        let (is, text) = refused(source).await;
        assert!(is == kind && text.contains(why), "{is} {text}");
        assert_eq!(server.heard(), [""; 0]);
    }
    let named = format!("localhost:{port}");
    evaluate(Spec::new(Source::http(format!("http://{named}/")).allow_host("localhost"))).await.unwrap();
    evaluate(Spec::new(Source::http(format!("http://{named}/")).allow_host(named))).await.unwrap();
}

#[tokio::test]
async fn a_source_that_no_fetch_could_use_is_refused_when_it_is_registered() {
    let pool = Spy::default().pool(|builder| builder.capacity(1));
    for (source, why) in [
        (Source::http("plugins/hidden.wasm"), "a URL that cannot be read: relative URL without a base"),
        (Source::http("https://"), "a URL that cannot be read: empty host"),
        (Source::http("ftp://example.com/"), "plugins are fetched by https:// only"),
        (Source::http("https://example.com/").header("a b", evalpool::Secret::value("x")), "no header's name: \"a b\""),
    ] {
        let linked = Spy::spec().link("linked", source.clone());
        for refused in [pool.evaluator("bad", Spec::new(source)), pool.register("bad", linked)] {
            let Err(Error::InvalidRequest { reason }) = refused else { panic!("it is registered") };
            assert!(reason.contains(why) && !reason.contains("hidden"), "{reason}");
        }
    }
    assert!(pool.get("bad").is_none());
}
