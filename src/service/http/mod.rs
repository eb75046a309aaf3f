//! The service over HTTP: the routes, and what happens to every request.
//!
//! | file | what it holds |
//! |---|---|
//! | [`evaluators`] | the requests about evaluators |
//! | [`tenants`] | the requests about tenants |
//! | [`exchange`] | requests and responses as JSON documents, for plugins that want them |
//! | [`form`] | uploads in parts |
//! | [`lines`] | a line of the log for each request |
//! | [`noted`] | what the page keeps of a call |
//! | [`openapi`] | the document of all that clients can ask |
//! | [`operations`] | health, readiness, metrics |
//! | [`origin`] | which web pages may use the service |
//! | [`request`] | names, parameters and conditions, parsed |
//! | [`body`], [`linger`] | request bodies, bounded in size, time and sum, and the rest of one that is not read |
//! | [`answer`] | answers, bounded in sum with them |
//! | [`problem`] | errors as clients see them. Only this file knows the status of an error |
//! | [`tokens`] | who may use the service |
//! | [`ui`] | the requests of the status page |
//! | [`work`] | requests in flight, which a shutdown waits for |
//!
//! A handler is one future. When its client leaves, hyper drops that future, which gives up a place in a queue, stops a
//! guest or leaves a build. Guests run on [threads of their own](super::guests). Commits of the store must not stop half-way: they run on a blocking thread, to their end.

mod answer;
mod body;
mod evaluators;
mod exchange;
mod form;
mod lines;
mod linger;
mod noted;
mod openapi;
mod operations;
mod origin;
mod problem;
mod request;
mod tenants;
mod tokens;
mod ui;
mod work;

use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get},
};
use futures_util::FutureExt;
use tracing::Instrument;

use self::{exchange::Allowed, lines::Lines, origin::Hosts, problem::Problem};
pub(super) use self::{tokens::Tokens, work::Work};
use super::{
    connections::Connections, document::Ceilings, exporter::Exporter, guests::Guests, store::Store,
    telemetry::requests, ui::Ui,
};
use crate::{Error, ErrorKind, EvaluatorId, EvaluatorPool, Settings};

/// State that all requests share.
pub(super) struct App {
    pool: EvaluatorPool,
    store: Arc<Store>,
    ceilings: Ceilings,
    plugin_size: u64,
    input_size: u64,
    connections: Arc<Connections>,
    /// Which headers pass to and from plugins that take requests.
    allowed: Allowed,
    tokens: Option<Arc<Tokens>>,
    /// By which names the server is reached, where nobody needs a token.
    hosts: Hosts,
    work: Work,
    guests: Arc<Guests>,
    exporter: Exporter,
    lines: Lines,
    /// What the status page shows, if there is one.
    ui: Option<Arc<Ui>>,
}

impl App {
    pub(super) fn new(
        pool: EvaluatorPool,
        store: Store,
        ceilings: Ceilings,
        settings: &Settings,
        tokens: Option<Arc<Tokens>>,
        exporter: Exporter,
        guests: Guests,
    ) -> Self {
        let limits = &settings.limits;
        let ui = settings.service.has_ui().then(|| Arc::new(Ui::new(settings)));
        if let Some(ui) = ui.clone() {
            pool.keep_logs(move |evaluator, tenant, level, text| ui.lines.note(evaluator, tenant, level, text));
        }
        Self {
            pool,
            store: Arc::new(store),
            ceilings,
            plugin_size: limits.plugin_size,
            input_size: limits.input_size,
            connections: Connections::new(&settings.service),
            allowed: Allowed::new(&settings.service),
            tokens,
            hosts: Hosts::new(&settings.service.host_names),
            work: Work::default(),
            guests: Arc::new(guests),
            exporter,
            lines: Lines::new(settings.log.requests_per_second),
            ui,
        }
    }

    /// What the status page shows, if there is one.
    pub(super) fn ui(&self) -> Option<Arc<Ui>> {
        self.ui.clone()
    }

    /// Notes for the page what was done to an evaluator.
    fn note_change(&self, name: &str, what: &'static str) {
        if let Some(ui) = &self.ui {
            ui.history.changed(name, what);
        }
    }

