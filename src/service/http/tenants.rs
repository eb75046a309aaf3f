//! The requests about tenants.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
use serde::Serialize;

use super::{
    App,
    evaluators::{blocking, json},
    problem::Problem,
    request::{Name, Page, no_parameters},
};
use crate::{ErrorKind, TenantInfo};

/// Lists tenants in the order of their names.
pub(super) async fn list(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct List {
        tenants: Vec<TenantInfo>,
        /// The `after` of the next page; `null` on the last.
        next: Option<String>,
    }

    let page = Page::of(&uri)?;
    let list = blocking(move || {
        let (tenants, next) = page.of_list(|after, most| app.pool.tenants(after, most), |tenant| &tenant.name);
        Ok(List { tenants, next })
    })
    .await?;
    json(&list)
}

/// Shows one tenant.
pub(super) async fn show(State(app): State<Arc<App>>, Name(name): Name, uri: Uri) -> Result<Response, Problem> {
    no_parameters(&uri)?;
    let unknown = || {
        let detail = format!("no tenant is named {name:?}; one is there from its first evaluator on");
        Problem::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, detail)
    };
    json(&app.pool.tenant(&name).ok_or_else(unknown)?)
}
