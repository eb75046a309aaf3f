//! Names and parameters of requests, parsed.

use std::collections::BTreeMap;

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::{HeaderMap, HeaderName, StatusCode, Uri, header, request::Parts},
};

use super::problem::Problem;
use crate::{
    Error, ErrorKind,
    pool::check_name,
    service::{cli::word, document::Document, ui::search::Search},
};

/// The evaluator's name in a path, decoded and checked.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let reason = "it is not UTF-8 once its %XX are decoded";
        let undecodable = || Error::InvalidName { name: parts.uri.path().chars().take(128).collect(), reason };
        let path = Path::<String>::from_request_parts(&mut parts.clone(), state).await;
        let Path(name) = path.map_err(|_| undecodable())?;
        check_name(&name)?;
        Ok(Self(name))
    }
}

/// The parameters of an upload: what of a document is harmless in a log.
pub(super) fn upload(uri: &Uri) -> Result<Document, Error> {
    let known = ["entry_point", "isolation", "wasi", "vars", "init", "init_refresh", "input", "debug", "digest"];
    let mut said = parameters(uri, &known)?;
    Ok(Document {
        entry_point: entry_point(&mut said)?,
        isolation: value(&mut said, "isolation", word)?,
        wasi: value(&mut said, "wasi", word)?,
        input: value(&mut said, "input", word)?,
        vars: value(&mut said, "vars", word)?,
        init: value(&mut said, "init", word)?,
        init_refresh: value(&mut said, "init_refresh", word)?,
        debug: value(&mut said, "debug", str::parse)?.unwrap_or_default(),
        digest: value(&mut said, "digest", str::parse)?,
        ..Document::default()
    })
}

/// What a client wants to be so before its request changes anything: `If-Match` and `If-None-Match`.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    matches: Option<String>,
    must_be_new: bool,
}

impl Conditions {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let list = |name: HeaderName| {
            let lines = headers.get_all(&name).iter().map(|line| line.to_str().unwrap_or_default().trim());
            let all = lines.collect::<Vec<_>>().join(",");
            headers.contains_key(&name).then_some(all)
        };
        let must_be_new = match list(header::IF_NONE_MATCH).as_deref() {
            None => false,
            Some("*") => true,
            Some(_) => {
                return Err(Error::invalid_request("if-none-match can be * alone, for an evaluator that is new"));
            }
        };
        Ok(Self { matches: list(header::IF_MATCH), must_be_new })
    }

    /// # Errors
    ///
    /// `precondition_failed`, if the evaluator's present revision, or that there is none, is not what the client wants.
    pub(super) fn check(&self, revision: Option<u64>) -> Result<(), Error> {
        let failed = |reason: &'static str| Err(Error::PreconditionFailed { reason });
        if self.must_be_new && revision.is_some() {
            return failed("if-none-match: * was asked for, and there is an evaluator of this name");
        }
        let Some(matches) = &self.matches else { return Ok(()) };
        match revision {
            None => failed("if-match was asked for, and there is no evaluator of this name"),
            // A weak tag, `W/"…"`, never matches here.
            Some(revision) if matches == "*" || matches.split(',').any(|tag| tag.trim() == etag(revision)) => Ok(()),
            Some(_) => failed("the evaluator is not what if-match names; it was changed meanwhile, so read it again"),
        }
    }
}

/// The header `etag` of an evaluator: its revision, of which nobody can guess what the spec holds.
pub(super) fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// The parameters of an evaluation.
pub(super) struct Call {
    pub(super) entry_point: Option<String>,
    /// Those that are for the plugin, if it takes requests.
    pub(super) query: Vec<(String, String)>,
}

impl Call {
    pub(super) fn of(uri: &Uri) -> Result<Self, Error> {
        let (own, query) = pairs(uri)?.into_iter().partition(|(name, _)| name == "entry_point");
        Ok(Self { entry_point: entry_point(&mut known(own, &["entry_point"])?)?, query })
    }

    /// Refuses parameters that nobody would read.
    pub(super) fn check_no_query(&self) -> Result<(), Error> {
        known(self.query.clone(), &["entry_point"]).map(drop)
    }
}

/// The parameters of a listing.
pub(super) struct Page {
    limit: usize,
    after: Option<String>,
}

impl Page {
    const LIMIT: usize = 100;
    const MAX_LIMIT: usize = 1000;

    pub(super) fn of(uri: &Uri) -> Result<Self, Error> {
        let mut said = parameters(uri, &["limit", "after"])?;
        let limit = value(&mut said, "limit", |text| limit(text, Self::MAX_LIMIT))?;
        Ok(Self { limit: limit.unwrap_or(Self::LIMIT), after: said.remove("after") })
    }