    /// Forgets what an evaluator that is removed left for the page.
    fn forget(&self, evaluator: EvaluatorId) {
        if let Some(ui) = &self.ui {
            ui.forget(evaluator);
        }
    }

    /// How often tokens were read.
    fn version_of_tokens(&self) -> u64 {
        self.tokens.as_ref().map_or(0, |tokens| tokens.version())
    }

    pub(super) fn work(&self) -> &Work {
        &self.work
    }

    pub(super) fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }
}

/// Every route.
pub(super) fn router(app: Arc<App>) -> Router {
    let mut evaluators = Router::new();
    if app.ui.is_some() {
        evaluators = evaluators
            .route("/ui/evaluators", get(ui::evaluators))
            .route("/ui/evaluators/{name}", get(ui::evaluator))
            .route("/ui/tenants", get(ui::tenants));
    }
    let evaluators = evaluators
        .route("/v1/evaluators", get(evaluators::list))
        .route(
            "/v1/evaluators/{name}",
            get(evaluators::show)
                .put(evaluators::put)
                .patch(evaluators::patch)
                .post(evaluators::evaluate)
                .delete(evaluators::remove),
        )
        .route("/v1/evaluators/{name}/runtime", delete(evaluators::unload))
        .route("/v1/tenants", get(tenants::list))
        .route("/v1/tenants/{name}", get(tenants::show))
        .route_layer(middleware::from_fn(answer::bound))
        .route_layer(middleware::from_fn_with_state(app.clone(), count));
    let mut guarded = evaluators.route("/metrics", get(operations::metrics));
    if app.ui.is_some() {
        guarded = guarded.route("/ui/events", get(ui::events));
    }
    let guarded = guarded.route_layer(middleware::from_fn_with_state(app.clone(), authorise));
    let files = if app.ui.is_some() { ui::files() } else { Router::new() };
    whole(guarded.merge(files).route("/openapi.json", get(openapi::document)), app)
}

/// The routes of `service.admin_listen`: health, readiness and metrics.
pub(super) fn admin_router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(operations::metrics))
        .route_layer(middleware::from_fn_with_state(app.clone(), authorise));
    whole(guarded, app)
}

fn whole(guarded: Router<Arc<App>>, app: Arc<App>) -> Router {
    Router::new()
        .merge(guarded.route_layer(middleware::from_fn_with_state(app.clone(), origin::check)))
        // These tell nobody anything, and whoever probes them may name any host.
        .route("/healthz", get(operations::healthz))
        .route("/readyz", get(operations::readyz))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(app.clone(), handle))
        .with_state(app)
}

/// Handles every request, whatever its route.
async fn handle(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let span = requests::span(&request);
    let mut line = app.lines.begin(&request, &span);
    // A panic in a handler must not lose the answer and the connection.
    let handled = AssertUnwindSafe(next.run(linger::wrap(request))).catch_unwind();
    let answered = handled.instrument(span.clone()).await;
    let panicked = Error::Internal { reason: "the request's handler panicked", cause: None };
    let mut response = answered.unwrap_or_else(|_| Problem::from(panicked).into_response());
    let headers = response.headers_mut();
    // A plugin chooses its output: a browser must not take it for a page.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if app.work.is_draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    requests::record(&span, response.status());
    line.status = Some(response.status());
    drop(line);
    response
}

/// Refuses new work while the server drains, and counts the requests that it admits.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match app.work.begin() {
        Some(_in_flight) => next.run(request).await,
        None => Problem::from(Error::ShuttingDown).into_response(),
    }
}

async fn authorise(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match &app.tokens {
        Some(tokens) if !tokens.admit(request.headers()) => Problem::from(Error::Unauthorized).into_response(),
        _ => next.run(request).await,
    }
}

async fn no_route() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        ErrorKind::NotFound,
        "there is nothing at this path; evaluators are at /v1/evaluators/{name}, with a / in a name written %2F",
    )
}

async fn no_method() -> Problem {
    let detail = "this path does not take that method; the header allow names those that it takes";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::InvalidRequest, detail)
}
