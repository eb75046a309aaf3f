//! Spans go to a collector, continue the traces of clients, and have the ids that the log's lines have.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, Status, status::StatusCode},
};
use prost::Message;
use serde_json::json;

use super::{SPIN, Server, eventually, letter};
use crate::{
    conformance::IMPORTS,
    http::{Recorder, values},
    support::wasm,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A span, and what it says of the program that sent it.
type Got = (BTreeMap<String, String>, Span);

/// Takes spans as a collector does.
struct Collector {
    address: String,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let got = Arc::<Mutex<Vec<_>>>::default();
        let taken = got.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let (head, body) = read(&mut stream);
                assert!(head.starts_with("POST /base/v1/traces HTTP/1.1\r\n"), "{head}");
                assert_eq!(values(&head, "content-type"), ["application/x-protobuf"]);
                let request = ExportTraceServiceRequest::decode(&*body).unwrap();
                for of_resource in request.resource_spans {
                    let resource = texts(&of_resource.resource.unwrap().attributes);
                    let spans = of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
                    taken.lock().unwrap().extend(spans.map(|span| (resource.clone(), span)));
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            }
        });
        Self { address, got }
    }

    /// The settings of a server that sends to it.
    fn endpoint(&self) -> String {
        format!("http://{}/base/", self.address)
    }

    fn all(&self) -> Vec<Span> {
        self.got.lock().unwrap().iter().map(|(_, span)| span.clone()).collect()
    }

    /// The one span of this name, once it is there.
    fn one(&self, name: &str) -> Span {
        eventually(&format!("the span {name}"), || self.all().iter().any(|span| span.name == name));
        let all = self.all();
        let mut found = all.iter().filter(|span| span.name == name);
        let (Some(one), None) = (found.next(), found.next()) else { panic!("several are named {name}: {all:#?}") };
        one.clone()
    }
}

fn read(stream: &mut impl Read) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let end = |bytes: &[u8]| bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
    while end(&bytes).is_none() {
        let mut more = [0; 4096];
        let count = stream.read(&mut more).unwrap();
        assert!(count > 0, "the request ended early");
        bytes.extend_from_slice(&more[..count]);
    }
    let mut body = bytes.split_off(end(&bytes).unwrap());
    let head = String::from_utf8(bytes).unwrap();
    let length: usize = values(&head, "content-length")[0].parse().unwrap();
    let read_so_far = body.len();
    body.resize(length, 0);
    stream.read_exact(&mut body[read_so_far..]).unwrap();
    (head, body)
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let pair = |it: &KeyValue| (it.key.clone(), text(it.value.as_ref().unwrap().value.as_ref().unwrap()));
    attributes.iter().map(pair).collect()
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Sends a request to the address in its input.
fn asker() -> Vec<u8> {
    wasm(&format!(
        r#"(module {IMPORTS} (func (export "run") (result i32)
            (call $echo)
            (drop (call $http (call $output_offset) (i64.const 0)))
            i32.const 0))"#
    ))
}

