//! `run`, `check` and `load` with a plugin from a URL.

use std::{net::TcpListener, process::Output};

use evalpool::Digest;

use crate::{
    http::{Recorder, answer, values},
    program::{Folder, printed, refusal, run},
    service::program,
    support::GREET,
};

const INPUT: [&str; 2] = ["--input", r#"{"name":"Ada"}"#];
const OUTPUT: &str = r#"{"greeting":"Hello, Ada!"}"#;

fn server() -> Recorder {
    Recorder::start(|request| match request.split(['?', ' ']).nth(1) {
        Some("/greet.wasm") => answer("200 OK", &[], GREET),
        Some("/away") => answer("302 Found", &["location: https://10.0.0.1/?key=s3cret"], b""),
        _ => answer("404 Not Found", &[], b""),
    })
}

fn warnings(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_plugin_from_a_url_runs_and_without_a_digest_is_warned_of() {
    let server = server();
    let (url, digest) = (server.url("/greet.wasm?key=s3cret"), Digest::of(GREET).to_string());
    let advice = format!("to run these bytes only: --digest {digest}");
    for command in ["run", "check"] {
        let more: &[&str] = if command == "run" { &INPUT } else { &[] };
        let warned = run(&[&[command, &url], more].concat());
        let text = warnings(&warned);
        assert!(text.starts_with(&format!("warning: {} ", server.url("/greet.wasm"))), "{text}");
        assert!(text.trim_end().ends_with(&advice) && text.lines().count() == 1 && !text.contains("s3cret"), "{text}");
        let known = run(&[&[command, &url, "--digest", &digest], more].concat());
        assert_eq!(warnings(&known), "");
        assert!(printed(&known).contains(if command == "run" { OUTPUT } else { &digest }));
    }
    let load = ["load", "--json", "--evaluators", "2", "--duration", "200ms", "--plugin", &url, "--digest", &digest];
    let loaded: serde_json::Value = serde_json::from_str(&printed(&run(&[&load[..], &INPUT].concat()))).unwrap();
    assert_eq!(loaded["errors"], serde_json::json!({}), "{loaded}");
    // One fetch a command, whatever it does with the plugin.
    assert_eq!(server.heard().len(), 5);
}

#[test]
fn bytes_of_another_digest_are_refused_from_a_file_too() {
    let (server, folder) = (server(), Folder::new());
    let other = Digest::of(b"other").to_string();
    for plugin in [server.url("/greet.wasm"), folder.file("greet.wasm", GREET)] {
        for command in [&["run"][..], &["check"], &["load", "--plugin"]] {
            let line = refusal(&run(&[command, &[&plugin, "--digest", &other]].concat()), 1);
            assert!(line.starts_with("digest_mismatch: ") && line.contains(&other), "{line}");
        }
    }
    let greet = folder.file("greet.wasm", GREET);
    assert!(refusal(&run(&["run", &greet, "--digest", "sha256:12"]), 2).contains("--digest"));
    assert!(refusal(&run(&["load", "--digest", &other]), 2).contains("--plugin"));
}

#[test]
fn a_url_that_cannot_be_read_is_one_line_and_2() {
    let server = server();
    let here = server.url("");
    // A port that no test listens on.
    let nobody = "127.0.0.1:1";
    for (url, said) in [
        (
            format!("{here}/missing?key=s3cret"),
            format!("cannot read {here}/missing: the server answered 404 Not Found"),
        ),
        (
            format!("{here}/away"),
            format!("cannot read {here}/away: it redirects to https://10.0.0.1/: it is a private"),
        ),
        (format!("http://{nobody}/"), format!("cannot read http://{nobody}/: Connection refused")),
        (format!("http://user:s3cret@{nobody}/"), format!("cannot read http://{nobody}/: Connection refused")),
        ("http://example.com/x".to_owned(), "http://example.com/x: http:// is for this machine only".to_owned()),
        ("http://10.0.0.1/x".to_owned(), "http://10.0.0.1/x: http:// is for this machine only".to_owned()),
        ("https://:s3cret@".to_owned(), "its URL cannot be read: empty host".to_owned()),
    ] {
        for command in [&["run"][..], &["check"], &["load", "--plugin"]] {
            let line = refusal(&run(&[command, &[&url]].concat()), 2);
            assert!(line.contains(&said) && !line.contains("s3cret"), "{line}");
        }
    }
    let small = |plugin: &str| program().args(["run", plugin]).env("EVALPOOL_LIMITS_PLUGIN_SIZE", "1KiB").output();
    let line = refusal(&small(&server.url("/greet.wasm")).unwrap(), 1);
    assert_eq!(line, "payload_too_large: the plugin is over limits.plugin_size, 1 KiB");
}

#[test]
fn a_server_that_does_not_answer_costs_the_build_timeout() {
    // Connections are made, and nobody takes them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let line = refusal(&run(&["run", &url, "--build-timeout", "100ms"]), 2);
    assert_eq!(line, format!("cannot read {url}: it did not come within 100 ms (--build-timeout)"));
}

#[test]
fn headers_are_sent_and_not_shown() {
    let (server, folder) = (server(), Folder::new());
    let token = format!("Authorization: @{}", folder.file("token", "Bearer s3cret-file\n"));
    let (url, digest) = (server.url("/greet.wasm"), Digest::of(GREET).to_string());
    let run_with = |url: &str, headers: &[&str]| {
        let headers = headers.iter().flat_map(|header| ["--header", *header]);
        let arguments: Vec<_> = ["run", url, "--digest", &digest].into_iter().chain(INPUT).chain(headers).collect();
        run(&arguments)
    };
    assert_eq!(printed(&run_with(&url, &[&token, "X-Key:  s3cret: too "])), OUTPUT);
    let heard = server.heard().remove(0);
    assert_eq!(values(&heard, "authorization"), ["Bearer s3cret-file"]);
    assert_eq!(values(&heard, "x-key"), ["s3cret: too"]);
    let local = folder.file("greet.wasm", GREET);
    for (url, header, said) in [
        (&url, "s3cret", "--header: one is not NAME: @FILE"),
        (&url, "x y: s3cret", "no header's name: \"x y\""),
        (&url, "x: s3cret\u{1}", "a secret value cannot be sent in a header"),
        (&url, "x: @/no/such/s", "cannot read the secret in the file /no/such/s: No such file"),
        (&local, "x: s3cret", "--header: it is for a plugin from a URL"),
    ] {
        let line = refusal(&run_with(url, &[header]), 2);
        assert!(line.contains(said) && !line.contains("s3cret"), "{line}");
    }
    assert_eq!(server.heard(), [""; 0]);
}
