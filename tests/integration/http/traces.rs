//! Which trace a guest's requests belong to, and what is told of them.

use evalpool::{EvaluatorPool, TraceParent, config::EngineKind};
use serde_json::json;

use super::{Recorder, answer, requester, values};
use crate::support::{settings, spans::Spans};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn pool() -> EvaluatorPool {
    EvaluatorPool::from_settings(&settings(EngineKind::Direct)).unwrap()
}

#[tokio::test]
async fn a_request_carries_the_trace_of_its_call_unless_the_plugin_names_one() {
    let server = Recorder::ok();
    let evaluator = pool().evaluator("asks", requester(false, false)).unwrap();
    let request = json!({"url": server.url("/")});
    evaluator.evaluate(request.clone()).await.unwrap();
    evaluator.evaluate_with(request, PARENT.parse::<TraceParent>().unwrap()).await.unwrap();
    let own = json!({"url": server.url("/"), "headers": {"TraceParent": "its own"}});
    evaluator.evaluate_with(own, PARENT.parse::<TraceParent>().unwrap()).await.unwrap();
    let heard = server.heard();
    let sent: Vec<_> = heard.iter().map(|request| values(request, "traceparent")).collect();
    assert_eq!(sent, [vec![], vec![PARENT], vec!["its own"]]);
}

#[tokio::test]
async fn a_request_is_a_span_that_shows_nothing_secret() {
    let spans = Spans::here();
    let server = Recorder::start(|request| match request.split(' ').nth(1) {
        Some("/none?key=hidden") => answer("404 Not Found", &[], b""),
        _ => answer("200 OK", &[], b"ok"),
    });
    let evaluator = pool().evaluator("asks", requester(false, false)).unwrap();
    let secret = server.url("/some?key=hidden#part").replace("//", "//ada:hidden@");
    evaluator.evaluate(json!({"url": secret, "headers": {"authorization": "hidden"}})).await.unwrap();
    let told = spans.last("http_request");
    let (url, port) = (server.url("/some"), server.port.to_string());
    for (name, value) in [
        ("otel.name", "GET"),
        ("otel.kind", "client"),
        ("http.request.method", "GET"),
        ("url.full", &*url),
        ("server.address", "127.0.0.1"),
        ("server.port", &*port),
        ("http.response.status_code", "200"),
        ("error.type", ""),
    ] {
        assert_eq!(told.field(name), value, "{name}");
    }
    assert!(told.has_ended && told.parent == "run");
    evaluator.evaluate(json!({"url": server.url("/none?key=hidden")})).await.unwrap();
    let told = spans.last("http_request");
    assert_eq!((told.field("error.type"), told.field("otel.status_code")), ("404", "ERROR"));
    assert_eq!(spans.last("evaluation").field("evalpool.usage.http_requests"), "1");
    assert!(!format!("{:?}", spans.all()).contains("hidden"), "{:#?}", spans.all());
    // One that is not allowed is not sent, and there is nothing to tell.
    let before = spans.all().iter().filter(|seen| seen.name == "http_request").count();
    evaluator.evaluate(json!({"url": "http://example.org/"})).await.unwrap_err();
    assert_eq!(spans.all().iter().filter(|seen| seen.name == "http_request").count(), before);
}
