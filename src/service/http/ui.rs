//! The requests of the status page: its files, which anybody may load, and what it shows, which takes a token.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;

use super::{
    App,
    evaluators::{Shown, blocking, json, shown},
    problem::Problem,
    request::{self, Name, no_parameters},
};
use crate::{
    Error, ErrorKind, RuntimeInfo,
    service::ui::{
        Failure, Line, Slow, Ui, Watcher,
        page::{FILES, File, POLICY},
        search,
    },
};

/// The page's files.
pub(super) fn files() -> Router<Arc<App>> {
    FILES.iter().fold(Router::new(), |router, file| router.route(file.path, get(move || async move { send(file) })))
}

fn send(file: &'static File) -> Response {
    const SAFE: [(HeaderName, &str); 5] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the server has other files.
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    (SAFE, [(header::CONTENT_TYPE, file.kind)], file.text).into_response()
}

/// What changes, as server-sent events: first the last ten minutes, then each second. It ends when the server drains.
pub(super) async fn events(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    let (next, is_mapped) = request::watch(&uri)?;
    let too_many = || {
        let detail = "as many pages are open as may be; close one";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::Saturated, detail)
    };
    let watcher = ui(&app)?.history.watch(next, is_mapped).ok_or_else(too_many)?;
    let greeting = format!("event: hello\ndata: {{\"version\":\"{}\"}}\n\n", env!("CARGO_PKG_VERSION"));
    let greeting = vec![Bytes::from(greeting)].into_iter();
    let version = app.version_of_tokens();
    let events = stream::unfold((app, watcher, greeting), move |(app, mut watcher, mut event)| async move {
        if event.len() == 0 {
            event = next_event(&app, &mut watcher, version).await?.into_iter();
        }
        let part = event.next()?;
        Some((Ok::<_, Infallible>(part), (app, watcher, event)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // nginx would collect them.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

async fn next_event(app: &App, watcher: &mut Watcher, version: u64) -> Option<Vec<Bytes>> {
    loop {
        // Whoever reads shows a token again once they have changed.
        if app.work.is_draining() || app.version_of_tokens() != version {
            return None;
        }
        if let Some(event) = watcher.read(&app.ui.as_ref()?.history) {
            return Some(event);
        }
        tokio::select! {
            () = watcher.news() => {}
            () = app.work.draining() => {}
        }
    }
}

/// Evaluators, looked through, sorted and cut.
pub(super) async fn evaluators(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    search_by(app, &uri, |app, ui, search| {
        search::evaluators(&app.pool, search, ui.history.snapshot().as_deref(), &ui.latencies)
    })
    .await
}

/// Tenants, likewise.
pub(super) async fn tenants(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    search_by(app, &uri, |app, _, search| search::tenants(&app.pool, search)).await
}

async fn search_by<T: Serialize + Send + 'static>(
    app: Arc<App>,
    uri: &Uri,
    find: impl FnOnce(&App, &Ui, &search::Search) -> search::Found<T> + Send + 'static,
) -> Result<Response, Problem> {
    let search = request::search(uri)?;
    let ui = ui(&app)?.clone();
    let closed = |error| Error::internal("nobody may search any more", error);
    let turn = ui.searches.clone().acquire_owned().await.map_err(closed)?;
    let search = move || {
        // The search's, not the request's: it goes on when its client leaves.
        let _turn = turn;
        Ok(find(&app, &ui, &search))
    };
    json(&blocking(search).await?)
}

/// One evaluator, with what the page alone shows: its runtime, how long its calls took of late and which were the slowest, its
/// last failures and lines.
pub(super) async fn evaluator(State(app): State<Arc<App>>, Name(name): Name, uri: Uri) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Whole {
        #[serde(flatten)]
        shown: Shown,
        runtime: Option<RuntimeInfo>,
        p50_seconds: Option<f64>,
        p99_seconds: Option<f64>,
        slowest: Vec<Slow>,
        failures: Vec<Failure>,
        /// Where a trace is looked at, with `{trace_id}` in it.
        trace_url: Option<String>,
        /// `null` if its debug is off: then none are kept.
        log: Option<Vec<Line>>,
    }

    no_parameters(&uri)?;
    let ui = ui(&app)?.clone();
    let whole = blocking(move || {
        let evaluator = app.pool.get(&name).ok_or_else(|| Error::NotFound { name: name.clone() })?;
        let runtime = ui.history.runtime(evaluator.id());
        let (id, is_debugged) = (evaluator.id(), evaluator.is_debugged());
        let (failures, log) = (ui.failures.of(id, is_debugged), is_debugged.then(|| ui.lines.of(id)));
        let (times, slowest, trace_url) = (ui.latencies.of(id), ui.slowest.of(id), ui.trace_url.clone());
        let [p50_seconds, p99_seconds] = [times.map(|times| times.p50), times.map(|times| times.p99)]
            .map(|time| time.map(|time| time.as_secs_f64()));
        let shown = shown(&app, name)?;
        Ok(Whole { shown, runtime, p50_seconds, p99_seconds, slowest, failures, trace_url, log })
    })
    .await?;
    json(&whole)
}

fn ui(app: &App) -> Result<&Arc<Ui>, Error> {
    // Its routes are there only with it.
    app.ui.as_ref().ok_or(Error::Internal { reason: "there is no page", cause: None })
}
