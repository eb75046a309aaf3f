//! The requests about evaluators.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{Serialize, de::IgnoredAny};
use serde_json::Value;
use tracing::{Instrument, Span};

use super::{
    App, answer,
    body::Bodies,
    exchange::{Answer, Asked},
    form::{self, Form, is_form},
    noted::Noted,
    problem::Problem,
    request::{
        Call, Conditions, Name, Page, check_is_patch, check_is_wasm, check_not_coded, etag, no_parameters, upload,
    },
};
use crate::{
    CloseReport, Data, Error, ErrorKind, Evaluator, EvaluatorInfo, Input, Plugin, Timings, Usage,
    data::InputSource,
    service::{
        connections::Connection,
        document::{Document, MAX_DOCUMENT},
        store::{Current, Staged},
        telemetry,
    },
    tenants::of_name,
    units::Size,
};

/// What is up to this size is parsed on the async thread; a larger one takes milliseconds.
const QUICK: usize = 64 * 1024;

/// Uploads a plugin: validates, stores and publishes it. It replaces the evaluator of that name, if there is one.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Extension(connection): Extension<Arc<Connection>>,
    Name(name): Name,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let conditions = Conditions::of(&headers)?;
    // Once more when it is stored: here, who has lost the race already does not pay for an upload.
    conditions.check(app.store.revision(&name))?;
    let uploads = Bodies::uploads(connection);
    let form = if is_form(&headers) {
        // A form says in its spec what a bare plugin says in the query.
        no_parameters(&uri)?;
        form::read(&app, &uploads, &headers, body).await?
    } else {
        let document = upload(&uri)?;
        check_is_wasm(&headers)?;
        Form { document, plugin: uploads.read(body, "plugin", app.plugin_size).await?, linked: Vec::new() }
    };
    let Form { document, plugin, linked } = form;
    app.ceilings.check(&document)?;
    let (shared, for_name) = (app.clone(), name.clone());
    let (plugin, staged, document) = blocking(move || {
        // Most bad uploads end here, before anything is written.
        let plugin = Plugin::new(plugin, document.digest)?;
        let linked = linked.into_iter().map(|(name, bytes)| Ok::<_, Error>((name, Plugin::new(bytes, None)?)));
        let linked = linked.collect::<Result<Vec<_>, _>>()?;
        plugin.interface().resolve(document.entry_point.as_deref())?;
        let most = shared.pool.bounds_of(of_name(&for_name)).stored_bytes;
        let staged = shared.store.stage(&for_name, &plugin, &linked, most)?;
        Ok((plugin, staged, document))
    })
    .await?;
    publish(app, name, document, staged, Some(plugin), move |revision| conditions.check(revision)).await
}

/// Changes an evaluator's spec by a JSON merge patch, without a new upload.
pub(super) async fn patch(
    State(app): State<Arc<App>>,
    Extension(connection): Extension<Arc<Connection>>,
    Name(name): Name,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let conditions = Conditions::of(&headers)?;
    find(&app, &name)?;
    check_is_patch(&headers)?;
    let read = Bodies::uploads(connection).read(body, "patch", MAX_DOCUMENT).await;
    let patch = read.map_err(|problem| {
        let too_large = || Problem::too_large(format!("the patch is over {}", Size(MAX_DOCUMENT)));
        if problem.is(ErrorKind::PayloadTooLarge) { too_large() } else { problem }
    })?;
    let shared = app.clone();
    let (name, Current { revision, staged, .. }, document) = blocking(move || {
        let built_in =
            || Error::invalid_request(format!("{name:?} is built in and has no spec; upload a plugin first"));
        let current = shared.store.current(&name)?.ok_or_else(built_in)?;
        conditions.check(Some(current.revision))?;
        let document = current.document.patched(&patch)?;
        shared.ceilings.check(&document)?;
        if let Some(expected) = document.digest.filter(|expected| *expected != current.staged.digest()) {
            let actual = current.staged.digest().to_string();
            return Err(Error::DigestMismatch { expected: expected.to_string(), actual });
        }
        Ok((name, current, document))
    })
    .await?;
    let reason = "the evaluator was changed meanwhile; read it again, and repeat the patch";
    let check = move |now| if now == Some(revision) { Ok(()) } else { Err(Error::PreconditionFailed { reason }) };
    publish(app, name, document, staged, None, check).await
}