    /// What is on this page, of what `list` finds after a name and up to a number, and the `after` of the next page.
    pub(super) fn of_list<T>(
        &self,
        list: impl FnOnce(Option<&str>, usize) -> Vec<T>,
        name: impl FnOnce(&T) -> &str,
    ) -> (Vec<T>, Option<String>) {
        // One more than `limit` tells whether there is a next page.
        let mut found = list(self.after.as_deref(), self.limit + 1);
        let is_last = found.len() <= self.limit;
        found.truncate(self.limit);
        let next = found.last().filter(|_| !is_last).map(|last| name(last).to_owned());
        (found, next)
    }
}

/// The parameters of the page's lists.
pub(super) fn search(uri: &Uri) -> Result<Search, Error> {
    let mut said = parameters(uri, &["q", "tenant", "state", "sort", "descending", "page", "limit"])?;
    let limit = value(&mut said, "limit", |text| limit(text, Page::MAX_LIMIT))?;
    Ok(Search {
        text: said.remove("q").unwrap_or_default(),
        tenant: said.remove("tenant"),
        state: value(&mut said, "state", word)?,
        sort: value(&mut said, "sort", word)?.unwrap_or_default(),
        descending: value(&mut said, "descending", str::parse)?.unwrap_or_default(),
        page: value(&mut said, "page", str::parse)?.unwrap_or_default(),
        limit: limit.unwrap_or(Page::LIMIT),
    })
}

/// From which sample on the page reads, and whether it wants every runtime.
pub(super) fn watch(uri: &Uri) -> Result<(u64, bool), Error> {
    let mut said = parameters(uri, &["from", "runtimes"])?;
    let from = value(&mut said, "from", str::parse)?;
    Ok((from.unwrap_or_default(), value(&mut said, "runtimes", str::parse)?.unwrap_or_default()))
}

fn limit(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(limit) if (1..=most).contains(&limit) => Ok(limit),
        _ => Err(format!("expected a number from 1 to {most}")),
    }
}

/// Refuses parameters where a request takes none: a client would believe that an ignored one had worked.
pub(super) fn no_parameters(uri: &Uri) -> Result<(), Error> {
    parameters(uri, &[]).map(drop)
}

fn parameters(uri: &Uri, known_names: &[&str]) -> Result<BTreeMap<String, String>, Error> {
    known(pairs(uri)?, known_names)
}

fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, Error> {
    let unreadable = |error| Error::invalid_request(format!("the query cannot be read: {error}"));
    Query::try_from_uri(uri).map(|Query(pairs)| pairs).map_err(unreadable)
}

fn known(pairs: Vec<(String, String)>, known: &[&str]) -> Result<BTreeMap<String, String>, Error> {
    let mut said = BTreeMap::new();
    for (name, value) in pairs {
        if !known.contains(&name.as_str()) {
            let takes = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::invalid_request(format!("there is no parameter {name:?}; this request takes {takes}")));
        }
        if said.contains_key(&name) {
            return Err(Error::invalid_request(format!("the parameter {name} is given twice")));
        }
        said.insert(name, value);
    }
    Ok(said)
}

fn entry_point(said: &mut BTreeMap<String, String>) -> Result<Option<String>, Error> {
    match said.remove("entry_point") {
        Some(name) if name.is_empty() => {
            Err(Error::invalid_request("entry_point is empty; leave it out to have one chosen"))
        }
        named => Ok(named),
    }
}

fn value<T, E: std::fmt::Display>(
    said: &mut BTreeMap<String, String>,
    name: &str,
    read: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, Error> {
    said.remove(name)
        .map(|text| read(&text).map_err(|error| Error::invalid_request(format!("{name}={text}: {error}"))))
        .transpose()
}

/// Refuses compressed bodies: nothing here decodes them, so that the engine or the guest would get the wrong bytes.
pub(super) fn check_not_coded(headers: &HeaderMap) -> Result<(), Problem> {
    match header_text(headers, &header::CONTENT_ENCODING) {
        None | Some("identity") => Ok(()),
        Some(_) => Err(unsupported("the body must not be compressed; send it without content-encoding")),
    }
}

/// Refuses uploads whose type is not WebAssembly. Many tools that send a file name no type, or
/// `application/octet-stream`.
pub(super) fn check_is_wasm(headers: &HeaderMap) -> Result<(), Problem> {
    match media_type(headers).as_deref() {
        None | Some("application/wasm" | "application/octet-stream") => check_not_coded(headers),
        Some(_) => Err(unsupported(
            "a plugin is a WebAssembly binary; send it as content-type: application/wasm, or as a part of a form",
        )),
    }
}

/// Refuses patches that are no JSON, or one of another kind.
pub(super) fn check_is_patch(headers: &HeaderMap) -> Result<(), Problem> {
    match media_type(headers).as_deref() {
        Some("application/merge-patch+json" | "application/json") => check_not_coded(headers),
        _ => Err(unsupported("a patch is a JSON merge patch; send it as content-type: application/merge-patch+json")),
    }
}

/// The type of a body, without parameters and in small letters.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let named = header_text(headers, &header::CONTENT_TYPE)?;
    Some(named.split(';').next().unwrap_or(named).trim().to_ascii_lowercase())
}

fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

fn unsupported(detail: &str) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorKind::InvalidRequest, detail)
}
