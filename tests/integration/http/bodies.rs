//! Bodies of responses that are encoded.

use evalpool::Settings;
use serde_json::json;

use super::{Recorder, answer, ask, ask_with, headers, requester, values};
use crate::support::process::{alone, peak_mib};

const GZIP: &[u8] = include_bytes!("bodies/colours.gz");
const MEMBERS: &[u8] = include_bytes!("bodies/members.gz");
const ZLIB: &[u8] = include_bytes!("bodies/colours.zlib");
const DEFLATE: &[u8] = include_bytes!("bodies/colours.deflate");
const BROTLI: &[u8] = include_bytes!("bodies/colours.br");
const NUMBERS: &[u8] = include_bytes!("bodies/numbers.br");
const ZSTD: &[u8] = include_bytes!("bodies/colours.zst");
const FRAMES: &[u8] = include_bytes!("bodies/frames.zst");
/// 1 MiB of zeros.
const GZIP_BOMB: &[u8] = include_bytes!("bodies/bomb.gz");
/// 1 GiB of zeros.
const BROTLI_BOMB: &[u8] = include_bytes!("bodies/bomb.br");
/// 64 MiB of zeros.
const ZSTD_BOMB: &[u8] = include_bytes!("bodies/bomb.zst");

/// Answers with this body under this `content-encoding`.
fn serve(coding: &str, body: &[u8]) -> Recorder {
    let (coding, body) = (format!("content-encoding: {coding}"), body.to_vec());
    Recorder::start(move |_| answer("200 OK", &[&coding, "x-kept: yes"], &body))
}

#[tokio::test]
async fn the_guest_gets_a_body_as_it_was_before_it_was_encoded() {
    let colours = "colour ".repeat(1000);
    let numbers: String = (0..20_000).map(|number: i32| number.to_string() + "\n").collect();
    for (coding, body, wanted) in [
        ("gzip", GZIP, &colours),
        ("GZip", GZIP, &colours),
        ("x-gzip", GZIP, &colours),
        ("gzip", MEMBERS, &colours),
        ("deflate", ZLIB, &colours),
        // Without zlib's envelope, as some servers send it.
        ("deflate", DEFLATE, &colours),
        ("br", BROTLI, &colours),
        ("br", NUMBERS, &numbers),
        ("zstd", ZSTD, &colours),
        ("zstd", FRAMES, &colours),
    ] {
        let server = serve(coding, body);
        let given = ask(requester(false, false), json!({"url": server.url("/")})).await.unwrap();
        assert!(given == wanted.as_bytes(), "{coding}: {} bytes", given.len());
        assert_eq!(values(&server.heard()[0], "accept-encoding"), ["gzip, deflate, br, zstd"]);
        let seen = headers(json!({"url": server.url("/")})).await;
        assert_eq!(seen, json!({"connection": "close", "x-kept": "yes"}), "what was said of the encoded body is gone");
    }
}

#[tokio::test]
async fn a_plugin_that_chooses_an_encoding_or_a_part_gets_the_body_as_it_is_sent() {
    let server = serve("gzip", GZIP);
    for (header, value, asked) in [("Accept-Encoding", "gzip", vec!["gzip"]), ("range", "bytes=0-9", vec![])] {
        let request = json!({"url": server.url("/"), "headers": {header: value}});
        assert_eq!(ask(requester(false, false), request.clone()).await.unwrap(), GZIP);
        assert_eq!(values(&server.heard().remove(0), "accept-encoding"), asked);
        let seen = headers(request).await;
        server.heard();
        assert_eq!((&seen["content-encoding"], &seen["content-length"]), (&json!("gzip"), &json!("55")));
    }
}

#[tokio::test]
async fn an_encoding_that_was_not_asked_for_is_the_guests_to_decode() {
    for coding in ["compress", "identity", "gzip, gzip", "gzip\r\ncontent-encoding: br", ""] {
        let server = serve(coding, GZIP);
        let given = ask(requester(false, false), json!({"url": server.url("/")})).await.unwrap();
        assert_eq!(given, GZIP, "{coding}");
    }
}

