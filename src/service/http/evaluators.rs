//! The requests about evaluators.

use std::{io, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{Serialize, de::IgnoredAny};

use super::{
    App,
    problem::Problem,
    request::{Call, Name, Page, Upload, check_is_wasm, check_not_coded, no_parameters},
};
use crate::{CloseReport, Error, Evaluator, EvaluatorInfo, Plugin, Timings};

/// Outputs up to this size are parsed on the async thread; a larger one takes milliseconds.
const QUICK: usize = 64 * 1024;

/// Uploads a plugin: validates, stores and publishes it. It replaces the evaluator of that name, if there is one.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Name(name): Name,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Upload { options, digest } = Upload::of(&uri)?;
    check_is_wasm(&headers)?;
    let wasm = app.uploads.read(body, "plugin", app.plugin_size).await?;
    let (store, wanted) = (app.store.clone(), options.entry_point.clone());
    let (plugin, staged) = blocking(move || {
        // Most bad uploads end here, before anything is written.
        let plugin = Plugin::new(wasm, digest)?;
        plugin.interface().resolve(wanted.as_deref())?;
        let staged = store.stage(&plugin).map_err(not_stored)?;
        Ok((plugin, staged))
    })
    .await?;
    let prepared = app.pool.prepare_with(&name, staged.spec(&options), Some(plugin)).await?;
    let nameless = Error::Internal { reason: "a plugin was prepared without being read", cause: None };
    let info = prepared.info().ok_or(nameless)?;
    let (store, location) = (app.store.clone(), format!("/v1/evaluators/{}", name.replace('/', "%2F")));
    let (info, replaced) = blocking(move || {
        let entry_point = info.entry_point.clone().unwrap_or_default();
        // If the store fails, `prepared` is dropped, which closes the new runtime.
        let publish = || prepared.publish().1;
        let replaced = store.commit(&name, &entry_point, &options, staged, publish).map_err(not_stored)?;
        let digest = info.digest.map(|digest| digest.to_string());
        tracing::info!(name, digest, entry_point, replaced, "an evaluator was registered");
        Ok((info, replaced))
    })
    .await?;
    let status = if replaced { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, [(header::LOCATION, location)], json(&info)?).into_response())
}

/// Evaluates once: the request's body is the plugin's input, and its output is the answer's body.
pub(super) async fn evaluate(
    State(app): State<Arc<App>>,
    Name(name): Name,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Call { entry_point } = Call::of(&uri)?;
    let evaluator = find(&app, &name)?;
    check_not_coded(&headers)?;
    let input = app.inputs.read(body, "input", app.input_size).await?;
    let response = match entry_point {
        Some(name) => evaluator.entry_point(name).evaluate(input).await?,
        None => evaluator.evaluate(input).await?,
    };
    let timing = server_timing(response.timings());
    let output = response.into_bytes();
    let kind = if is_json(&output).await? { "application/json" } else { "application/octet-stream" };
    let headers = [(header::CONTENT_TYPE, kind), (header::HeaderName::from_static("server-timing"), &timing)];
    Ok((headers, output).into_response())
}

/// Shows one evaluator.
pub(super) async fn show(State(app): State<Arc<App>>, Name(name): Name, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let info = app.pool.info(&name).ok_or(Error::NotFound { name })?;
    json(&info)
}

/// Lists registered evaluators in the order of their names.
pub(super) async fn list(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct List<'a> {
        evaluators: &'a [EvaluatorInfo],
        /// The `after` of the next page; `null` on the last.
        next: Option<&'a str>,
    }

    let Page { limit, after } = Page::of(&uri)?;
    // One more than `limit` tells whether there is a next page.
    let found = app.pool.list(after.as_deref(), limit + 1);
    let evaluators = found.get(..limit).unwrap_or(&found);
    let next = (found.len() > limit).then(|| evaluators.last().map(|last| last.name.as_str())).flatten();
    json(&List { evaluators, next })
}

/// Drains and closes an evaluator's runtime. The evaluator stays registered.
pub(super) async fn unload(State(app): State<Arc<App>>, Name(name): Name, uri: Uri) -> Result<StatusCode, Problem> {
    no_parameters(&uri)?;
    gone(find(&app, &name)?.unload().await)
}

/// Removes an evaluator and closes it.
pub(super) async fn remove(State(app): State<Arc<App>>, Name(name): Name, uri: Uri) -> Result<StatusCode, Problem> {
    no_parameters(&uri)?;
    find(&app, &name)?;
    tracing::info!(name, "an evaluator is removed");
    let shared = app.clone();
    let (evaluator, claim) = blocking(move || {
        let (taken, claim) = shared.store.forget(&name, || shared.pool.take(&name)).map_err(not_stored)?;
        // Another request may have removed it meanwhile.
        Ok((taken.ok_or(Error::NotFound { name })?, claim))
    })
    .await?;
    let closed = evaluator.close().await;
    // No build reads the plugin's file any more.
    drop(claim);
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

fn not_stored(error: io::Error) -> Error {
    Error::internal("the evaluator cannot be stored", error)
}

fn json(value: &impl Serialize) -> Result<Response, Problem> {
    let json = serde_json::to_vec(value).map_err(|error| Error::internal("an answer cannot be written", error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// The header `server-timing`, in milliseconds.
fn server_timing(timings: Timings) -> String {
    let Timings { wait, build, exec } = timings;
    let [wait, build, exec] = [wait, build, exec].map(|time| time.as_secs_f64() * 1000.0);
    format!("wait;dur={wait:.3}, build;dur={build:.3}, exec;dur={exec:.3}")
}

async fn is_json(output: &Bytes) -> Result<bool, Error> {
    // Check UTF-8 first: serde_json does not check strings that it skips.
    let parses =
        |bytes: &[u8]| str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    if output.len() <= QUICK {
        return Ok(parses(output));
    }
    let output = output.clone();
    blocking(move || Ok(parses(&output))).await
}

/// Runs `work` on a blocking thread. It runs to its end even if the returned future is dropped.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal("a task did not finish", error))?
}
