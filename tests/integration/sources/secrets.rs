//! Secrets of `Source::http`: sent to the URL's own origin, and shown nowhere.

use std::{fs, path::Path};

use evalpool::{
    Digest, EvaluatorPool, HttpSource, Secret, Source, Spec,
    extism_manifest::{HttpRequest, Manifest, Wasm, WasmMetadata},
};
use tempfile::TempDir;

use super::{evaluate, module};
use crate::{
    http::{Recorder, answer, values},
    support::{log::Lines, process::alone, spy::Spy},
};

const VALUE: &str = "s3cret-value";
const IN_FILE: &str = "s3cret-in-file";
/// Of a URL: a password and a query.
const IN_URL: &str = "s3cret-in-url";

/// A variable that every test has. This process sets none, since other threads read them.
const VARIABLE: &str = "PATH";

/// Asks at this path with a secret of each kind.
fn asks(server: &Recorder, path: &str, file: &Path) -> HttpSource {
    Source::http(format!("http://user:{IN_URL}@127.0.0.1:{}{path}?key={IN_URL}", server.port))
        .allow_host("127.0.0.1")
        .allow_host("localhost")
        .header("x-value", Secret::value(VALUE))
        .header("private-token", Secret::file(file))
        .header("x-variable", Secret::env(VARIABLE))
}

fn secret_file(folder: &TempDir) -> std::path::PathBuf {
    let path = folder.path().join("token");
    fs::write(&path, format!("{IN_FILE}\r\n")).unwrap();
    path
}

#[tokio::test]
async fn secrets_are_read_at_each_fetch_and_sent() {
    let folder = TempDir::new().unwrap();
    let (file, server) = (secret_file(&folder), Recorder::start(|_| answer("200 OK", &[], &module())));
    let spec = Spec::new(asks(&server, "/", &file));
    for token in [IN_FILE, "rotated"] {
        fs::write(&file, format!("{token}\n")).unwrap();
        evaluate(spec.clone()).await.unwrap();
        let heard = server.heard().remove(0);
        assert_eq!(values(&heard, "x-value"), [VALUE], "{heard}");
        assert_eq!(values(&heard, "private-token"), [token], "{heard}");
        assert_eq!(values(&heard, "x-variable"), [std::env::var(VARIABLE).unwrap()], "{heard}");
        assert_eq!(values(&heard, "authorization").len(), 1, "{heard}");
    }
}

#[tokio::test]
async fn a_redirect_takes_secrets_to_the_urls_own_origin_alone() {
    let folder = TempDir::new().unwrap();
    let file = secret_file(&folder);
    let other = Recorder::start(|request| match request.split(' ').nth(1) {
        Some("/back") => answer("302 Found", &["location: /"], b""),
        _ => answer("200 OK", &[], &module()),
    });
    // Another port, another name of the same machine.
    for to in [other.url("/back"), format!("http://localhost:{}/", other.port)] {
        let server = Recorder::start(move |request| match request.split(['?', ' ']).nth(1) {
            Some("/own") => answer("302 Found", &["location: /away"], b""),
            _ => answer("302 Found", &[&format!("location: {to}")], b""),
        });
        evaluate(Spec::new(asks(&server, "/own", &file))).await.unwrap();
        for own in server.heard() {
            assert_eq!(values(&own, "x-value"), [VALUE], "{own}");
            assert_eq!(values(&own, "private-token"), [IN_FILE], "{own}");
        }
        let heard = other.heard();
        assert!(!heard.is_empty());
        for request in heard {
            for name in ["x-value", "private-token", "x-variable", "authorization", "cookie", "referer"] {
                assert_eq!(values(&request, name), [""; 0], "{request}");
            }
            assert!(!request.contains("s3cret"), "{request}");
        }
    }
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_or_sent_is_named_and_nothing_is_asked() {
    let folder = TempDir::new().unwrap();
    let server = Recorder::start(|_| answer("200 OK", &[], &module()));
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Secret::file(path)
    };
    for (secret, why) in [
        (Secret::file(folder.path().join("missing")), "missing: No such file"),
        (Secret::file(folder.path()), "not a regular file"),
        (file("empty", b"\n"), "empty: it is empty"),
        (file("long", &vec![b'x'; (16 << 10) + 1]), "long: it is over 16 KiB"),
        (file("lines", format!("{IN_FILE}\n{IN_FILE}").as_bytes()), "lines cannot be sent in a header"),
        (Secret::env("EVALPOOL_NO_SUCH_VARIABLE"), "EVALPOOL_NO_SUCH_VARIABLE: it is not set"),
        (Secret::value(""), "a secret value: it is empty"),
        (Secret::value("s3cret\0"), "a secret value cannot be sent in a header"),
    ] {
        let source = Source::http(server.url("/")).allow_host("127.0.0.1").header("x-secret", secret);
        let error = evaluate(Spec::new(source)).await.unwrap_err();
        assert_eq!(error.kind(), "source_unavailable");
        assert!(error.chain().contains(why) && !error.chain().contains("s3cret"), "{}", error.chain());
        assert_eq!(server.heard(), [""; 0]);
    }
}

