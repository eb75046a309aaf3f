//! How many connections plugins have, and for how long.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    time::Duration,
};

use evalpool::{Evaluator, EvaluatorPool, RuntimeState, Source, Spec, config::EngineKind};
use serde_json::json;

use super::requester;
use crate::support::{
    eventually,
    process::{Held, alone, forgetful_threads},
    settings,
};

/// A server that counts its connections.
struct Counter {
    port: u16,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    open: usize,
    most: usize,
    all: usize,
}

impl Counter {
    /// Answers each request with this and leaves the connection open, or is silent.
    fn start(answer: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::<Mutex<Counts>>::default();
        let shared = counts.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, counts) = (stream.unwrap(), shared.clone());
                {
                    let mut counts = counts.lock().unwrap();
                    counts.open += 1;
                    counts.all += 1;
                    counts.most = counts.most.max(counts.open);
                }
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                        answer.map(|answer| stream.write_all(answer.as_bytes()));
                    }
                    drop(stream);
                    counts.lock().unwrap().open -= 1;
                });
            }
        });
        Self { port, counts }
    }

    fn silent() -> Self {
        Self::start(None)
    }

    fn ok() -> Self {
        Self::start(Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok"))
    }

    fn counts(&self) -> Counts {
        *self.counts.lock().unwrap()
    }

    fn request(&self) -> serde_json::Value {
        json!({"url": format!("http://127.0.0.1:{}/", self.port)})
    }
}

/// Up to `all` connections, and `each`.
fn pool(all: usize, each: usize) -> EvaluatorPool {
    let mut settings = settings(EngineKind::Direct);
    (settings.pool.capacity, settings.pool.max_instances) = (4, 32);
    settings.pool.max_instances_per_evaluator = 12;
    (settings.engine.max_http_connections, settings.engine.max_http_connections_per_evaluator) = (all, each);
    EvaluatorPool::from_settings(&settings).unwrap()
}

fn evaluator(pool: &EvaluatorPool, name: &str, change: impl FnOnce(Spec) -> Spec) -> Evaluator {
    pool.register(name, change(requester(false, false))).unwrap()
}

#[test]
fn a_plugin_has_as_many_connections_as_it_may_and_the_others_have_theirs() {
    if !alone("http::connections::a_plugin_has_as_many_connections_as_it_may_and_the_others_have_theirs") {
        return;
    }
    let (silent, held, ok) = (Counter::silent(), Counter::silent(), Counter::ok());
    forgetful_threads().block_on(async {
        let pool = pool(5, 4);
        let greedy = evaluator(&pool, "greedy", |spec| spec);
        let holds = evaluator(&pool, "holds", |spec| spec);
        let other = evaluator(&pool, "other", |spec| spec.exec_timeout(Duration::from_millis(300)));
        // Whatever is made once is made.
        other.evaluate(ok.request()).await.unwrap();
        eventually("no connection is kept for later", || ok.counts().open == 0).await;
        let before = Held::by_this_process().open_files;

        let ask = |evaluator: &Evaluator, server: &Counter| {
            let (evaluator, request) = (evaluator.clone(), server.request());
            tokio::spawn(async move { evaluator.evaluate(request).await })
        };
        let many: Vec<_> = (0..12).map(|_| ask(&greedy, &silent)).collect();
        eventually("it has all that it may have", || silent.counts().open == 4).await;
        eventually("all of its guests are at it", || pool.info("greedy").unwrap().instances == 12).await;
        for _ in 0..3 {
            assert_eq!(other.evaluate(ok.request()).await.unwrap().bytes(), &b"ok"[..]);
        }
        assert_eq!(ok.counts().all, 4, "each request has a connection of its own");

        let last = ask(&holds, &held);
        eventually("there are no more", || held.counts().open == 1).await;
        let error = other.evaluate(ok.request()).await.unwrap_err();
        assert_eq!(error.kind(), "saturated");
        assert!(error.to_string().contains("as engine.max_http_connections allows"), "{error}");

        assert_eq!(silent.counts().most, 4, "at no time more");
        many.iter().for_each(tokio::task::JoinHandle::abort);
        eventually("a guest that is dropped closes its connection", || silent.counts().open == 0).await;
        assert_eq!(other.evaluate(ok.request()).await.unwrap().bytes(), &b"ok"[..]);
        last.abort();
        eventually("so does this one", || held.counts().open == 0).await;
        eventually("all files are given back", || Held::by_this_process().open_files == before).await;
        pool.close().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_of_plugins_have_a_bounded_number_of_connections_however_small_plugins_are() {
    let silent = Counter::silent();
    let mut settings = settings(EngineKind::Direct);
    settings.limits.plugin_size = 1024;
    let pool = EvaluatorPool::from_settings(&settings).unwrap();
    let from = format!("127.0.0.1:{}", silent.port);
    let names: Vec<_> = (0..80).map(|at| format!("fetched-{at}")).collect();
    let begin = |name: &String| {
        let source = Source::http(format!("http://{from}/{name}.wasm")).allow_host(from.clone());
        let evaluator = pool.register(name, Spec::new(source)).unwrap();
        tokio::spawn(async move { evaluator.evaluate("").await })
    };
    let builds: Vec<_> = names.iter().map(begin).collect();
    let is_building = |name: &String| pool.info(name).unwrap().state == RuntimeState::Building;
    eventually("all are at it", || names.iter().all(is_building)).await;
    eventually("as many as may are there", || silent.counts().open == 64).await;
    assert_eq!(silent.counts().most, 64);
    pool.close().await;
    eventually("a close ends them", || silent.counts().open == 0).await;
    for build in builds {
        assert_eq!(build.await.unwrap().unwrap_err().kind(), "shutting_down");
    }
}
