//! Plugins that want it get a request as a document, and answer with a response.

use evalpool::{Input, Spec, config::EngineKind};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    answer::Answer,
    server::{Server, eventually, program},
};
use crate::{
    conformance::IMPORTS,
    support::{MIRROR, TEXT, builder, wasm},
};

/// Answers with its config value `colour`.
fn says() -> Vec<u8> {
    wasm(&format!(
        r#"(module {IMPORTS} (func (export "run") (result i32)
            (call $block (call $config_get (call $colour))) i32.const 0))"#
    ))
}

/// Spins while it has a config value `colour`, and gives its input back once it has none.
fn spins_or_echoes() -> Vec<u8> {
    wasm(&format!(
        r#"(module {IMPORTS} (func (export "run") (result i32)
            (if (i64.ne (call $config_get (call $colour)) (i64.const 0)) (then (loop (br 0))))
            (call $echo) i32.const 0))"#
    ))
}

/// The answer to a request that is sent as it is written here.
fn send(server: &Server, target: &str, headers: &str, body: &[u8]) -> Answer {
    let headers = format!("{headers}connection: close\r\ncontent-length: {}\r\n", body.len());
    Answer::of(server.begin("POST", &format!("/v1/evaluators/{target}"), &headers, body))
}

#[test]
fn a_plugin_that_takes_requests_sees_what_it_may_see_of_one() {
    let server = Server::start(&[]);
    assert_eq!(server.put("team%2Fmirror?input=request", MIRROR).json()["spec"], json!({"input": "request"}));
    let headers = "Accept: text/plain\r\nACCEPT: */*;q=\"0.1\"\r\nuser-agent: t\u{e9}st\r\ncontent-type: text/csv\r\n\
        authorization: Bearer secret\r\ncookie: a=b\r\nx-request-id: 17\r\nx-forwarded-for: 10.0.0.1\r\n";
    let target = "team%2Fmirror?lang=de&lang=a%20b&entry_point=mirror&empty=&q=%22";
    let answer = send(&server, target, headers, "1,\"2\"\n\u{e9}".as_bytes());
    assert_eq!(answer.status, 203, "{}", answer.lossy());
    let expected = json!({
        "method": "POST",
        "path": "/v1/evaluators/team%2Fmirror",
        "query": {"lang": ["de", "a b"], "empty": [""], "q": ["\""]},
        "headers": {"accept": "text/plain, */*;q=\"0.1\"", "content-type": "text/csv", "user-agent": "t\u{e9}st",
                    "x-request-id": "17"},
        "body": "1,\"2\"\n\u{e9}",
    });
    assert_eq!(answer.json(), expected);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("content-security-policy"), Some("sandbox"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert!(answer.header("server-timing").unwrap().starts_with("wait;dur="));

    let empty = send(&server, "team%2Fmirror", "", b"").json();
    assert_eq!((&empty["body"], &empty["query"], &empty["headers"]), (&json!(""), &json!({}), &json!({})));
    let bytes = send(&server, "team%2Fmirror", "", b"\xff\x00").json();
    assert_eq!((bytes.get("body"), &bytes["body_base64"]), (None, &json!("/wA=")));
    // Long enough to be written and read on another thread.
    let long = "\\\u{1}".repeat(100_000);
    assert_eq!(send(&server, "team%2Fmirror", "", long.as_bytes()).json()["body"], long);
    send(&server, "team%2Fmirror?entry_point=mirror&entry_point=mirror", "", b"").is(400, "invalid_request");
    send(&server, "team%2Fmirror?entry_point=nobody", "", b"").is(422, "entry_point_missing");
}

#[test]
fn the_operator_says_which_headers_pass() {
    let server = Server::start(&[
        ("SERVICE_REQUEST_HEADERS", "Cookie, authorization"),
        ("SERVICE_RESPONSE_HEADERS", "Set-Cookie, content-security-policy, content-type"),
    ]);
    let put = |answer: Value| {
        let spec = json!({"input": "request", "config": {"colour": answer.to_string()}}).to_string();
        assert!(server.put_form("says", &[("spec", spec.as_bytes()), ("plugin", &says())]).status < 300);
        server.post("says", b"")
    };
    let policy = "default-src 'self'";
    let cookie = put(json!({"headers": {"set-cookie": "a=b", "Content-Security-Policy": policy}}));
    assert_eq!((cookie.status, cookie.header("set-cookie")), (200, Some("a=b")));
    assert_eq!(cookie.header("content-security-policy"), Some(policy));
    put(json!({"headers": {"cache-control": "no-store"}})).is(422, "guest_error");
    assert_eq!(server.put("mirror?input=request", MIRROR).status, 201);
    let seen = send(&server, "mirror", "cookie: a=b\r\nauthorization: Basic x\r\naccept: */*\r\n", b"").json();
    assert_eq!(seen["headers"], json!({"cookie": "a=b", "authorization": "Basic x"}));
}

#[test]
fn a_response_is_what_the_plugin_says() {
    let server = Server::start(&[]);
    let spec = json!({"input": "request", "config": {"colour": "{}"}}).to_string();
    assert_eq!(server.put_form("says", &[("spec", spec.as_bytes()), ("plugin", &says())]).status, 201);
    let long = "x".repeat(100_000);
    for (said, status, body, headers) in [
        (json!({}), 200, &b""[..], &[("content-length", Some("0")), ("content-type", None)][..]),
        (json!({"status": null, "body": null}), 0, b"", &[]),
        (json!({"body": "[1]", "headers": {}}), 200, b"[1]", &[("content-type", Some("application/json"))]),
        (json!({"body": "hi"}), 200, b"hi", &[("content-type", Some("application/octet-stream"))]),
        (json!({"body_base64": "/wA="}), 200, b"\xff\0", &[("content-length", Some("2"))]),
        (json!({"body": long}), 200, long.as_bytes(), &[("content-security-policy", Some("sandbox"))]),
        (json!({"status": 204}), 204, b"", &[("content-type", None)]),
        (
            json!({"status": 303, "headers": {"Location": "/a?b", "ETag": "\"1\""}}),
            303,
            b"",
            &[("location", Some("/a?b")), ("etag", Some("\"1\""))],
        ),
        (
            json!({"status": 404, "headers": {"content-type": "text/plain"}, "body": "no"}),
            404,
            b"no",
            &[("content-type", Some("text/plain"))],
        ),
        (json!({"status": 599}), 599, b"", &[("server-timing", None)]),
    ] {
        let patch = json!({"config": {"colour": said.to_string()}}).to_string();
        assert_eq!(server.patch("says", &[], &patch).status, 200);
        let answer = send(&server, "says", "", b"");
        if status == 0 {
            answer.is(422, "guest_error");
            continue;
        }
        assert_eq!((answer.status, &*answer.body), (status, body), "{said}");
        for (name, value) in headers {
            // The times of the answer are the server's to tell, and always there.
            if *name == "server-timing" {
                assert!(answer.header(name).is_some(), "{said}");
            } else {
                assert_eq!(answer.header(name), *value, "{said}: {name}");
            }
        }
    }
}

#[test]
fn an_answer_that_is_no_response_is_refused_and_says_why() {
    let server = Server::start(&[]);
    let spec = json!({"input": "request", "config": {"colour": "{}"}}).to_string();
    assert_eq!(server.put_form("says", &[("spec", spec.as_bytes()), ("plugin", &says())]).status, 201);
    let many: Value = (0..600).map(|at| (format!("x-{at}"), json!(""))).collect::<serde_json::Map<_, _>>().into();
    let header = |name: &str, value: &str| json!({"headers": {name: value}}).to_string();
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    for (said, why) in [
        (String::new(), "it is no JSON object"),
        ("hello".to_owned(), "it is no JSON object"),
        ("{".to_owned(), "EOF while parsing"),
        ("[]".to_owned(), "it is no JSON object"),
        ("{} {}".to_owned(), "trailing characters"),
        (format!(r#"{{"x":{deep}}}"#), "unknown field `x`"),
        (format!(r#"{{"body":{deep}}}"#), "body: invalid type: sequence, expected a string"),
        (r#"{"statusCode":200}"#.to_owned(), "unknown field `statusCode`, expected one of `status`, `headers`, `body`"),
        (r#"{"status":"200"}"#.to_owned(), r#"status: invalid type: string "200""#),
        (r#"{"status":200.5}"#.to_owned(), "status: invalid type: floating point"),
        (r#"{"status":-1}"#.to_owned(), "status: invalid value: integer `-1`"),
        (r#"{"status":200,"status":201}"#.to_owned(), "duplicate field `status`"),
        (r#"{"status":99}"#.to_owned(), "status is 99; it must be from 200 to 599"),
        (r#"{"status":100}"#.to_owned(), "status is 100"),
        (r#"{"status":101}"#.to_owned(), "status is 101"),
        (r#"{"status":199}"#.to_owned(), "status is 199"),
        (r#"{"status":600}"#.to_owned(), "status is 600"),
        (r#"{"status":65736}"#.to_owned(), "status is 65736"),
        (r#"{"status":204,"body":"x"}"#.to_owned(), "status 204 takes no body"),
        (r#"{"status":205,"body":"x"}"#.to_owned(), "status 205 takes no body"),
        (r#"{"status":304,"body_base64":"eA=="}"#.to_owned(), "status 304 takes no body"),
        (r#"{"body":{"a":1}}"#.to_owned(), "body: invalid type: map, expected a string"),
        (r#"{"body":"","body_base64":""}"#.to_owned(), "both body and body_base64"),
        (r#"{"body_base64":"=x"}"#.to_owned(), "body_base64: Invalid"),
        (r#"{"headers":[["etag","1"]]}"#.to_owned(), "expected headers, an object of strings"),
        (r#"{"headers":{"etag":1}}"#.to_owned(), "headers: invalid type: integer"),
        (r#"{"headers":{"etag":"1","ETag":"2"}}"#.to_owned(), "the header etag is there twice"),
        (header("etag", "1\r\nset-cookie: a=b"), "the header etag has a character that a header cannot hold"),
        (header("etag", "1\nx"), "the header etag has a character"),
        (header("etag", "\0"), "the header etag has a character"),
        (header("etag\r\nset-cookie", "a"), "is not among service.response_headers"),
        (header("", "a"), r#"the header "" is not among"#),
        (header("set-cookie", "a=b"), r#"the header "set-cookie" is not among"#),
        (header("Content-Length", "5"), r#"the header "Content-Length" is not among"#),
        (header("transfer-encoding", "chunked"), "is not among"),
        (header("connection", "close"), "is not among"),
        (header("server-timing", "exec;dur=1"), "is not among"),
        (header("etag", &"x".repeat(17_000)), "headers take more than 16384 bytes"),
        (json!({"headers": many}).to_string(), "headers take more than 16384 bytes"),
        (json!({"x".repeat(10_000): 1}).to_string(), "unknown field `xxx"),
    ] {
        let patch = json!({"config": {"colour": said}}).to_string();
        assert_eq!(server.patch("says", &[], &patch).status, 200);
        let answer = server.post("says", b"");
        answer.is(422, "guest_error");
        let answer = answer.json();
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains("its output is no response, which input = request wants: "), "{detail}");
        assert!(detail.contains(why) && detail.len() < 700, "{said:.100}: {detail}");
    }
    // None of them cost anything but itself.
    assert_eq!(server.patch("says", &[], r#"{"config": {"colour": "{\"body\": \"fine\"}"}}"#).status, 200);
    assert_eq!(server.post("says", b"").text(), "fine");
}

#[test]
fn bytes_stay_bytes_and_a_spec_says_which() {
    let folder = TempDir::new().unwrap();
    let mut server = Server::start_in(folder.path(), &[]);
    assert_eq!(server.put("text?entry_point=upper", TEXT).status, 201);
    assert_eq!(server.post("text", b"tea").text(), "TEA");
    let unknown = server.post("text?lang=de", b"tea");
    unknown.is(400, "invalid_request");
    assert!(unknown.text().contains("this request takes entry_point"), "{unknown:?}");
    server.put("text?entry_point=upper&input=http", TEXT).is(400, "invalid_request");
    // Static data is merged into bytes.
    let both = r#"{"entry_point": "upper", "input": "request", "static_data": {}}"#;
    let refused = server.put_form("text", &[("spec", both.as_bytes()), ("plugin", TEXT)]);
    refused.is(400, "invalid_request");
    assert!(refused.text().contains("leave one of the two out"), "{refused:?}");
    assert_eq!(server.patch("text", &[], r#"{"static_data": {"a": "b"}}"#).status, 200);
    server.patch("text", &[], r#"{"input": "request"}"#).is(400, "invalid_request");
    assert_eq!(server.put("mirror?input=request", MIRROR).status, 201);
    assert_eq!(server.put("open?entry_point=upper", TEXT).status, 201);
    assert_eq!(server.put("bytes?entry_point=upper&input=bytes", TEXT).status, 201);
    server.signal("TERM");
    assert!(server.ended().success());

    // What a spec says stays, and what it leaves open is the operator's to say.
    let server = Server::start_in(folder.path(), &[("ENGINE_INPUT", "request")]);
    assert_eq!(server.info("mirror")["spec"], json!({"input": "request"}));
    assert_eq!(server.post("mirror", b"x").json()["body"], "x");
    assert_eq!(server.post("bytes", b"x").text(), "X");
    server.post("open", b"x").is(422, "guest_error");
    assert_eq!(server.post("text", b"").text(), r#"{"A":"B"}"#);
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
}

#[test]
fn the_document_is_what_the_limit_of_inputs_bounds() {
    let server = Server::start(&[("LIMITS_INPUT_SIZE", "1KiB")]);
    assert_eq!(server.put("mirror?input=request", MIRROR).status, 201);
    let around = send(&server, "mirror", "", b"").body.len();
    let fits = |body: &[u8]| {
        let answer = send(&server, "mirror", "", body);
        if answer.status != 203 {
            answer.is(413, "payload_too_large");
            let detail = answer.json()["detail"].to_string();
            assert!(detail.contains("limits.input_size, 1 KiB, as the JSON that its plugin gets"), "{detail}");
        }
        answer.status == 203
    };
    let most = 1024 - around;
    assert!(fits(&vec![b'x'; most]) && !fits(&vec![b'x'; most + 1]));
    assert!(!fits(&vec![b'x'; 1024]), "a body of the limit's size leaves no room for the rest");
    // Each byte is written as six.
    assert!(fits(&vec![0; most / 6]) && !fits(&vec![0; most / 6 + 1]));
    assert!(!fits(&vec![0xff; most]), "base64 is longer by a third");
    // What has come and been refused is not held.
    for _ in 0..20 {
        assert!(!fits(&[0xff; 1024]));
    }
    assert!(fits(b"x"));
}

/// What a call was given, and what its answer is taken for, are those of the revision that answers it.
#[test]
fn a_call_that_meets_a_new_revision_is_given_what_that_one_wants() {
    let server =
        Server::start(&[("LIMITS_EXEC_TIMEOUT", "10m"), ("POOL_GRACE", "10m"), ("LIMITS_WAIT_TIMEOUT", "10m")]);
    for (before, after) in [("request", "bytes"), ("bytes", "request")] {
        let spec = json!({"input": before, "config": {"colour": "spin"}, "limits": {"instances": 1}}).to_string();
        let put = server.put_form(before, &[("spec", spec.as_bytes()), ("plugin", &spins_or_echoes())]);
        assert_eq!(put.status, 201, "{put:?}");
        let target = format!("/v1/evaluators/{before}");
        let spinning = server.begin("POST", &target, "content-length: 0\r\n", b"");
        eventually("its guest has a stack", || server.metric("evalpool_slots_live", r#"kind="stack""#) == 1);
        let waiting = server.begin("POST", &target, "content-length: 5\r\n", b"hello");
        eventually("the other waits", || server.metric("evalpool_waiting", r#"for="instance""#) == 1);
        let patch = json!({"input": after, "config": null}).to_string();
        assert_eq!(server.patch(before, &[], &patch).status, 200);
        let answer = Answer::of(waiting);
        if after == "bytes" {
            assert_eq!((answer.status, answer.text()), (200, "hello"));
        } else {
            answer.is(422, "guest_error");
            assert!(answer.text().contains("unknown field `method`"), "{answer:?}");
        }
        drop(spinning);
        eventually("its guest is gone", || server.metric("evalpool_instances_live", "busy") == 0);
    }
}

/// Both the body and the document are in memory.
#[test]
fn documents_are_charged_to_the_budget_of_bodies() {
    let server = Server::start(&[
        ("POOL_MAX_INSTANCES_PER_EVALUATOR", "8"),
        ("POOL_GRACE", "0s"),
        ("LIMITS_EXEC_TIMEOUT", "10m"),
        ("LIMITS_INPUT_SIZE", "80KiB"),
        ("LIMITS_OUTPUT_SIZE", "80KiB"),
        ("LIMITS_PLUGIN_SIZE", "64KiB"),
        ("SERVICE_BODY_MEMORY", "640KiB"),
    ]);
    let spec = json!({"input": "request", "config": {"colour": "spin"}}).to_string();
    assert_eq!(server.put_form("spins", &[("spec", spec.as_bytes()), ("plugin", &spins_or_echoes())]).status, 201);
    // Seven bodies alone would be 448 of 640 KiB, and with what each connection has of its own, 336.
    let body = vec![b'x'; 64 * 1024];
    let length = format!("content-length: {}\r\n", body.len());
    let spinning: Vec<_> = (1..=5)
        .map(|count| {
            let call = server.begin("POST", "/v1/evaluators/spins", &length, &body);
            eventually("its guest has a stack", || server.metric("evalpool_slots_live", r#"kind="stack""#) == count);
            call
        })
        .collect();
    send(&server, "spins", "", &body).is(429, "saturated");
    drop(spinning);
    eventually("the guests are gone", || server.metric("evalpool_instances_live", "busy") == 0);
    assert_eq!(server.patch("spins", &[], r#"{"config": null}"#).status, 200);
    eventually("their room comes back", || send(&server, "spins", "", &body).kind() == "guest_error");
}

#[tokio::test]
async fn the_library_and_the_command_line_give_what_their_caller_gives() {
    let pool = builder(EngineKind::Direct).capacity(1).build().unwrap();
    let text = pool.evaluator("text", Spec::bytes(TEXT).entry_point("upper").input(Input::Request)).unwrap();
    assert_eq!(text.evaluate("tea").await.unwrap().text().unwrap(), "TEA");
    pool.close().await;
    let plugin = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plugins/c/text.wasm");
    let mut run = program();
    run.args(["run", plugin, "--entry", "upper", "--input", "tea"]).env("EVALPOOL_ENGINE_INPUT", "request");
    assert_eq!(run.output().unwrap().stdout, b"TEA");
}