/// Builds what is staged, stores it and makes it the evaluator's new revision. `plugin` is what is staged, if it is in
/// memory; `check` is asked at the last moment, with the revision that would be replaced.
async fn publish(
    app: Arc<App>,
    name: String,
    document: Document,
    staged: Staged,
    plugin: Option<Plugin>,
    check: impl FnOnce(Option<u64>) -> Result<(), Error> + Send + 'static,
) -> Result<Response, Problem> {
    let (pool, named, spec) = (app.pool.clone(), name.clone(), staged.spec(&document, &app.ceilings));
    let is_upload = plugin.is_some();
    let prepared = pool.prepare_with(&named, spec, plugin).await?;
    let nameless = Error::Internal { reason: "a plugin was prepared without being read", cause: None };
    let info = prepared.info().ok_or(nameless)?;
    let unnamed =
        || Error::invalid_request("the spec must name an entry_point: the plugin has several, or none that fits");
    let entry_point = info.entry_point.clone().ok_or_else(unnamed)?;
    let location = format!("/v1/evaluators/{}", name.replace('/', "%2F"));
    let (shown, replaced) = blocking(move || {
        // If the store fails, `prepared` is dropped, which closes the new runtime.
        let publish = || prepared.publish().1;
        let (replaced, revision) = app.store.commit(&name, &entry_point, &document, staged, check, publish)?;
        let digest = info.digest.map(|digest| digest.to_string());
        let labels = (!document.labels.is_empty()).then(|| serde_json::to_string(&document.labels).unwrap_or_default());
        tracing::info!(name, digest, entry_point, revision, labels, replaced, "an evaluator was registered");
        app.note_change(&name, what(is_upload, replaced));
        if let (Some(ui), Some(evaluator), false) = (&app.ui, app.pool.get(&name), document.debug) {
            ui.lines.forget(evaluator.id());
        }
        Ok((Shown { info, revision, spec: document.shown()? }, replaced))
    })
    .await?;
    let status = if replaced { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, [(header::LOCATION, location)], shown.into_response()?).into_response())
}

/// What was done to an evaluator, in a word.
fn what(is_upload: bool, replaced: bool) -> &'static str {
    match (is_upload, replaced) {
        (false, _) => "patched",
        (true, false) => "uploaded",
        (true, true) => "replaced",
    }
}

/// An evaluator as its clients see it.
#[derive(Serialize)]
pub(super) struct Shown {
    #[serde(flatten)]
    info: EvaluatorInfo,
    revision: u64,
    spec: Value,
}

impl Shown {
    fn into_response(self) -> Result<Response, Problem> {
        Ok(([(header::ETAG, etag(self.revision))], json(&self)?).into_response())
    }
}