#[tokio::test]
async fn where_there_is_no_body_there_is_nothing_to_decode() {
    let encoded = "content-encoding: gzip";
    let server = Recorder::start(move |request| match request.split(' ').nth(1) {
        Some("/204") => format!("HTTP/1.1 204 No Content\r\n{encoded}\r\nconnection: close\r\n\r\n").into_bytes(),
        Some("/304") => format!("HTTP/1.1 304 Not Modified\r\n{encoded}\r\nconnection: close\r\n\r\n").into_bytes(),
        Some("/head") => {
            format!("HTTP/1.1 200 OK\r\n{encoded}\r\ncontent-length: 55\r\nconnection: close\r\n\r\n").into_bytes()
        }
        _ => answer("200 OK", &[encoded], b""),
    });
    for (method, path) in [("GET", "/204"), ("GET", "/304"), ("HEAD", "/head"), ("GET", "/empty")] {
        let request = json!({"url": server.url(path), "method": method});
        assert_eq!(ask(requester(false, false), request.clone()).await, Ok(b"message".to_vec()), "{path}: none");
        // They say what a body would be.
        assert_eq!(headers(request).await["content-encoding"], "gzip", "{path}");
    }
}

#[tokio::test]
async fn a_body_that_is_cut_off_or_corrupt_is_told_as_such() {
    for (coding, name, body) in [
        ("gzip", "gzip", GZIP),
        ("gzip", "gzip", MEMBERS),
        ("deflate", "deflate", ZLIB),
        ("deflate", "deflate", DEFLATE),
        ("br", "brotli", NUMBERS),
        ("zstd", "zstd", ZSTD),
        ("zstd", "zstd", FRAMES),
    ] {
        let cut = &body[..body.len() - 1];
        for body in [cut, b"no such thing"] {
            let server = serve(coding, body);
            let (kind, text) = ask(requester(false, false), json!({"url": server.url("/")})).await.unwrap_err();
            let wanted = format!("failed: the response's {name} body is cut off or corrupt (");
            assert!(kind == "guest_trap" && text.contains(&wanted), "{coding}: {kind} {text}");
        }
    }
}

#[tokio::test]
async fn a_body_may_grow_to_limits_output_size_and_no_further() {
    let limit = |size: u64| move |settings: &mut Settings| settings.limits.output_size = size;
    let url = |server: &Recorder| json!({"url": server.url("/")});
    let mib = 1 << 20;
    let server = serve("gzip", GZIP_BOMB);
    assert_eq!(ask_with(requester(false, false), url(&server), limit(mib)).await, Ok(vec![0; 1 << 20]));
    let server = serve("identity", GZIP);
    assert_eq!(ask_with(requester(false, false), url(&server), limit(55)).await, Ok(GZIP.to_vec()));
    for (coding, body, most) in [
        ("identity", GZIP.to_vec(), 54),
        ("gzip", GZIP_BOMB.to_vec(), mib - 1),
        ("gzip", GZIP_BOMB.repeat(64), 16 * mib),
        ("br", BROTLI_BOMB.to_vec(), 16 * mib),
        ("zstd", ZSTD_BOMB.to_vec(), 16 * mib),
        ("zstd", ZSTD_BOMB.to_vec(), 9),
    ] {
        let server = serve(coding, &body);
        let (kind, text) = ask_with(requester(false, true), url(&server), limit(most)).await.unwrap_err();
        let wanted = format!("exceeds the configured maximum number of bytes: {most} (limits.output_size)");
        assert!(kind == "guest_trap" && text.ends_with(&wanted), "{coding}: {kind} {text}");
    }
}

/// In a process of its own: what is resident is counted for all of it.
#[test]
fn a_body_that_would_grow_beyond_its_limit_takes_no_memory_beyond_it() {
    if !alone("http::bodies::a_body_that_would_grow_beyond_its_limit_takes_no_memory_beyond_it") {
        return;
    }
    crate::support::on_threads(async {
        let server = serve("br", BROTLI_BOMB);
        let request = || json!({"url": server.url("/")});
        let small = |settings: &mut Settings| settings.limits.output_size = 1024;
        // What it takes to run a plugin, and to begin to decode.
        ask_with(requester(false, true), request(), small).await.unwrap_err();
        let before = peak_mib();
        ask(requester(false, true), request()).await.unwrap_err();
        let grown = peak_mib() - before;
        // 16 MiB of body, and a window of as much.
        assert!(grown < 128, "{grown} MiB for what would grow to 1 GiB");
    });
}
