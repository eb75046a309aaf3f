//! The requests of operators: health, readiness, metrics.

use std::sync::Arc;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use super::{App, evaluators::blocking, problem::Problem};
use crate::{Error, service::process};

/// 200 while the process is alive.
pub(super) async fn healthz() -> &'static str {
    "alive\n"
}

/// 200 while the server takes work, 503 while it drains.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, Problem> {
    if app.work.is_draining() { Err(Error::ShuttingDown.into()) } else { Ok("ready\n") }
}

/// Every metric, in Prometheus's text format.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    // Reads files of `/proc` and renders some hundred lines.
    let text = blocking(move || {
        process::publish();
        app.connections.publish();
        let _ = app.pool.slots();
        Ok(app.exporter.render() + &app.pool.usage_series().to_string())
    })
    .await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}