/// In a process of its own: a subscriber changes the level at which other tests log.
#[test]
fn no_text_shows_a_secret_and_a_plugin_without_a_digest_is_warned_of_once() {
    if alone("sources::secrets::no_text_shows_a_secret_and_a_plugin_without_a_digest_is_warned_of_once") {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::TRACE);
        let subscriber = subscriber.with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shown = runtime.block_on(whatever_shows_a_source());
        let log = lines.text();
        assert!(log.contains("a build failed"), "{log}");
        for text in [&shown, &log] {
            assert!(text.contains("http://127.0.0.1:"), "{text}");
            for secret in ["s3cret", &std::env::var(VARIABLE).unwrap()] {
                assert!(!text.contains(secret), "{text}");
            }
        }
        let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(warnings.len(), 1, "{log}");
        assert!(warnings[0].contains("without a digest") && warnings[0].contains("evaluator=\"bad\""), "{warnings:?}");
    }
}

/// `Debug` of whatever holds a source, and all texts of the errors of its fetches.
async fn whatever_shows_a_source() -> String {
    let folder = TempDir::new().unwrap();
    let file = secret_file(&folder);
    let server = Recorder::start(|request| match request.split(['?', ' ']).nth(1) {
        Some("/away") => answer("302 Found", &[&format!("location: https://10.0.0.1/?key={IN_URL}")], b""),
        Some("/plugin") => answer("200 OK", &[], &module()),
        Some("/cut") => b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n".to_vec(),
        _ => answer("403 Forbidden", &[], VALUE.as_bytes()),
    });
    let pool: EvaluatorPool = Spy::default().pool(|builder| builder.capacity(1));
    let mut shown = Vec::new();
    for (at, path) in ["/plugin", "/away", "/cut", "/refused"].into_iter().enumerate() {
        let source = asks(&server, path, &file);
        shown.push(format!("{source:?} {:?} {:?}", Source::from(source.clone()), Spec::new(source.clone())));
        // One that is called more than once, and has no digest.
        let (name, spec) = if at == 1 {
            ("bad", Spec::new(source))
        } else {
            ("good", Spec::new(source).digest(Digest::of(&module())))
        };
        let evaluator = pool.evaluator(name, spec).unwrap();
        for _ in 0..2 {
            if let Err(error) = evaluator.evaluate("").await {
                shown.push(format!("{error} {error:?} {}", error.chain()));
            }
        }
        shown.push(format!("{evaluator:?} {:?}", pool.snapshot()));
    }
    // A linked module with a digest is not warned of either.
    let request = HttpRequest::new(server.url(&format!("/plugin?key={IN_URL}"))).with_header("x-value", VALUE);
    let module = Wasm::Url { req: request, meta: WasmMetadata::default() }.with_hash(Digest::of(&module()).hex());
    let spec = Spec::from_manifest(&Manifest::new([module.clone(), module.with_name("linked")])).unwrap();
    shown.push(format!("{spec:?} {:?}", pool.evaluator("described", spec.clone()).unwrap()));
    pool.close().await;
    shown.join("\n")
}