#[test]
fn a_request_is_one_trace_from_its_client_to_the_server_that_its_guest_asks() {
    let (collector, asked) = (Collector::start(), Recorder::ok());
    let settings = [
        ("TELEMETRY_OTLP_ENDPOINT", &*collector.endpoint()),
        ("ENGINE_ALLOWED_HOSTS", "127.0.0.1"),
        ("LOG_FORMAT", "json"),
    ];
    let mut server = Server::start(&settings);
    assert_eq!(server.put("acme%2Fasks", &asker()).status, 201);
    let input = json!({"url": asked.url("/some?key=hidden")}).to_string();
    let path = "/v1/evaluators/acme%2Fasks";
    let answer = server.request("POST", path, &[("traceparent", PARENT), ("tracestate", "a=b")], input.as_bytes());
    assert_eq!(answer.status, 200);
    let page = server.get("/ui/evaluators/acme%2Fasks").json();
    assert_eq!(page["slowest"][0]["trace"], json!({"id": TRACE, "is_sampled": true}));
    server.signal("TERM");
    assert!(server.ended().success());

    let [request, evaluation, run, asks] =
        ["POST /v1/evaluators/{name}", "acme/asks", "run", "GET"].map(|name| collector.one(name));
    let mut parent = "b7ad6b7169203331".to_owned();
    for span in [&request, &evaluation, &run, &asks] {
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.to_owned(), parent), "{span:#?}");
        parent = hex(&span.span_id);
    }
    assert_eq!(request.trace_state, "a=b");
    let heard = asked.heard().remove(0);
    let sent = format!("00-{TRACE}-{}-01", hex(&asks.span_id));
    assert_eq!(values(&heard, "traceparent"), [&*sent], "the server that is asked goes on with it");
    let (of_request, of_evaluation) = (texts(&request.attributes), texts(&evaluation.attributes));
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/evaluators/{name}"),
        ("url.path", "/v1/evaluators/acme%2Fasks"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(of_request[name], value, "{name}");
    }
    for (name, value) in [
        ("faas.name", "acme/asks"),
        ("evalpool.tenant", "acme"),
        ("evalpool.outcome", "ok"),
        ("evalpool.usage.http_requests", "1"),
    ] {
        assert_eq!(of_evaluation[name], value, "{name}");
    }
    // The upload is another trace; its build is a part of it.
    let (upload, build) = (collector.one("PUT /v1/evaluators/{name}"), collector.one("build"));
    assert_eq!(build.trace_id, upload.trace_id);
    assert_ne!(hex(&build.trace_id), TRACE);
    let resource = collector.got.lock().unwrap()[0].0.clone();
    assert_eq!(resource["service.name"], "evalpool");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    // The close at the end is sent too, and the lines of the log have the ids.
    assert_eq!(texts(&collector.one("close").attributes)["evalpool.close.reason"], "shutdown");
    let log = server.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let line = lines.into_iter().find(|line| line["message"] == "answered" && line["method"] == "POST").unwrap();
    assert_eq!((&line["trace_id"], &line["span_id"]), (&json!(TRACE), &json!(hex(&request.span_id))));
    assert_eq!((&line["status"], &line["path"]), (&json!(200), &json!("/v1/evaluators/acme%2Fasks")));
    let all = format!("{:?} {log}", collector.all());
    assert!(!all.contains("hidden"), "{all}");
}

