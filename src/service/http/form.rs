//! Uploads as `multipart/form-data`: the parts `spec`, `plugin` and `link.NAME`.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{DefaultBodyLimit, FromRequest, Multipart, Request, multipart::MultipartError},
    http::{HeaderMap, HeaderValue, header},
};
use bytes::Bytes;
use tokio::{runtime::Handle, task::spawn_blocking};

use super::{App, body::Bodies, problem::Problem, request::check_not_coded};
use crate::{
    Error,
    config::nearest,
    engine::MAX_LINKED,
    service::{
        connections::Charge,
        document::{Document, MAX_DOCUMENT},
    },
    units::{Quoted, Size},
};

/// What the heads of parts and the boundaries may take.
const AROUND: u64 = 64 * 1024;

/// The longest name of a part, in bytes: those of a module's imports can be long.
const MOST_OF_NAME: usize = 1024;

/// An upload's parts.
#[derive(Default)]
pub(super) struct Form {
    pub(super) document: Document,
    pub(super) plugin: Bytes,
    /// By the names under which the plugin imports from them.
    pub(super) linked: Vec<(String, Bytes)>,
}

/// Whether a request says that its body is a form.
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.get(..10).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/"))
}

/// Reads a form to its end and takes it apart.
///
/// # Errors
///
/// As [`Bodies::read`](super::body::Bodies::read); also when a part is unknown, repeated, missing or too large.
pub(super) async fn read(app: &App, uploads: &Bodies, headers: &HeaderMap, body: Body) -> Result<Form, Problem> {
    check_not_coded(headers)?;
    let limit = app.plugin_size;
    let most = limit.saturating_mul(1 + MAX_LINKED as u64).saturating_add(MAX_DOCUMENT + AROUND);
    let too_large = || Error::PayloadTooLarge { what: "plugin", limit };
    let (whole, charge) = uploads.read_whole(body, most, too_large).await?;
    // While it is taken apart, the bytes are there twice.
    let twice = uploads.charge_more(whole.len())?;
    let kind = headers.get(header::CONTENT_TYPE).cloned().unwrap_or(HeaderValue::from_static(""));
    // All of it is in memory: copying it takes milliseconds, too long for a thread of the executor.
    let split = spawn_blocking(move || Handle::current().block_on(split(whole, kind, limit, &Arc::new(charge))));
    let form = split.await.map_err(|error| Error::internal("a task did not finish", error))?;
    drop(twice);
    form
}

async fn split(whole: Bytes, kind: HeaderValue, limit: u64, charge: &Arc<Charge>) -> Result<Form, Problem> {
    let mut request = Request::new(Body::from(whole));
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    // Its own limit is for bodies that nobody else has bounded.
    DefaultBodyLimit::disable().apply(&mut request);
    let no_form = |_| invalid("a form is sent as content-type: multipart/form-data with a boundary, as curl -F does");
    let mut parts = Multipart::from_request(request, &()).await.map_err(no_form)?;
    let mut form = Form::default();
    let (mut has_spec, mut has_plugin) = (false, false);
    while let Some(part) = parts.next_field().await.map_err(broken)? {
        let name = part.name().unwrap_or_default().to_owned();
        if name.len() > MOST_OF_NAME {
            return Err(invalid(format!(
                "the name of the part {} is over {}",
                Quoted(&name),
                Size(MOST_OF_NAME as u64)
            )));
        }
        let repeated = || invalid(format!("the form has the part {} twice", Quoted(&name)));
        match name.as_str() {
            "spec" if has_spec => return Err(repeated()),
            "plugin" if has_plugin => return Err(repeated()),
            "spec" => {
                let spec = part.bytes().await.map_err(broken)?;
                if spec.len() as u64 > MAX_DOCUMENT {
                    return Err(Problem::too_large(format!("the spec is over {}", Size(MAX_DOCUMENT))));
                }
                form.document = Document::parse(&spec)?;
                has_spec = true;
            }
            "plugin" => {
                form.plugin = module(part.bytes().await.map_err(broken)?, limit, charge)?;
                has_plugin = true;
            }
            _ => match name.strip_prefix("link.").filter(|linked| !linked.is_empty()) {
                None => {
                    let hint = nearest(&name, ["spec", "plugin"].into_iter());
                    let takes = "a form takes spec, plugin and link.NAME";
                    return Err(invalid(format!("there is no part {}; {takes}{hint}", Quoted(&name))));
                }
                Some(linked) if form.linked.iter().any(|(other, _)| other == linked) => return Err(repeated()),
                Some(_) if form.linked.len() == MAX_LINKED => {
                    let detail =
                        format!("{name:.100} is one linked module too many; a plugin has at most {MAX_LINKED}");
                    return Err(invalid(detail));
                }
                Some(linked) => {
                    let bytes = module(part.bytes().await.map_err(broken)?, limit, charge)?;
                    form.linked.push((linked.to_owned(), bytes));
                }
            },
        }
    }
    if has_plugin {
        Ok(form)
    } else {
        Err(invalid("the form has no part plugin; add one, as curl -F plugin=@FILE does"))
    }
}

fn module(bytes: Bytes, limit: u64, charge: &Arc<Charge>) -> Result<Bytes, Problem> {
    if bytes.len() as u64 > limit {
        return Err(Error::PayloadTooLarge { what: "plugin", limit }.into());
    }
    Ok(charge.clone().hold(bytes))
}

fn invalid(detail: impl Into<String>) -> Problem {
    Error::invalid_request(detail).into()
}

/// The parser's own words show nothing of a part's content.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: MultipartError) -> Problem {
    invalid(format!("the form cannot be read: {}", error.body_text()))
}
