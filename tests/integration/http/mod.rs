//! `http_request` on `direct`, against real servers of this process that record what they are asked.

mod bodies;
mod connections;
mod hosts;
mod requests;
mod traces;

use std::sync::{Arc, Mutex};

use evalpool::{Source, Spec, config::EngineKind};
use serde_json::Value;

use crate::{
    conformance::{IMPORTS, http::http_server},
    support::{settings, wasm},
};

/// A server, and the requests that it got.
pub(crate) struct Recorder {
    pub(crate) port: u16,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    /// Answers each request, given its head and body, with bytes.
    pub(crate) fn start(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Self {
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let record = heard.clone();
        let port = http_server(move |request| {
            record.lock().unwrap().push(request.to_owned());
            answer(request)
        });
        Self { port, heard }
    }

    /// Answers each request with `ok`.
    pub(crate) fn ok() -> Self {
        Self::start(|_| answer("200 OK", &[], b"ok"))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What it was asked since the last time.
    pub(crate) fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

/// A response with a body and its length.
pub(crate) fn answer(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().flat_map(|header| [*header, "\r\n"]).collect();
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// The values of a header in a request, or in a response's head.
pub(crate) fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.lines().skip(1).take_while(|line| !line.is_empty()).filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

/// Makes the request that its input is, with the body `colour` if `with_body`, and gives the response's body, `message` if
/// that is empty, or the response's headers.
fn requester(with_body: bool, gives_headers: bool) -> Spec {
    let body = if with_body { "(call $colour)" } else { "(i64.const 0)" };
    let gives = if gives_headers {
        "(call $headers)"
    } else {
        "(if (result i64) (i64.eqz (local.get $body)) (then (call $message)) (else (local.get $body)))"
    };
    Spec::new(Source::bytes(wasm(&format!(
        r#"(module {IMPORTS} (func (export "run") (result i32) (local $body i64)
            (call $echo)
            (local.set $body (call $http (call $output_offset) {body}))
            (call $block {gives})
            i32.const 0))"#
    ))))
    .allowed_hosts(["127.0.0.1", "localhost"])
}

/// What a plugin gives for a request, or its error's kind and text.
async fn ask(spec: Spec, request: Value) -> Result<Vec<u8>, (String, String)> {
    ask_with(spec, request, |_| ()).await
}

/// The same with other settings than the default ones.
async fn ask_with(
    spec: Spec,
    request: Value,
    change: impl FnOnce(&mut evalpool::Settings),
) -> Result<Vec<u8>, (String, String)> {
    let mut settings = settings(EngineKind::Direct);
    (settings.pool.capacity, settings.pool.max_instances) = (2, 4);
    change(&mut settings);
    let pool = evalpool::EvaluatorPool::from_settings(&settings).unwrap();
    let response = pool.evaluator("asks", spec).unwrap().evaluate(request).await;
    pool.close().await;
    response.map(|response| response.bytes().to_vec()).map_err(|error| (error.kind().to_string(), error.to_string()))
}

/// The headers that a plugin sees of the response to a request.
async fn headers(request: Value) -> Value {
    serde_json::from_slice(&ask(requester(false, true), request).await.unwrap()).unwrap()
}