#[test]
fn what_fails_is_an_error_and_what_its_client_got_wrong_is_not() {
    let collector = Collector::start();
    let mut server = Server::start(&[("TELEMETRY_OTLP_ENDPOINT", &collector.endpoint())]);
    let traps = wasm(r#"(module (func (export "run") unreachable))"#);
    assert_eq!(server.put("traps", &traps).status, 201);
    assert_eq!(server.post("traps", b"").status, 422);
    let page = server.get("/ui/evaluators/traps").json();
    server.signal("TERM");
    assert!(server.ended().success());
    let (request, evaluation) = (collector.one("POST /v1/evaluators/{name}"), collector.one("traps"));
    let code = |span: &Span| span.status.as_ref().map_or(StatusCode::Unset, Status::code);
    assert_eq!((code(&evaluation), code(&request)), (StatusCode::Error, StatusCode::Unset));
    assert_eq!(texts(&evaluation.attributes)["error.type"], "guest_trap");
    let trace = json!({"id": hex(&request.trace_id), "is_sampled": true});
    assert_eq!((&page["failures"][0]["trace"], &page["slowest"][0]["trace"]), (&trace, &trace), "{page}");
    assert!(server.log().contains(&format!("trace_id={}", hex(&request.trace_id))), "{}", server.log());
}

#[test]
fn what_is_not_to_be_sampled_is_not_sent_unless_its_client_says_so() {
    let collector = Collector::start();
    let settings = [("TELEMETRY_OTLP_ENDPOINT", &*collector.endpoint()), ("TELEMETRY_SAMPLE", "0")];
    let mut server = Server::start(&settings);
    assert_eq!(server.put("a", &letter('a')).status, 201);
    assert_eq!(server.post("a", b"").text(), "a");
    assert_eq!(server.request("POST", "/v1/evaluators/a", &[("traceparent", PARENT)], b"").text(), "a");
    let unsampled = PARENT.replace("-01", "-00");
    assert_eq!(server.request("POST", "/v1/evaluators/a", &[("traceparent", &unsampled)], b"").text(), "a");
    server.signal("TERM");
    assert!(server.ended().success());
    let spans = collector.all();
    assert!(!spans.is_empty() && spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:#?}");
    assert_eq!(spans.iter().filter(|span| span.name == "a").count(), 1);
}

#[test]
fn a_collector_that_is_gone_holds_nobody_up_and_is_told_of_once() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut server = Server::start(&[("TELEMETRY_OTLP_ENDPOINT", &format!("http://ada:hidden@{gone}"))]);
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    server.signal("TERM");
    assert!(server.ended().success());
    server.has_logged("spans cannot be sent to telemetry.otlp_endpoint");
    assert!(!server.log().contains("hidden"), "{}", server.log());
}

#[test]
fn without_spans_the_log_has_the_trace_that_a_client_names_and_hands_it_on() {
    let asked = Recorder::ok();
    let server = Server::start(&[("ENGINE_ALLOWED_HOSTS", "127.0.0.1")]);
    assert_eq!(server.put("asks", &asker()).status, 201);
    let input = json!({"url": asked.url("/")}).to_string();
    let answer = server.request("POST", "/v1/evaluators/asks", &[("traceparent", PARENT)], input.as_bytes());
    assert_eq!(answer.status, 200);
    assert_eq!(values(&asked.heard()[0], "traceparent"), [PARENT]);
    server.has_logged(&format!("trace_id=\"{TRACE}\""));
}

#[test]
fn a_client_that_leaves_has_its_line_and_its_span_as_well() {
    let collector = Collector::start();
    let mut server = Server::start(&[("TELEMETRY_OTLP_ENDPOINT", &collector.endpoint())]);
    assert_eq!(server.put("spins", &wasm(SPIN)).status, 201);
    drop(server.begin_evaluation("spins"));
    server.has_logged("its client left method=POST path=\"/v1/evaluators/spins\" seconds=");
    eventually("it is kept", || server.get("/ui/evaluators/spins").json()["slowest"] != json!([]));
    let slow = server.get("/ui/evaluators/spins").json()["slowest"][0].clone();
    server.signal("TERM");
    assert!(server.ended().success());
    let span = collector.one("spins");
    assert_eq!(texts(&span.attributes)["evalpool.outcome"], "cancelled");
    let trace = json!({"id": hex(&span.trace_id), "is_sampled": true});
    assert_eq!((&slow["outcome"], &slow["trace"]), (&json!("cancelled"), &trace), "{slow}");
}

#[test]
fn of_many_requests_some_are_logged() {
    let server = Server::start(&[("LOG_LEVEL", "info"), ("LOG_REQUESTS_PER_SECOND", "0")]);
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    assert_eq!(server.put("a", &letter('a')).status, 201);
    server.has_logged("an evaluator was registered");
    assert!(!server.log().contains("answered"), "{}", server.log());
    let server = Server::start(&[("LOG_LEVEL", "info"), ("LOG_REQUESTS_PER_SECOND", "1000")]);
    assert_eq!(server.post("greet", br#"{"name":"Ada"}"#).status, 200);
    server.has_logged("answered method=POST path=\"/v1/evaluators/greet\" status=200 seconds=");
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.get("/metrics").status, 200);
    assert!(server.log().lines().all(|line| !line.contains("path=\"/readyz\"")), "{}", server.log());
}