/// Evaluates once: the request's body is the plugin's input, and its output is the answer's body. For a plugin that takes
/// requests, both are documents.
pub(super) async fn evaluate(
    State(app): State<Arc<App>>,
    Extension(connection): Extension<Arc<Connection>>,
    Name(name): Name,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let call = Call::of(&uri)?;
    let evaluator = find(&app, &name)?;
    if evaluator.wanted_input() == Input::Bytes {
        call.check_no_query()?;
    }
    check_not_coded(&headers)?;
    let inputs = Bodies::inputs(connection.clone());
    let body = inputs.read(body, "input", app.input_size).await?;
    let data = if evaluator.has_data() { mergeable(body.clone()).await? } else { body.clone().into() };
    let is_quick = is_quick(body.len());
    let parent = telemetry::requests::parent(&headers);
    let asked = Arc::new(Asked::new(app.clone(), inputs, uri, headers, call, body, data));
    if !is_quick && evaluator.wanted_input() == Input::Request {
        let shared = asked.clone();
        // A failure is kept, and comes up again below.
        blocking(move || Ok(shared.data(Input::Request).is_ok())).await?;
    }
    let shared = asked.clone();
    let (id, shows_usage) = (evaluator.id(), evaluator.is_debugged());
    let noted = Noted::begin(&app, (id, name), parent.clone());
    let evaluation = async move {
        let mut timings = Timings::default();
        let call = crate::evaluator::Call::by(shared.entry_point()).timed(&mut timings);
        let call = if let Some(parent) = parent { call.with(parent) } else { call };
        let evaluated = evaluator.evaluate_from(&*shared, call).await;
        (evaluated, timings)
    };
    let evaluation = evaluation.in_current_span();
    // If the client leaves, its guest and the span of it end later, and a shutdown waits for them.
    let part = app.work.part();
    let evaluation = async move {
        let _part = part;
        evaluation.await
    };
    let (evaluated, timings) = app.guests.run(id, evaluation).await?;
    if let Some(noted) = noted {
        noted.end(evaluated.as_ref(), timings);
    }
    let response = evaluated.map_err(|error| match error {
        Error::PayloadTooLarge { what: "input", limit } if asked.was_request() => {
            let limit = Size(limit);
            Problem::too_large(format!(
                "the request is over limits.input_size, {limit}, as the JSON that its plugin gets"
            ))
        }
        error => error.into(),
    })?;
    let used = usage_headers(response.timings(), &response.usage(), shows_usage);
    let output = response.into_bytes();
    let is_request = asked.was_request();
    // Makes room: what came is not needed any more.
    drop(asked);
    // A document's body is there twice for a moment.
    let mut charge = answer::charge(&connection, output.len() * if is_request { 2 } else { 1 }).await?;
    if !is_request {
        let kind = guessed_type(&output).await?;
        let output = Arc::new(charge).hold(output);
        return Ok((Extension(answer::Charged), used, [(header::CONTENT_TYPE, kind)], output).into_response());
    }
    let Answer { status, mut headers, body } =
        by_size(output.len(), move || Answer::read(&output, &app.allowed)).await?;
    charge.shrink_to(body.len() as u64);
    let body = Arc::new(charge).hold(body);
    if !headers.contains_key(header::CONTENT_TYPE) && !body.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(guessed_type(&body).await?));
    }
    // The plugin may say that it is a page: its scripts must not run as this server's.
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static("sandbox"));
    // Bytes would bring a type of their own.
    Ok((status, Extension(answer::Charged), used, headers, Body::from(body)).into_response())
}

/// Shows one evaluator.
pub(super) async fn show(State(app): State<Arc<App>>, Name(name): Name, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    blocking(move || shown(&app, name)).await?.into_response()
}

/// What is known of an evaluator. Reads its file.
pub(super) fn shown(app: &App, name: String) -> Result<Shown, Error> {
    let stored = app.store.shown(&name)?;
    let (info, (revision, spec)) = app.pool.info(&name).zip(stored).ok_or(Error::NotFound { name })?;
    Ok(Shown { info, revision, spec })
}

/// Lists registered evaluators in the order of their names.
pub(super) async fn list(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    /// Without its spec, which may be large.
    #[derive(Serialize)]
    struct Listed {
        #[serde(flatten)]
        info: EvaluatorInfo,
        revision: Option<u64>,
    }

    #[derive(Serialize)]
    struct List {
        evaluators: Vec<Listed>,
        /// The `after` of the next page; `null` on the last.
        next: Option<String>,
    }

    let page = Page::of(&uri)?;
    let list = blocking(move || {
        let (found, next) = page.of_list(|after, most| app.pool.list(after, most), |info| &info.name);
        let listed = |info: EvaluatorInfo| Listed { revision: app.store.revision(&info.name), info };
        Ok(List { evaluators: found.into_iter().map(listed).collect(), next })
    })
    .await?;
    json(&list)
}

/// Drains and closes an evaluator's runtime. The evaluator stays registered.
pub(super) async fn unload(State(app): State<Arc<App>>, Name(name): Name, uri: Uri) -> Result<StatusCode, Problem> {
    no_parameters(&uri)?;
    let closed = find(&app, &name)?.unload().await;
    tracing::info!(name, "a runtime was closed");
    gone(closed)
}

/// Removes an evaluator and closes it.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Name(name): Name,
    uri: Uri,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    no_parameters(&uri)?;
    let conditions = Conditions::of(&headers)?;
    find(&app, &name)?;
    conditions.check(app.store.revision(&name))?;
    tracing::info!(name, "an evaluator is removed");
    let shared = app.clone();
    let (evaluator, claims) = blocking(move || {
        let check = |revision| conditions.check(revision);
        let (taken, claims) = shared.store.forget(&name, check, || shared.pool.take(&name))?;
        // Another request may have removed it meanwhile.
        let taken = taken.ok_or(Error::NotFound { name })?;
        // Here, since the client may leave, which ends the rest.
        shared.note_change(taken.name(), "removed");
        shared.forget(taken.id());
        Ok((taken, claims))
    })
    .await?;
    let closed = evaluator.close().await;
    // Calls that went on until now have left something.
    app.forget(evaluator.id());
    // No build reads the plugin's file any more.
    drop(claims);
    gone(closed)
}

fn find(app: &App, name: &str) -> Result<Evaluator, Error> {
    app.pool.get(name).ok_or_else(|| Error::NotFound { name: name.to_owned() })
}

fn gone(closed: CloseReport) -> Result<StatusCode, Problem> {
    match closed {
        CloseReport::Drained | CloseReport::Forced => Ok(StatusCode::NO_CONTENT),
        CloseReport::Unfinished { .. } => {
            Err(Error::Internal { reason: "the runtime is closing and has not ended in time", cause: None }.into())
        }
    }
}

pub(super) fn json(value: &impl Serialize) -> Result<Response, Problem> {
    let json = serde_json::to_vec(value).map_err(|error| Error::internal("an answer cannot be written", error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// An input as what can be merged into an evaluator's own data: a JSON object, or nothing. Others replace that data.
///
/// # Errors
///
/// 413 for an object that is over [`MAX_DOCUMENT`]: parsed, it takes many times as much memory.
async fn mergeable(input: Bytes) -> Result<Data, Problem> {
    let object = input.trim_ascii_start().first() == Some(&b'{');
    if object && input.len() as u64 > MAX_DOCUMENT {
        let detail = format!("the input is over {}, the most that is merged with static_data", Size(MAX_DOCUMENT));
        return Err(Problem::too_large(detail));
    }
    if !object {
        return Ok(if input.is_empty() { Data::Empty } else { Data::Bytes(input) });
    }
    let parse = |input: Bytes| serde_json::from_slice(&input).map_or(Data::Bytes(input), Data::Json);
    Ok(by_size(input.len(), move || Ok(parse(input))).await?)
}

/// The header `server-timing`, in milliseconds, and for those who debug the plugin `evalpool-usage`, in JSON.
fn usage_headers(timings: Timings, usage: &Usage, in_full: bool) -> HeaderMap {
    let Timings { wait, build, exec } = timings;
    let times = [("wait", wait), ("build", build), ("exec", exec), ("guest", usage.guest), ("total", usage.total)];
    let times = times.map(|(name, time)| format!("{name};dur={:.3}", time.as_secs_f64() * 1000.0)).join(", ");
    let full = in_full.then(|| serde_json::to_string(usage).ok()).flatten();
    let texts = [("server-timing", Some(times)), ("evalpool-usage", full)];
    let header = |(name, text): (_, Option<String>)| Some((HeaderName::from_static(name), text?.try_into().ok()?));
    texts.into_iter().filter_map(header).collect()
}

async fn guessed_type(output: &Bytes) -> Result<&'static str, Error> {
    // Check UTF-8 first: serde_json does not check strings that it skips.
    let parses =
        |bytes: &[u8]| str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    let shared = output.clone();
    let is_json = by_size(output.len(), move || Ok(parses(&shared))).await?;
    Ok(if is_json { "application/json" } else { "application/octet-stream" })
}

/// Does this with so many bytes: here, or on a blocking thread.
async fn by_size<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    if is_quick(bytes) { work() } else { blocking(work).await }
}

fn is_quick(bytes: usize) -> bool {
    bytes <= QUICK
}

/// Runs `work` on a blocking thread. It runs to its end even if the returned future is dropped.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let span = Span::current();
    let ended = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    ended.map_err(|error| Error::internal("a task did not finish", error))?
}
